"""Attention of new tokens over the cache and themselves, and their way into the cache.

The new tokens' own keys and values are used in full precision; they are quantised when they enter
the cache. So a chunk first attends, then is appended, and one new token is a chunk of one.

Shapes: T = batch * C new tokens; A query heads, G key-value heads, D their width; `qkv` is
[T, A + 2G, D] with queries and keys already rotated.

A kernel needs scratch that the reference does not: for a chunk over a cache that is not in the
activations' type, one block of history, expanded, and the running output in float32; for one
token, the partial outputs of the splits. The wrappers allocate it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.attention import REFERENCE_ROWS, Mask
from tritter_model.ops.registry import operator, scratch

HISTORY_BLOCK = 8192
SPLIT_TOKENS = 256


def cached_attention(
    qkv: Tensor, cache: LayerCache, position: int, heads: int, multiprocessors: int
) -> Tensor:
    """Attend to the cached tokens before `position` and to the new tokens: [T, A * D].

    Args:
        qkv: the new tokens' queries, keys and values.
        cache: this layer's cache, which holds the tokens before `position`.
        position: absolute position of the first new token.
        heads: A.
        multiprocessors: of the card; one token's attention is split so as to use them all.
    """
    out = qkv.new_empty((qkv.shape[0], heads * qkv.shape[2]))
    if qkv.shape[0] == cache.batch:
        temporary = _partial_outputs(qkv, cache, heads, multiprocessors)
        _decode_attention(qkv, cache.tensors(), cache.layout(), position, heads, temporary, out)
    else:
        temporary = _history_scratch(qkv, cache, position, heads)
        _prefill_attention(qkv, cache.tensors(), cache.layout(), position, heads, temporary, out)
    return out


def decode_splits(batch_kv_heads: int, slots: int, multiprocessors: int) -> int:
    """Parts of the cache that one token's attention reads side by side.

    Enough for two blocks a multiprocessor, but none below `SPLIT_TOKENS` tokens; and one more for
    the tail, the sinks and the new token.
    """
    wanted = -(-2 * multiprocessors // batch_kv_heads)
    return max(1, min(wanted, -(-slots // SPLIT_TOKENS))) + 1


def _partial_outputs(
    qkv: Tensor, cache: LayerCache, heads: int, multiprocessors: int
) -> list[Tensor]:
    splits = decode_splits(cache.batch * cache.kv_heads, cache.slots, multiprocessors)
    shape = (splits, qkv.shape[0], heads)
    return [
        scratch((*shape, qkv.shape[2]), qkv, torch.float32),
        scratch(shape, qkv, torch.float32),
    ]


def _history_scratch(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> list[Tensor]:
    if position == 0 or cache.keys.dtype == qkv.dtype:
        return []
    block = (2, cache.batch, cache.kv_heads, min(HISTORY_BLOCK, cache.slots), qkv.shape[2])
    rows = (qkv.shape[0], heads)
    return [
        scratch(block, qkv, qkv.dtype),
        scratch((*rows, qkv.shape[2]), qkv, torch.float32),
        scratch((2, *rows), qkv, torch.float32),
    ]


@operator(
    "prefill_attention(Tensor qkv, Tensor[] cache, int[] layout, int position, int heads,"
    " Tensor(a!)[] scratch, Tensor(b!) out) -> ()"
)
def _prefill_attention(
    qkv: Tensor, cache: list[Tensor], layout: list[int], position: int, heads: int,
    temporary: list[Tensor], out: Tensor,
) -> None:  # fmt: skip
    del temporary
    _attend(qkv, LayerCache.of(cache, layout), position, heads, out)


@operator(
    "decode_attention(Tensor qkv, Tensor[] cache, int[] layout, int position, int heads,"
    " Tensor(a!)[] partial, Tensor(b!) out) -> ()"
)
def _decode_attention(
    qkv: Tensor, cache: list[Tensor], layout: list[int], position: int, heads: int,
    partial: list[Tensor], out: Tensor,
) -> None:  # fmt: skip
    del partial
    _attend(qkv, LayerCache.of(cache, layout), position, heads, out)


def _attend(qkv: Tensor, cache: LayerCache, position: int, heads: int, out: Tensor) -> None:
    """The reference: expand what is visible, then softmax in float32, a block of rows at a time."""
    new = qkv.unflatten(0, (cache.batch, -1)).transpose(1, 2).float()
    q, k, v = new.split([heads, cache.kv_heads, cache.kv_heads], 1)
    positions, old_k, old_v = _history(cache, position)
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


def _history(cache: LayerCache, position: int) -> tuple[Tensor, Tensor, Tensor]:
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


def append(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> None:
    """Put the new tokens' keys and values, the last 2G heads of `qkv`, into the cache."""
    _append(qkv, position, heads, cache.layout(), cache.tensors())


@operator("append(Tensor qkv, int position, int heads, int[] layout, Tensor(a!)[] cache) -> ()")
def _append(
    qkv: Tensor, position: int, heads: int, layout: list[int], tensors: list[Tensor]
) -> None:
    cache = LayerCache.of(tensors, layout)
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
