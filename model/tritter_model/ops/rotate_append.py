"""A decode step's QK-norm, RoPE and append in one launch.

One new token a sequence may be put into the cache before it attends, as nothing that it sees is
written over: the ring's place that it takes held the token that is just out of its window; a group
that it completes still waits in the tail, where decode attention reads it; and its own key and
value are taken from the projection. A chunk of several tokens attends first.

Shapes: B sequences of one token; A query heads, G key-value heads, D their width; `qkv` is
[B, A + 2G, D].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops import rotary
from tritter_model.ops.angles import cos_and_sin_of
from tritter_model.ops.append import (
    check_new_tokens,
    fill,
    token_form,
    token_tensors,
)
from tritter_model.ops.cache_writes import complete_group, put_tokens
from tritter_model.ops.checks import expect_adjacent
from tritter_model.ops.dependent import dependent, wait_for_the_launch_ahead
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rotary import Heads, check_angles, check_heads, head_tile, rotate_heads

if TYPE_CHECKING:
    import triton.language as tl


def rotate_append_(
    qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor, cache: LayerCache,
    angles: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Normalise and rotate one token of each sequence in place, and put it into the cache.

    Args:
        qkv: [B, A + 2G, D].
        norms: [2, D], the weights of the query norm and the key norm; None: no QK-norm.
        heads: the split of `qkv`.
        position: int32 [1], absolute position of the new tokens.
        cache: this layer's cache, which holds the tokens before `position`.
        angles: of the position, from `rotary_angles`; None: they are computed here.

    Raises:
        ValueError: there are not as many tokens as sequences, or they do not fit the cache.
    """
    check_heads(qkv, norms, heads)
    check_new_tokens(qkv, cache, position, heads.heads)
    if qkv.shape[0] != cache.batch:
        raise ValueError(
            f"got {qkv.shape[0]} tokens for {cache.batch} sequences, expected one of each;"
            " a chunk attends before it is appended"
        )
    check_angles(angles, 1, qkv.shape[2])
    _rotate_append(
        qkv, norms, position, angles, heads.heads, heads.theta, heads.eps, cache.layout(),
        cache.tensors(),
    )  # fmt: skip
    return qkv


@operator(
    "rotate_append(Tensor(a!) qkv, Tensor? norms, Tensor position, Tensor? angles, int heads,"
    " float theta, float eps, int[] layout, Tensor(b!)[] cache) -> ()"
)
def _rotate_append(
    qkv: Tensor, norms: Tensor | None, position: Tensor, angles: Tensor | None, heads: int,
    theta: float, eps: float, layout: list[int], tensors: list[Tensor],
) -> None:  # fmt: skip
    cache = LayerCache.of(tensors, layout)
    rotated = qkv[:, : heads + cache.kv_heads]
    rotary._rotate.reference(qkv, norms, position, angles, cache.batch, heads, theta, eps, rotated)
    fill(qkv, cache, int(position), heads)


@_rotate_append.kernel
def _launch(
    qkv: Tensor, norms: Tensor | None, position: Tensor, angles: Tensor | None, heads: int,
    theta: float, eps: float, layout: list[int], tensors: list[Tensor],
) -> None:  # fmt: skip
    cache = LayerCache.of(tensors, layout)
    expect_adjacent("the new tokens", qkv)
    tile, form = head_tile(qkv.shape[2], theta), token_form(cache)
    query_tiles = -(-heads // tile["HEADS"])
    _rotate_append_kernel[(query_tiles + cache.kv_heads, cache.batch)](
        qkv, norms, position, angles, *qkv.stride()[:2], *token_tensors(cache),
        cache.key_scale, cache.key_minimum, heads, cache.kv_heads, query_tiles, eps,
        cache.slots, cache.sinks, cache.groups, COLUMNS=form.pop("BLOCK"), **tile, **form,
        **dependent(),
    )  # fmt: skip


@jit
def _rotate_append_kernel(
    qkv, norms, position, angles, row_stride, head_stride, keys, values, sink_keys, sink_values,
    tail, value_scale, value_minimum, key_scale, key_minimum, heads, kv_heads, query_tiles, eps,
    slots, sinks, groups,
    HALF: tl.constexpr, EXPONENT: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    PTX: tl.constexpr, VALUE_GROUPS: tl.constexpr, LIMIT: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A program rotates a few query heads of one sequence, or takes one key-value head.

    qkv: float [B, A + 2G, D]. norms: float [2, D], or None. position: int32 [1]. angles: float32
    [1, 2, D/2], or None to compute them. The others are the tensors of `LayerCache`.
    """
    wait_for_the_launch_ahead(DEPENDENT)
    sequence, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    row, start = qkv + sequence * row_stride, tl.load(position)
    channel = tl.arange(0, BLOCK)
    cos, sin = cos_and_sin_of(angles, start, 0, channel, HALF, EXPONENT)
    kv_head = part - query_tiles
    first = tl.where(kv_head < 0, part * HEADS, heads + kv_head)
    end = tl.where(kv_head < 0, heads, heads + kv_head + 1)
    rotate_heads(
        row, row, head_stride, head_stride, norms, cos, sin, channel, first + tl.arange(0, HEADS),
        heads, end, eps, HALF,
    )  # fmt: skip
    if kv_head >= 0:
        tl.debug_barrier()  # the rotated key is read again, by other threads
        new_key = row + (heads + kv_head) * head_stride
        head = sequence * kv_heads + kv_head
        if BITS:
            complete_group(
                new_key, row_stride, start - sinks, 1, tl.maximum(start - sinks, 0) // GROUP, head,
                groups, tail, keys, key_scale, key_minimum, 32, WIDTH, COLUMNS, BITS, GROUP, PTX,
            )  # fmt: skip
        put_tokens(
            new_key, new_key + kv_heads * head_stride, row_stride, start, 0, 1, head, slots, sinks,
            keys, values, sink_keys, sink_values, tail, value_scale, value_minimum,
            1, WIDTH, COLUMNS, BITS, GROUP, PTX, VALUE_GROUPS, LIMIT,
        )  # fmt: skip
