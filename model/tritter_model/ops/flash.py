"""The parts that attention kernels share: a block of queries over a source of keys, block by block.

A source is a run of keys, and its queries are numbered along with it: a query's row less a key's
index is how far the key lies back. Of `count` keys a row sees those that are not ahead of it (where
attention is causal) and that lie less than `window` back or among the first `sinks`. Blocks of keys
that no row sees are never visited, those that every row sees take no mask.

Softmax is taken in float32, with exponentials of two: a row's state is the largest score so far
(times log2 e), the sum of exponentials, and the unnormalised output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.ops.jit import block, capability, jit

if TYPE_CHECKING:
    import triton.language as tl

LOG2_E = math.log2(math.e)
WIDEST_HEAD = 256


def scale_of(width: int) -> float:
    """Factor of a score, for exponentials of two: log2(e) / sqrt(D)."""
    return float(LOG2_E * width**-0.5)


def columns_of(width: int) -> dict[str, int]:
    """A head's width, and the power of two that its products take.

    Raises:
        ValueError: heads so wide that a block of them does not fit a multiprocessor.
    """
    if width > WIDEST_HEAD:
        raise ValueError(f"got heads {width} wide, expected at most {WIDEST_HEAD}")
    return {"WIDTH": width, "COLUMNS": max(16, block(width))}


class Tile(NamedTuple):
    """Queries and keys of a block, and a program's warps and stages of copies."""

    rows: int
    keys: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """What a launch takes."""
        return {
            "ROWS": self.rows, "KEYS": self.keys,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


def tile(q: Tensor, hopper: Tile, others: Tile, wide: Tile) -> Tile:
    """The tile for these queries: the largest whose registers are enough, as the compiler counts.

    Args:
        q: queries, [..., D].
        hopper: for compute capability 9.0, which multiplies from shared memory.
        others: for other cards, within the 99 KiB that compute capability 12.0 has.
        wide: for heads wider than 128.
    """
    if q.dtype == torch.float32:  # multiplied without tensor cores
        return Tile(16, 16, 8, 1)
    if q.shape[-1] > 128:
        return wide
    return hopper if capability() == 90 else others


def forward_tile(q: Tensor) -> Tile:
    """Queries that a program carries, and the keys of a block."""
    return tile(q, Tile(128, 128, 8, 3), Tile(128, 32, 8, 3), Tile(64, 32, 8, 2))


@jit
def load_rows(
    head, first, stride, held, ROWS: tl.constexpr, MASKED: tl.constexpr,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, across=1,
):  # fmt: skip
    """ROWS rows of a head, [ROWS, COLUMNS]; zeros beyond its width and, if MASKED, if not held."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place = head + (first + row).to(tl.int64)[:, None] * stride + column[None] * across
    if MASKED:
        return tl.load(place, mask=held[:, None] & (column < WIDTH)[None], other=0)
    if WIDTH < COLUMNS:
        return tl.load(place, mask=(column < WIDTH)[None], other=0)
    return tl.load(place)


@jit
def store_rows(
    head, first, stride, held, value, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write those rows of a head that are held, in the type of its memory."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place = head + (first + row).to(tl.int64)[:, None] * stride + column[None]
    inside = held[:, None] & (column < WIDTH)[None]
    tl.store(place, value.to(head.dtype.element_ty), mask=inside)


@jit
def visible(row, start, count, window, sinks, CAUSAL: tl.constexpr, KEYS: tl.constexpr):
    """Whether rows see the KEYS keys from `start` on, [rows, KEYS].

    Bounds are taken relative to the block, so that an element compares with a number of its row.
    """
    column = tl.arange(0, KEYS)[None]
    if CAUSAL:
        seen = column < tl.minimum(row + 1, count)[:, None] - start
    else:
        seen = column < count - start
    return seen & ((column > (row - window - start)[:, None]) | (column < sinks - start))


@jit
def spans(any_low, full_low, full_high, any_high, STEP: tl.constexpr):
    """The blocks from `begin` to `end` that are visited; those from `whole` to `rest` take no mask.

    `any_low` and `any_high` bound what some see, `full_low` and `full_high` what all see.
    """
    end = tl.cdiv(tl.maximum(any_high, 0), STEP)
    begin = tl.minimum(tl.maximum(any_low, 0) // STEP, end)
    whole = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(full_low, 0), STEP), begin), end)
    rest = tl.minimum(tl.maximum(tl.maximum(full_high, 0) // STEP, whole), end)
    return begin, whole, rest, end


@jit
def masked_block(number, before, begin, whole, rest):
    """The number-th block that takes a mask: `before` of them, then those around the whole ones."""
    behind = number - before
    edge = tl.where(behind < whole - begin, begin + behind, rest + behind - (whole - begin))
    return tl.where(behind < 0, number, edge)


@jit
def attend(
    best, total, mixed, q, row, first, last, keys, values, key_stride, value_stride,
    count, window, sinks, scale,
    CAUSAL: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Take a source's keys and values into the state of the rows `first` to `last`."""
    high = count
    if CAUSAL:
        high = tl.minimum(count, first + 1)
    farthest = count
    if CAUSAL:
        farthest = tl.minimum(count, last + 1)
    begin, whole, rest, end = spans(first - window + 1, last - window + 1, high, farthest, KEYS)
    for number in range(whole, rest):
        best, total, mixed = _block(
            best, total, mixed, q, row, number * KEYS, keys, values, key_stride, value_stride,
            count, window, sinks, scale, CAUSAL, False, KEYS, WIDTH, COLUMNS,
        )  # fmt: skip
    before = tl.minimum(tl.cdiv(tl.minimum(sinks, count), KEYS), begin)
    for number in range(0, before + whole - begin + end - rest):
        start = masked_block(number, before, begin, whole, rest) * KEYS
        best, total, mixed = _block(
            best, total, mixed, q, row, start, keys, values, key_stride, value_stride,
            count, window, sinks, scale, CAUSAL, True, KEYS, WIDTH, COLUMNS,
        )  # fmt: skip
    return best, total, mixed


@jit
def _block(
    best, total, mixed, q, row, start, keys, values, key_stride, value_stride,
    count, window, sinks, scale, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    held = tl.arange(0, KEYS) < count - start
    k = load_rows(keys, start, key_stride, held, KEYS, MASKED, WIDTH, COLUMNS)
    v = load_rows(values, start, value_stride, held, KEYS, MASKED, WIDTH, COLUMNS)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        seen = visible(row, start, count, window, sinks, CAUSAL, KEYS)
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(best - higher)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
    return higher, total * shrink + tl.sum(weights, 1), mixed


@jit
def nothing_yet(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The state of rows that have seen no key. Finite, so that a block without any leaves it."""
    best = tl.full((ROWS,), -1e30, tl.float32)
    return best, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
