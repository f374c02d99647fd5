"""One transformer layer: grouped-query attention, then the MLP.

It runs in two ways: over whole sequences in training, and over a chunk of the prompt, or one token,
behind what its cache holds. What it no longer needs is let go by rebinding.

Shapes: T = batch * chunk tokens, sequence by sequence; H hidden, A query heads, G key-value heads,
D their width.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import make_linear
from tritter_model.config import ModelConfig
from tritter_model.kv_cache import LayerCache
from tritter_model.mlp import MLP
from tritter_model.norm import RMSNorm, norm_weight
from tritter_model.ops.append import append
from tritter_model.ops.attention import Mask
from tritter_model.ops.decode_attention import decode_attention
from tritter_model.ops.prefill_attention import prefill_attention
from tritter_model.ops.rotary import Heads, rotate_
from tritter_model.ops.rotate_append import rotate_append_
from tritter_model.ops.self_attention import self_attention


class Sequences(NamedTuple):
    """What a layer is given in training: whole sequences."""

    batch: int
    sinks: int


class Chunk(NamedTuple):
    """What a layer is given in inference: new tokens, behind those that its cache holds.

    `position` is that of the first new token on the device, `length` the same number on the host.
    """

    cache: LayerCache
    position: Tensor
    length: int
    multiprocessors: int


class Layer(nn.Module):
    """One transformer layer.

    Args:
        config: the architecture.
        index: which layer; decides the window.
        device: where the weights live.
        trainable: master weights that are trained, or weights as inference stores them.
    """

    def __init__(
        self, config: ModelConfig, index: int, device: torch.device, trainable: bool
    ) -> None:
        super().__init__()
        self.config, self.window = config, config.window_of(index) or 0
        linear = partial(make_linear, config=config, device=device, trainable=trainable)
        norm = partial(norm_weight, config=config, device=device, trainable=trainable)
        quantises = config.is_ternary and not trainable
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.input_norm = RMSNorm(norm((config.hidden_size,)), config.rms_norm_eps, quantises)
        self.qkv = linear(config.hidden_size, width + 2 * kv_width)
        self.qk_norms = norm((2, config.head_dim)) if config.qk_norm else None
        self.out = linear(width, config.hidden_size)
        self.mlp = MLP(config, device, trainable)

    def heads(self, batch: int) -> Heads:
        """How the fused projection's rows split."""
        c = self.config
        return Heads(
            batch, c.num_attention_heads, c.num_key_value_heads, c.rope_theta, c.rms_norm_eps
        )

    def project_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values, not yet rotated: [T, A + 2G, D]."""
        return self.qkv(self.input_norm(x)).unflatten(1, (-1, self.config.head_dim))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, work: Sequences | Chunk) -> Tensor:
        """[T, H]: a new tensor for whole sequences, x itself for a chunk."""
        return self._extend(x, work) if isinstance(work, Chunk) else self._train(x, *work)

    def _train(self, x: Tensor, batch: int, sinks: int) -> Tensor:
        mask = Mask(True, self.window, sinks)
        mixed = self_attention(self.project_qkv(x), self.qk_norms, self.heads(batch), mask)
        x = x + self.out(mixed)
        del mixed
        return x + self.mlp(x)  # type: ignore[no-any-return]

    def _extend(self, x: Tensor, chunk: Chunk) -> Tensor:
        mixed = self._attend(x, chunk)
        mixed = self.out(mixed)
        x.add_(mixed)
        del mixed
        return x.add_(self.mlp(x))

    def _attend(self, x: Tensor, chunk: Chunk) -> Tensor:
        """[T, A * D]: one token a sequence is decoded, more are a chunk of the prompt."""
        cache, position, length, multiprocessors = chunk
        heads = self.config.num_attention_heads
        qkv, split = self.project_qkv(x), self.heads(cache.batch)
        if qkv.shape[0] == cache.batch:
            rotate_append_(qkv, self.qk_norms, split, position, cache)
            return decode_attention(qkv, cache, position, length, heads, multiprocessors)
        rotate_(qkv, self.qk_norms, split, position)
        mixed = prefill_attention(qkv, cache, length, heads)
        append(qkv, cache, position, heads)
        return mixed
