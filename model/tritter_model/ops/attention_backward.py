"""The gradients of attention over whole sequences.

A program sums the gradient of a block of queries over the keys that they see, another that of a
block of keys and values over the queries that see them, head by head of their group: always in the
same order, in float32, without atomics. Scores are computed again from the log-sum-exp.

Shapes are those of `attention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.ops.attention import Mask, parts
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.flash import (
    LOG2_E,
    Tile,
    columns_of,
    load_rows,
    masked_block,
    spans,
    store_rows,
    tile,
    visible,
)
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator, scratch
from tritter_model.ops.tuning import tuning

if TYPE_CHECKING:
    import triton.language as tl


class Attended(NamedTuple):
    """What attention took and gave."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


def attention_backward(
    grad: Tensor, past: Attended, batch: int, mask: Mask, grads: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Fill the gradients of queries, keys and values.

    Args:
        grad: gradient of the output, [T, A * D]; any strides.
        past: what `attention` took and gave.
        batch: number of sequences in T.
        mask: what each query saw.
        grads: where the gradients go, shaped as q, k and v.
    """
    q, k, v, out, lse = past
    expect("the output's gradient", grad, FLOATS, *out.shape)
    for name, one, like in zip(("queries", "keys", "values"), grads, (q, k, v), strict=True):
        expect(f"the gradient of the {name}", one, FLOATS, *like.shape)
    delta = scratch(lse.T.shape, lse, lse.dtype).T
    _attention_backward(grad, *past, batch, *mask, delta, *grads)


@operator(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
    " int batch, bool causal, int window, int sinks, Tensor(a!) delta,"
    " Tensor(b!) grad_q, Tensor(c!) grad_k, Tensor(d!) grad_v) -> ()"
)
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    batch: int, causal: bool, window: int, sinks: int,
    delta: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
) -> None:  # fmt: skip
    slopes = grad.view(q.shape).float()
    delta.copy_((slopes * out.view(q.shape).float()).sum(-1))
    wide_k, wide_v = (torch.zeros(k.shape, device=k.device) for _ in range(2))
    for part in parts(q, k, batch, Mask(causal, window, sinks)):
        weights = (part.scores(q, k) - lse[part.rows, part.heads].T[..., None]).exp_()
        slope = slopes[part.rows, part.heads].transpose(0, 1)
        wide_v[part.keys, part.kv_head] += (weights.transpose(1, 2) @ slope).sum(0)
        inner = slope @ v[part.keys, part.kv_head].float().T
        inner -= delta[part.rows, part.heads].T[..., None]
        inner *= weights * q.shape[2] ** -0.5
        grad_q[part.rows, part.heads] = (
            (inner @ k[part.keys, part.kv_head].float()).transpose(0, 1).to(grad_q.dtype)
        )
        queries = q[part.rows, part.heads].float().transpose(0, 1)
        wide_k[part.keys, part.kv_head] += (inner.transpose(1, 2) @ queries).sum(0)
    grad_k.copy_(wide_k)
    grad_v.copy_(wide_v)


@_attention_backward.kernel
def _launch(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    batch: int, causal: bool, window: int, sinks: int,
    delta: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
) -> None:  # fmt: skip
    for name, pair in (("queries", (q, grad_q)), ("keys", (k, grad_k)), ("values", (v, grad_v))):
        expect_adjacent(name, pair[0])
        expect_adjacent(f"the gradient of the {name}", pair[1])
    (tokens, heads, width), kv_heads = q.shape, k.shape[1]
    tokens //= batch
    strides = (
        *grad.view(q.shape).stride(), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *lse.stride(),
    )  # fmt: skip
    sizes = (tokens, heads, heads // kv_heads, window or tokens, sinks, width**-0.5)
    form = {"CAUSAL": causal, "LOG2_E": LOG2_E, **columns_of(width)}
    blocks = queries_tile(q)
    _attention_backward_queries_kernel[(-(-tokens // blocks.rows), batch * heads)](
        grad, q, k, v, out, lse, delta, grad_q, *strides, *grad_q.stride()[:2], *sizes,
        **form, **blocks.options(),
    )  # fmt: skip
    blocks = keys_tile(q)
    _attention_backward_keys_kernel[(-(-tokens // blocks.keys), batch * kv_heads)](
        grad, q, k, v, lse, delta, grad_k, grad_v, *strides, *grad_k.stride()[:2],
        *grad_v.stride()[:2], *sizes, **form, **blocks.options(),
    )  # fmt: skip


def queries_tile(q: Tensor) -> Tile:
    """Queries that a program sums over their keys, and the keys of a block."""
    stages = tuning().backward_stages
    return tile(q, Tile(128, 64, 8, stages), Tile(128, 32, 8, stages), Tile(64, 32, 8, 1))


def keys_tile(q: Tensor) -> Tile:
    """Keys that a program sums over the queries that see them, and the queries of a block."""
    stages = tuning().backward_stages
    return tile(q, Tile(32, 128, 8, stages), Tile(32, 64, 8, stages), Tile(32, 32, 8, 1))


@jit
def _attention_backward_queries_kernel(
    grad, q, k, v, out, lse, delta, grad_q,
    grad_row, grad_head, grad_column, q_row, q_head, k_row, k_head, v_row, v_head,
    lse_row, lse_head, grad_q_row, grad_q_head,
    tokens, heads, group, window, sinks, scale,
    CAUSAL: tl.constexpr, LOG2_E: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of queries, and delta: the output times its gradient, summed.

    grad: float [T, A * D], any strides. q, grad_q: float [T, A, D]. k, v: float [T, G, D]. out: as
    grad, contiguous. lse, delta: float32 [T, A], with the same strides.
    """
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    head = tl.program_id(1) % heads
    base = (tl.program_id(1) // heads).to(tl.int64) * tokens
    row = first + tl.arange(0, ROWS)
    last = tl.minimum(first + ROWS, tokens) - 1
    held = row < tokens
    queries = q + base * q_row + head * q_head
    queries = load_rows(queries, first, q_row, held, ROWS, True, WIDTH, COLUMNS)
    slopes = grad + base * grad_row + head * grad_head
    slopes = load_rows(slopes, first, grad_row, held, ROWS, True, WIDTH, COLUMNS, grad_column)
    outs = out + (base * heads + head) * WIDTH
    outs = load_rows(outs, first, heads * WIDTH, held, ROWS, True, WIDTH, COLUMNS)
    along = tl.sum(slopes.to(tl.float32) * outs.to(tl.float32), 1)
    place = base * lse_row + head * lse_head + row.to(tl.int64) * lse_row
    tl.store(delta + place, along, mask=held)
    level = tl.load(lse + place, mask=held, other=0) * LOG2_E
    keys = k + base * k_row + (head // group) * k_head
    values = v + base * v_row + (head // group) * v_head
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    high = tokens
    farthest = tokens
    if CAUSAL:
        high = first + 1
        farthest = last + 1
    begin, whole, rest, end = spans(first - window + 1, last - window + 1, high, farthest, KEYS)
    for number in range(whole, rest):
        sums = _add_to_queries(
            sums, queries, slopes, level, along, row, number * KEYS, keys, values, k_row, v_row,
            tokens, window, sinks, scale * LOG2_E, CAUSAL, False, KEYS, WIDTH, COLUMNS,
        )  # fmt: skip
    before = tl.minimum(tl.cdiv(tl.minimum(sinks, tokens), KEYS), begin)
    for number in range(0, before + whole - begin + end - rest):
        start = masked_block(number, before, begin, whole, rest) * KEYS
        sums = _add_to_queries(
            sums, queries, slopes, level, along, row, start, keys, values, k_row, v_row,
            tokens, window, sinks, scale * LOG2_E, CAUSAL, True, KEYS, WIDTH, COLUMNS,
        )  # fmt: skip
    target = grad_q + base * grad_q_row + head * grad_q_head
    store_rows(target, first, grad_q_row, held, sums * scale, ROWS, WIDTH, COLUMNS)


@jit
def _add_to_queries(
    sums, queries, slopes, level, along, row, start, keys, values, k_row, v_row,
    tokens, window, sinks, scale, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    held = tl.arange(0, KEYS) < tokens - start
    k = load_rows(keys, start, k_row, held, KEYS, MASKED, WIDTH, COLUMNS)
    v = load_rows(values, start, v_row, held, KEYS, MASKED, WIDTH, COLUMNS)
    scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
    weights = tl.exp2(scores - level[:, None])
    if MASKED:
        seen = visible(row, start, tokens, window, sinks, CAUSAL, KEYS)
        weights = tl.where(seen, weights, 0.0)
    inner = tl.dot(slopes, tl.trans(v), input_precision="ieee") - along[:, None]
    return tl.dot((weights * inner).to(k.dtype), k, sums, input_precision="ieee")


@jit
def _attention_backward_keys_kernel(
    grad, q, k, v, lse, delta, grad_k, grad_v,
    grad_row, grad_head, grad_column, q_row, q_head, k_row, k_head, v_row, v_head,
    lse_row, lse_head, grad_k_row, grad_k_head, grad_v_row, grad_v_head,
    tokens, heads, group, window, sinks, scale,
    CAUSAL: tl.constexpr, LOG2_E: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of keys and of its values.

    grad: float [T, A * D], any strides. q: float [T, A, D]. k, v, grad_k, grad_v: float [T, G, D].
    lse, delta: float32 [T, A], with the same strides.
    """
    first = tl.program_id(0) * KEYS
    kv_heads = heads // group
    kv_head = tl.program_id(1) % kv_heads
    base = (tl.program_id(1) // kv_heads).to(tl.int64) * tokens
    key = first + tl.arange(0, KEYS)
    last = tl.minimum(first + KEYS, tokens) - 1
    held = key < tokens
    keys = k + base * k_row + kv_head * k_head
    values = v + base * v_row + kv_head * v_head
    keys = load_rows(keys, first, k_row, held, KEYS, True, WIDTH, COLUMNS)
    values = load_rows(values, first, v_row, held, KEYS, True, WIDTH, COLUMNS)
    begin = first // ROWS if CAUSAL else 0
    end = tl.cdiv(tl.where(first < sinks, tokens, tl.minimum(tokens, last + window)), ROWS)
    sums_k = tl.zeros((KEYS, COLUMNS), tl.float32)
    sums_v = tl.zeros((KEYS, COLUMNS), tl.float32)
    for member in range(0, group):
        head = kv_head * group + member
        queries = q + base * q_row + head * q_head
        slopes = grad + base * grad_row + head * grad_head
        levels = lse + base * lse_row + head * lse_head
        alongs = delta + base * lse_row + head * lse_head
        for number in range(begin, end):  # all masked: a second loop would not fit the registers
            sums_k, sums_v = _add_to_keys(
                sums_k, sums_v, keys, values, key, number * ROWS, queries, slopes, levels, alongs,
                q_row, grad_row, grad_column, lse_row, tokens, window, sinks, scale,
                CAUSAL, LOG2_E, ROWS, WIDTH, COLUMNS,
            )  # fmt: skip
    target = grad_k + base * grad_k_row + kv_head * grad_k_head
    store_rows(target, first, grad_k_row, held, sums_k * scale, KEYS, WIDTH, COLUMNS)
    target = grad_v + base * grad_v_row + kv_head * grad_v_head
    store_rows(target, first, grad_v_row, held, sums_v, KEYS, WIDTH, COLUMNS)


@jit
def _add_to_keys(
    sums_k, sums_v, keys, values, key, start, queries, slopes, levels, alongs,
    q_row, grad_row, grad_column, lse_row, tokens, window, sinks, scale,
    CAUSAL: tl.constexpr, LOG2_E: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Scores stand on their side here, [KEYS, ROWS], so that their products need no turning."""
    held = tl.arange(0, ROWS) < tokens - start
    q = load_rows(queries, start, q_row, held, ROWS, True, WIDTH, COLUMNS)
    slope = load_rows(slopes, start, grad_row, held, ROWS, True, WIDTH, COLUMNS, grad_column)
    row = tl.arange(0, ROWS) * lse_row
    level = tl.load(levels + start * lse_row + row, mask=held, other=0) * LOG2_E
    along = tl.load(alongs + start * lse_row + row, mask=held, other=0)
    scores = tl.dot(keys, tl.trans(q), input_precision="ieee") * (scale * LOG2_E)
    weights = tl.exp2(scores - level[None])
    weights = tl.where(_seeing(key, start, window, sinks, CAUSAL, ROWS), weights, 0.0)
    sums_v = tl.dot(weights.to(slope.dtype), slope, sums_v, input_precision="ieee")
    inner = tl.dot(values, tl.trans(slope), input_precision="ieee") - along[None]
    return tl.dot((weights * inner).to(q.dtype), q, sums_k, input_precision="ieee"), sums_v


@jit
def _seeing(key, start, window, sinks, CAUSAL: tl.constexpr, ROWS: tl.constexpr):
    """Whether keys are seen by the ROWS rows from `start` on, [keys, ROWS]; `visible` turned."""
    row = tl.arange(0, ROWS)[None]
    seen = row < tl.where(key < sinks, 1 << 30, key + window - start)[:, None]
    if CAUSAL:
        seen = seen & (row >= (key - start)[:, None])
    return seen
