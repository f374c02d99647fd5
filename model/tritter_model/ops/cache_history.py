"""What a token sees of the cache, expanded: what the kernels of attention are held against.

Keys and values are read back in float32, then softmax runs in float32, a block of rows at a time.

Shapes: T = batch * C new tokens; A query heads, G key-value heads, D their width; `qkv` is
[T, A + 2G, D] with queries and keys already rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.attention import REFERENCE_ROWS, Mask


def attend(qkv: Tensor, cache: LayerCache, position: int, heads: int, out: Tensor) -> None:
    """Attention of new tokens over the cached ones before `position`, and over themselves."""
    new = qkv.unflatten(0, (cache.batch, -1)).transpose(1, 2).float()
    q, k, v = new.split([heads, cache.kv_heads, cache.kv_heads], 1)
    positions, old_k, old_v = history(cache, position)
    here = torch.arange(position, position + q.shape[2], device=qkv.device)
    keys = torch.cat((old_k, k), 2)
    values = torch.cat((old_v, v), 2)
    visible = Mask(True, cache.window, cache.sinks).visible(here, torch.cat((positions, here)))
    grouped = q.unflatten(1, (cache.kv_heads, -1)) * q.shape[3] ** -0.5
    parts = []
    for first in range(0, q.shape[2], REFERENCE_ROWS):
        block = slice(first, first + REFERENCE_ROWS)
        scores = grouped[..., block, :] @ keys[:, :, None].transpose(-1, -2)
        scores.masked_fill_(~visible[block], float("-inf"))
        parts.append(scores.softmax(-1) @ values[:, :, None])
    mixed = torch.cat(parts, -2).flatten(1, 2).transpose(1, 2)
    out.copy_(mixed.reshape(out.shape))


def history(cache: LayerCache, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, keys and values (float32 [B, G, tokens, D]) that a token at `position` may see."""
    device = cache.keys.device
    sinks = min(cache.sinks, position)
    first = max(cache.sinks, position - cache.window + 1) if cache.window else cache.sinks
    tokens = torch.arange(first, max(first, position), device=device)
    keys = torch.cat((cache.sink_keys[:, :, :sinks].float(), _keys_of(cache, tokens, position)), 2)
    values = torch.cat((cache.sink_values[:, :, :sinks].float(), _values_of(cache, tokens)), 2)
    return torch.cat((torch.arange(sinks, device=device), tokens)), keys, values


def _keys_of(cache: LayerCache, tokens: Tensor, position: int) -> Tensor:
    if not cache.bits:
        return cache.keys[:, :, cache.slot(tokens)].float()
    index = tokens - cache.sinks
    complete = (position - cache.sinks) // cache.group * cache.group
    stored, waiting = index[index < complete], index[index >= complete]
    group = (stored // cache.group) % max(cache.groups, 1)
    packed = cache.keys[:, :, group * cache.group + stored % cache.group]
    scale, minimum = cache.key_scale[:, :, group], cache.key_minimum[:, :, group]
    old = kv_codec.dequantise_keys(packed, scale, minimum, cache.bits)
    return torch.cat((old, cache.tail[:, :, waiting % cache.group].float()), 2)


def _values_of(cache: LayerCache, tokens: Tensor) -> Tensor:
    slots = cache.slot(tokens)
    if not cache.bits:
        return cache.values[:, :, slots].float()
    scale, minimum = cache.value_scale[:, :, slots], cache.value_minimum[:, :, slots]
    return kv_codec.dequantise_values(cache.values[:, :, slots], scale, minimum, cache.bits)
