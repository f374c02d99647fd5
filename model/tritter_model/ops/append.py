"""New tokens' keys and values into the cache: quantised once, never moved.

The position is read on the device, and what is launched does not depend on it, so that a CUDA graph
of a decode step can be replayed at every position.

Shapes: T = batch * C new tokens; A query heads, G key-value heads, D their width; `qkv` is
[T, A + 2G, D] with queries and keys already rotated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.cache_writes import complete_group, put_tokens
from tritter_model.ops.checks import expect, expect_adjacent, expect_contiguous, expect_heads
from tritter_model.ops.jit import block, interpreted, jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl


def append(qkv: Tensor, cache: LayerCache, position: Tensor, heads: int) -> None:
    """Put the new tokens' keys and values, the last 2G heads of `qkv`, into the cache.

    Args:
        qkv: the new tokens' queries, keys and values.
        cache: this layer's cache, which holds the tokens before `position`.
        position: int32 [1], absolute position of the first new token.
        heads: A.
    """
    check_new_tokens(qkv, cache, position, heads)
    _append(qkv, position, heads, cache.layout(), cache.tensors())


def check_new_tokens(qkv: Tensor, cache: LayerCache, position: Tensor, heads: int) -> None:
    """Check that new tokens fit a cache.

    Raises:
        ValueError: they do not.
    """
    kind, width = cache.sink_keys.dtype, cache.sink_keys.shape[3]
    expect("the new tokens", qkv, kind, -1, heads + 2 * cache.kv_heads, width)
    expect("the position", position, torch.int32, 1)
    for tensor in cache.tensors():
        expect_contiguous("the cache", tensor)
    if qkv.shape[0] % cache.batch:
        raise ValueError(
            f"got {qkv.shape[0]} tokens for {cache.batch} sequences, expected as many of each"
        )


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
        cache.keys[:, :, slots] = kv_codec.narrowed(recent, cache.keys.dtype)


def _newest(cache: LayerCache, x: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """The tokens of x that a ring of this size still holds at the end, and their slots."""
    recent = x[:, :, max(0, x.shape[2] - cache.slots) :]
    last = position + x.shape[2]
    tokens = torch.arange(last - recent.shape[2], last, device=x.device)
    return cache.slot(tokens), recent


def _append_values(cache: LayerCache, v: Tensor, position: int) -> None:
    slots, recent = _newest(cache, v, position)
    if not cache.bits:
        cache.values[:, :, slots] = kv_codec.narrowed(recent, cache.values.dtype)
        return
    codes, scale, minimum = kv_codec.quantise_values(recent, cache.bits, cache.value_group)
    cache.values[:, :, slots] = codes
    cache.value_scale[:, :, slots] = scale
    cache.value_minimum[:, :, slots] = minimum


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


@_append.kernel
def _launch(
    qkv: Tensor, position: Tensor, heads: int, layout: list[int], tensors: list[Tensor]
) -> None:
    """Groups first: they read the tail, which the new tokens are then written over."""
    cache = LayerCache.of(tensors, layout)
    expect_adjacent("the new tokens", qkv)
    expect_heads(cache.batch, cache.kv_heads)
    tokens, kv_heads = qkv.shape[0] // cache.batch, cache.kv_heads
    sequence_heads, common = cache.batch * kv_heads, (qkv, position, *qkv.stride()[:2])
    if cache.bits:
        spanned = (tokens + cache.group - 2) // cache.group + 1  # at most, wherever they begin
        _groups_kernel[(spanned, sequence_heads)](
            *common, cache.tail, cache.keys, cache.key_scale, cache.key_minimum,
            tokens, heads, kv_heads, cache.sinks, cache.groups,
            TOKENS=32, num_warps=8, **key_form(cache),
        )  # fmt: skip
    _tokens_kernel[(-(-tokens // 8), sequence_heads)](
        *common, *token_tensors(cache), tokens, heads, kv_heads, cache.slots, cache.sinks,
        TOKENS=8, num_warps=4, **token_form(cache),
    )  # fmt: skip


def token_tensors(cache: LayerCache) -> tuple[Tensor, ...]:
    """What a token is written to; fp8 as its bits."""
    tensors = (
        cache.keys, cache.values, cache.sink_keys, cache.sink_values,
        cache.tail, cache.value_scale, cache.value_minimum,
    )  # fmt: skip
    if cache.keys.dtype == torch.float8_e4m3fn:
        return (cache.keys.view(torch.uint8), cache.values.view(torch.uint8), *tensors[2:])
    return tensors


def key_form(cache: LayerCache) -> dict[str, Any]:
    """What a kernel that quantises groups of keys is compiled for."""
    width, planes = cache.sink_keys.shape[3], 8 // cache.bits if cache.bits else 1
    return {
        "WIDTH": width,
        "BLOCK": max(block(width // planes), 16),
        "BITS": cache.bits,
        "GROUP": cache.group,
        "PTX": not interpreted(),
    }


def token_form(cache: LayerCache) -> dict[str, Any]:
    """What a kernel that writes tokens is compiled for."""
    limit = 0.0 if cache.bits else torch.finfo(cache.keys.dtype).max
    return {**key_form(cache), "VALUE_GROUPS": cache.value_groups, "LIMIT": limit}


@jit
def _groups_kernel(
    qkv, position, row_stride, head_stride, tail, keys, key_scale, key_minimum,
    tokens, heads, kv_heads, sinks, groups,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """A program quantises one group of one head's keys, where the new tokens complete it.

    qkv: float [T, A + 2G, D], a head's elements adjacent. position: int32 [1]. The others: as in
    `LayerCache`.
    """
    head = tl.program_id(1).to(tl.int64)
    start = tl.load(position) - sinks
    group = tl.maximum(start, 0) // GROUP + tl.program_id(0)
    new_keys = qkv + head // kv_heads * tokens * row_stride
    new_keys += (heads + head % kv_heads) * head_stride
    complete_group(
        new_keys, row_stride, start, tokens, group, head, groups, tail, keys, key_scale,
        key_minimum, TOKENS, WIDTH, BLOCK, BITS, GROUP, PTX,
    )  # fmt: skip


@jit
def _tokens_kernel(
    qkv, position, row_stride, head_stride, keys, values, sink_keys, sink_values, tail,
    value_scale, value_minimum, tokens, heads, kv_heads, slots, sinks,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, PTX: tl.constexpr, VALUE_GROUPS: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """A program puts a few tokens' keys and values of one head where they belong.

    qkv: float [T, A + 2G, D], a head's elements adjacent. position: int32 [1]. The others: as in
    `LayerCache`, fp8 as uint8.
    """
    head = tl.program_id(1).to(tl.int64)
    new_keys = qkv + head // kv_heads * tokens * row_stride
    new_keys += (heads + head % kv_heads) * head_stride
    put_tokens(
        new_keys, new_keys + kv_heads * head_stride, row_stride, tl.load(position),
        tl.program_id(0) * TOKENS, tokens, head, slots, sinks, keys, values, sink_keys, sink_values,
        tail, value_scale, value_minimum,
        TOKENS, WIDTH, BLOCK, BITS, GROUP, PTX, VALUE_GROUPS, LIMIT,
    )  # fmt: skip
