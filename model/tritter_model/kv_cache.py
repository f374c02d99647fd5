"""The key-value cache: preallocated, quantised, and bounded by the window where there is one.

A layer holds the first tokens (the attention sinks) apart, in the activations' type, because they
are always attended to and their outliers would spoil a group's scale. Token t behind them has the
index t - sinks. Values lie at index % slots. Keys of a quantised cache wait in the tail, in the
activations' type, until `group` of them are there; then the group is quantised, channel by channel,
into place number (index // group) % groups. With a window, slots and groups cover it and no more:
the cache is a ring. Nothing is ever moved, or quantised twice.

Shapes: B batch, G key-value heads, D their width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from tritter_model.config import QUANTISED_KV_BITS, RunConfig
from tritter_model.labels import KV_CACHE, label

_PLAIN_TYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class LayerCache:
    """One layer's tensors and the numbers that say how they are used.

    Attributes:
        bits: 8, 4 or 2 where keys and values are quantised, 0 where they are stored as they are.
        group: tokens that share a key's scale.
        window: tokens that a query sees, itself included; 0: all.
        keys: [B, G, groups * group, D * bits / 8] uint8, or [B, G, slots, D].
        values: [B, G, slots, D * bits / 8] uint8, or [B, G, slots, D].
        sink_keys: [B, G, sinks, D].
        sink_values: [B, G, sinks, D].
        tail: [B, G, group, D]; empty where nothing is quantised, as are the following.
        key_scale: float16 [B, G, groups, D].
        key_minimum: float16 [B, G, groups, D].
        value_scale: float16 [B, G, slots, D / min(group, D)].
        value_minimum: float16 [B, G, slots, D / min(group, D)].
    """

    bits: int
    group: int
    window: int
    keys: Tensor
    values: Tensor
    sink_keys: Tensor
    sink_values: Tensor
    tail: Tensor
    key_scale: Tensor
    key_minimum: Tensor
    value_scale: Tensor
    value_minimum: Tensor

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.keys.shape[0]

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return self.keys.shape[1]

    @property
    def slots(self) -> int:
        """Tokens behind the sinks that the layer can hold."""
        return self.values.shape[2]

    @property
    def sinks(self) -> int:
        """First tokens that are kept apart."""
        return self.sink_keys.shape[2]

    @property
    def groups(self) -> int:
        """Groups of quantised keys that the layer can hold."""
        return self.key_scale.shape[2]

    @property
    def value_groups(self) -> int:
        """Scales that a value has."""
        return self.value_scale.shape[3]

    @property
    def value_group(self) -> int:
        """Channels that share a value's scale."""
        return self.sink_values.shape[3] // self.value_groups

    def slot(self, tokens: Tensor) -> Tensor:
        """Where tokens (absolute positions, behind the sinks) lie among `values`."""
        return (tokens - self.sinks) % max(self.slots, 1)

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of the fields."""
        return [getattr(self, f.name) for f in fields(self)[3:]]

    def layout(self) -> list[int]:
        """The numbers, in the order of the fields."""
        return [self.bits, self.group, self.window]

    @classmethod
    def of(cls, tensors: list[Tensor], layout: list[int]) -> Self:
        """The cache of `tensors()` and `layout()`: how it passes through an operator."""
        bits, group, window = layout
        return cls(bits, group, window, *tensors)


class KVCache:
    """The caches of all layers, and how many tokens they hold.

    That number is kept twice: on the device, where kernels read it, so that a CUDA graph of a step
    can be replayed at every position; and on the host, which never asks the device for it.

    Args:
        run: model, cache settings, batch, and the context that must fit.
        device: where the tensors live.

    Attributes:
        layers: each layer's cache.
        context: tokens that fit.
        length: tokens held, which is the absolute position of the next one.
        position: the same number on the device, int32 [1].
    """

    def __init__(self, run: RunConfig, device: torch.device) -> None:
        with label(KV_CACHE):
            self.layers = [
                _allocate(run, run.model.window_of(i), device)
                for i in range(run.model.num_hidden_layers)
            ]
        self.context, self.length = run.context, 0
        self.position = torch.zeros(1, dtype=torch.int32, device=device)

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has been given."""
        self.length += tokens
        self.position.add_(tokens)

    def seek(self, length: int) -> None:
        """Go on behind the first `length` tokens; 0 empties the cache."""
        self.length = length
        self.position.fill_(length)

    def check_room(self, tokens: int) -> None:
        """Refuse tokens that would be written over others.

        Raises:
            ValueError: so many tokens more than the context.
        """
        if self.length + tokens > self.context:
            raise ValueError(
                f"got {tokens} tokens behind {self.length}, expected {self.context} in all; "
                "make the cache for a longer context"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all storages."""
        tensors = (tensor for layer in self.layers for tensor in layer.tensors())
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _allocate(run: RunConfig, window: int | None, device: torch.device) -> LayerCache:
    model, cache = run.model, run.cache
    bits = QUANTISED_KV_BITS.get(cache.dtype, 0)
    behind_sinks = max(0, run.context - cache.attention_sinks)
    slots = behind_sinks if window is None else min(window, behind_sinks)
    groups = min(-(-slots // cache.group_size), behind_sinks // cache.group_size) if bits else 0
    group, width = cache.group_size, model.head_dim
    key_rows, packed = (groups * group, width * bits // 8) if bits else (slots, width)
    value_groups = width // min(group, width)
    plain = getattr(torch, model.compute_dtype)
    stored = torch.uint8 if bits else _PLAIN_TYPES[cache.dtype]
    heads = (run.batch, model.num_key_value_heads)

    def empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((*heads, rows, columns), dtype=dtype, device=device)

    return LayerCache(
        bits=bits,
        group=group,
        window=window or 0,
        keys=empty(key_rows, packed, stored),
        values=empty(slots, packed, stored),
        sink_keys=empty(cache.attention_sinks, width, plain),
        sink_values=empty(cache.attention_sinks, width, plain),
        tail=empty(group if bits else 0, width, plain),
        key_scale=empty(groups, width, torch.float16),
        key_minimum=empty(groups, width, torch.float16),
        value_scale=empty(slots if bits else 0, value_groups, torch.float16),
        value_minimum=empty(slots if bits else 0, value_groups, torch.float16),
    )
