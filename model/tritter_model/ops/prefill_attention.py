"""Attention of a chunk of new tokens over the cache and over themselves.

The chunk's own keys and values are used in full precision; they are quantised when they enter the
cache. So a chunk first attends and is then appended: its tokens may take the place of some that its
first ones still see.

The kernel needs scratch that the reference does not, over a cache that is not in the activations'
type: one block of history, expanded, and the running output in float32. The wrapper allocates it.

Shapes: T = batch * C new tokens; A query heads, G key-value heads, D their width; `qkv` is
[T, A + 2G, D] with queries and keys already rotated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops import cache_history
from tritter_model.ops.checks import expect_contiguous, expect_heads
from tritter_model.ops.flash import (
    Tile,
    attend,
    columns_of,
    load_rows,
    nothing_yet,
    scale_of,
    store_rows,
    tile,
)
from tritter_model.ops.history_block import expand_history
from tritter_model.ops.jit import capability, jit
from tritter_model.ops.registry import operator, scratch

if TYPE_CHECKING:
    import triton.language as tl

HISTORY_BLOCK = 8192
EVERYTHING = 1 << 30
"""The window of a query that sees all."""


def prefill_attention(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> Tensor:
    """Attend to the cached tokens before `position` and to the new tokens: [T, A * D].

    Args:
        qkv: the new tokens' queries, keys and values.
        cache: this layer's cache, which holds the tokens before `position`.
        position: absolute position of the first new token; it decides what is launched.
        heads: A.
    """
    out = qkv.new_empty((qkv.shape[0], heads * qkv.shape[2]))
    temporary = _history_scratch(qkv, cache, position, heads)
    _prefill_attention(qkv, cache.tensors(), cache.layout(), position, heads, temporary, out)
    return out


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
    cache_history.attend(qkv, LayerCache.of(cache, layout), position, heads, out)


@_prefill_attention.kernel
def _launch(
    qkv: Tensor, cache: list[Tensor], layout: list[int], position: int, heads: int,
    temporary: list[Tensor], out: Tensor,
) -> None:  # fmt: skip
    layer = LayerCache.of(cache, layout)
    expect_contiguous("new tokens", qkv)
    expect_heads(layer.batch, heads)
    for tensor in cache:
        expect_contiguous("a tensor of the cache", tensor)
    new, seen = _New(qkv, layer, position, heads, out), _visible_history(layer, position)
    if temporary:
        _attend_by_blocks(new, seen, temporary)
    else:
        offset = (seen.start - layer.sinks) % max(layer.slots, 1)
        _attend(new, _History(layer.keys, layer.values, seen, offset), None, _Turn(True, True))


class _New(NamedTuple):
    """A chunk of new tokens: the operator's arguments."""

    qkv: Tensor
    cache: LayerCache
    position: int
    heads: int
    out: Tensor


class _History(NamedTuple):
    """Cached tokens that products can take: rows of a ring [B, G, rows, D], from `offset` on."""

    keys: Tensor
    values: Tensor
    tokens: range
    offset: int


class _Turn(NamedTuple):
    """Which of the blocks of history a launch takes; the first brings the sinks and the chunk."""

    first: bool
    last: bool


def _visible_history(cache: LayerCache, position: int) -> range:
    """Tokens behind the sinks that the chunk's first query sees of the cache."""
    first = max(cache.sinks, position - cache.window + 1) if cache.window else cache.sinks
    return range(first, max(first, position))


def _attend_by_blocks(new: _New, seen: range, temporary: list[Tensor]) -> None:
    """Expand a block of history, attend to it, and so on; between them the output runs on."""
    block, *state = temporary
    rows = max(block.shape[3], 1)
    parts = [seen[i : i + rows] for i in range(0, len(seen), rows)] or [seen]
    for number, tokens in enumerate(parts):
        if tokens:
            expand_history(new.cache, tokens, new.position, block)
        turn = _Turn(number == 0, number == len(parts) - 1)
        _attend(new, _History(block[0], block[1], tokens, 0), state, turn)


def _attend(new: _New, history: _History, state: list[Tensor] | None, turn: _Turn) -> None:
    cache, blocks = new.cache, prefill_tile(new.qkv)
    tokens, width = new.qkv.shape[0] // cache.batch, new.qkv.shape[2]
    past = (history.keys, history.values) if history.tokens else (new.qkv, new.qkv)
    state = None if turn.first and turn.last else state
    _prefill_kernel[(-(-tokens // blocks.rows), cache.batch * new.heads)](
        new.qkv, *past, cache.sink_keys, cache.sink_values, *(state or (None, None)), new.out,
        tokens, new.heads, cache.kv_heads, new.position,
        history.tokens.start, len(history.tokens), history.offset, history.keys.shape[2],
        cache.sinks, cache.window or EVERYTHING, EVERYTHING, scale_of(width),
        FIRST=turn.first, LAST=turn.last,
        **columns_of(width), **blocks.options(),
    )  # fmt: skip


def prefill_tile(q: Tensor) -> Tile:
    """Queries that a program carries, and the keys of a block."""
    others = Tile(128, 32, 8, 3) if capability() == 120 else Tile(64, 32, 4, 3)
    return tile(q, Tile(128, 128, 8, 3), others, Tile(64, 32, 8, 2))


@jit(do_not_specialize=("position", "past", "count", "offset", "slots"))
def _prefill_kernel(
    qkv, keys, values, sink_keys, sink_values, mixed_state, sums_state, out,
    tokens, heads, kv_heads, position, past, count, offset, slots, sinks, window, everything, scale,
    FIRST: tl.constexpr, LAST: tl.constexpr,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program takes a block of the chunk's queries of one head, over one block of history.

    The history begins at the absolute position `past`.

    qkv: float [T, A + 2G, D]; all others of its type but for the states: keys and values
    [B, G, slots, D], sink_keys and sink_values [B, G, sinks, D], out [T, A * D]. mixed_state:
    float32 [T, A, D], sums_state: float32 [2, T, A]; both None if one launch takes all blocks.
    """
    first = tl.program_id(0) * ROWS
    last = tl.minimum(first + ROWS, tokens) - 1
    head, sequence = tl.program_id(1) % heads, tl.program_id(1) // heads
    kv_head = head // (heads // kv_heads)
    ring = (sequence * kv_heads + kv_head).to(tl.int64)
    base, stride = sequence.to(tl.int64) * tokens, (heads + 2 * kv_heads) * WIDTH
    row = first + tl.arange(0, ROWS)
    held = row < tokens
    queries = qkv + base * stride + head * WIDTH
    queries = load_rows(queries, first, stride, held, ROWS, True, WIDTH, COLUMNS)
    best, total, mixed = nothing_yet(ROWS, COLUMNS)
    at = (base * heads + head) * WIDTH
    sums = (base + row) * heads + head
    running = tl.num_programs(1).to(tl.int64) * tokens
    if FIRST:
        start = ring * sinks * WIDTH
        best, total, mixed = attend(
            best, total, mixed, queries, row, first, last, sink_keys + start, sink_values + start,
            WIDTH, WIDTH, tl.minimum(sinks, position), everything, 0, scale,
            False, 16, WIDTH, COLUMNS,
        )  # fmt: skip
        own = qkv + base * stride + (heads + kv_head) * WIDTH
        best, total, mixed = attend(
            best, total, mixed, queries, row, first, last, own, own + kv_heads * WIDTH,
            stride, stride, tokens, window, tl.maximum(sinks - position, 0), scale,
            True, KEYS, WIDTH, COLUMNS,
        )  # fmt: skip
    else:
        mixed = load_rows(mixed_state + at, first, heads * WIDTH, held, ROWS, True, WIDTH, COLUMNS)
        best = tl.load(sums_state + sums, mask=held, other=0)
        total = tl.load(sums_state + running + sums, mask=held, other=1)
    before_end = tl.minimum(count, slots - offset)
    for part in range(0, tl.where(before_end < count, 2, tl.where(count > 0, 1, 0))):
        start = ring * slots + tl.where(part == 0, offset, 0)
        ago = position - past - part * before_end
        best, total, mixed = attend(
            best, total, mixed, queries, row + ago, first + ago, last + ago,
            keys + start * WIDTH, values + start * WIDTH, WIDTH, WIDTH,
            tl.where(part == 0, before_end, count - before_end), window, 0, scale,
            False, KEYS, WIDTH, COLUMNS,
        )  # fmt: skip
    if LAST:
        mixed = mixed / tl.where(held, total, 1.0)[:, None]
        store_rows(out + at, first, heads * WIDTH, held, mixed, ROWS, WIDTH, COLUMNS)
    else:
        store_rows(mixed_state + at, first, heads * WIDTH, held, mixed, ROWS, WIDTH, COLUMNS)
        tl.store(sums_state + sums, best, mask=held)
        tl.store(sums_state + running + sums, total, mask=held)
