"""New tokens' keys and values into the cache: quantised once, never moved.

Shapes: T = batch * C new tokens; A query heads, G key-value heads, D their width; `qkv` is
[T, A + 2G, D] with queries and keys already rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.registry import operator


def append(qkv: Tensor, cache: LayerCache, position: Tensor, heads: int) -> None:
    """Put the new tokens' keys and values, the last 2G heads of `qkv`, into the cache.

    Args:
        qkv: the new tokens' queries, keys and values.
        cache: this layer's cache, which holds the tokens before `position`.
        position: int32 [1], absolute position of the first new token.
        heads: A.
    """
    _append(qkv, position, heads, cache.layout(), cache.tensors())


@operator("append(Tensor qkv, Tensor position, int heads, int[] layout, Tensor(a!)[] cache) -> ()")
def _append(
    qkv: Tensor, position: Tensor, heads: int, layout: list[int], tensors: list[Tensor]
) -> None:
    fill(qkv, LayerCache.of(tensors, layout), int(position), heads)


def fill(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> None:
    """The reference of `append`."""
    new = qkv[:, heads:].unflatten(0, (cache.batch, -1)).transpose(1, 2)
    k, v = new.chunk(2, 1)
    sinks = max(0, min(cache.sinks - position, k.shape[2]))
    cache.sink_keys[:, :, position : position + sinks] = k[:, :, :sinks]
    cache.sink_values[:, :, position : position + sinks] = v[:, :, :sinks]
    _append_values(cache, v[:, :, sinks:], position + sinks)
    if cache.bits:
        _append_key_groups(cache, k[:, :, sinks:], position + sinks)
    else:
        slots, recent = _newest(cache, k[:, :, sinks:], position + sinks)
        cache.keys[:, :, slots] = _as_stored(recent, cache.keys.dtype)


def _newest(cache: LayerCache, x: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """The tokens of x that a ring of this size still holds at the end, and their slots."""
    recent = x[:, :, max(0, x.shape[2] - cache.slots) :]
    last = position + x.shape[2]
    tokens = torch.arange(last - recent.shape[2], last, device=x.device)
    return cache.slot(tokens), recent


def _append_values(cache: LayerCache, v: Tensor, position: int) -> None:
    slots, recent = _newest(cache, v, position)
    if not cache.bits:
        cache.values[:, :, slots] = _as_stored(recent, cache.values.dtype)
        return
    codes, scale, minimum = kv_codec.quantise_values(recent, cache.bits, cache.value_group)
    cache.values[:, :, slots] = codes
    cache.value_scale[:, :, slots] = scale
    cache.value_minimum[:, :, slots] = minimum


def _as_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a narrower type; beyond its largest number there is neither infinity nor NaN."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


def _append_key_groups(cache: LayerCache, k: Tensor, position: int) -> None:
    """Keys wait in the tail until their group is full; a full group is quantised once."""
    done = 0
    while done < k.shape[2]:
        group, offset = divmod(position + done - cache.sinks, cache.group)
        taken = min(cache.group - offset, k.shape[2] - done)
        cache.tail[:, :, offset : offset + taken] = k[:, :, done : done + taken]
        done += taken
        if offset + taken == cache.group:
            slot = group % cache.groups
            codes, scale, minimum = kv_codec.quantise_key_group(cache.tail, cache.bits)
            cache.keys[:, :, slot * cache.group : (slot + 1) * cache.group] = codes
            cache.key_scale[:, :, slot], cache.key_minimum[:, :, slot] = scale, minimum
