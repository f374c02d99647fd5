"""Attention over one whole sequence: training, and the vision tower.

Shapes: T = batch * S tokens, sequence by sequence; A query heads, G key-value heads (A a multiple
of G), D their width. Softmax in float32; what is kept for the backward pass is the output and one
float32 (the log of the sum of exponentials) a query and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_adjacent, expect_heads
from tritter_model.ops.flash import (
    LOG2_E,
    attend,
    columns_of,
    forward_tile,
    load_rows,
    nothing_yet,
    scale_of,
    store_rows,
)
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl

REFERENCE_ROWS = 512


class Mask(NamedTuple):
    """Which keys a query sees: those before it, within the window (0: all), and the sinks."""

    causal: bool = True
    window: int = 0
    sinks: int = 0

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether each query sees each key, [queries, keys], from absolute positions."""
        distance = queries[:, None] - keys[None]
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window:
            seen &= (distance < self.window) | (keys[None] < self.sinks)
        return seen


def attention(q: Tensor, k: Tensor, v: Tensor, batch: int, mask: Mask) -> tuple[Tensor, Tensor]:
    """Attention of each sequence over itself.

    Args:
        q: queries [T, A, D]; a head's elements are adjacent, heads and tokens may lie apart.
        k: keys [T, G, D], as the queries.
        v: values [T, G, D], as the queries.
        batch: number of sequences in T.
        mask: what each query sees.

    Returns:
        The output, contiguous [T, A * D], and its log-sum-exp, float32 [T, A], head by head.

    Raises:
        ValueError: tensors that do not fit each other.
    """
    (tokens, heads, width), kv_heads = q.shape, k.shape[1]
    expect("queries", q, FLOATS, -1, -1, -1)
    expect("keys", k, q.dtype, tokens, -1, width)
    expect("values", v, q.dtype, tokens, kv_heads, width)
    if heads % kv_heads or tokens % batch:
        raise ValueError(
            f"got {heads} query heads, {kv_heads} key-value heads and {tokens} tokens of {batch}"
            " sequences, expected a multiple of the key-value heads, and of the sequences"
        )
    out = q.new_empty((tokens, heads * width))
    lse = q.new_empty((heads, tokens), dtype=torch.float32).T
    _attention(q, k, v, batch, *mask, out, lse)
    return out, lse


@operator(
    "attention(Tensor q, Tensor k, Tensor v, int batch, bool causal, int window, int sinks,"
    " Tensor(a!) out, Tensor(b!) lse) -> ()"
)
def _attention(
    q: Tensor, k: Tensor, v: Tensor, batch: int, causal: bool, window: int, sinks: int,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    for part in parts(q, k, batch, Mask(causal, window, sinks)):
        scores = part.scores(q, k)
        normaliser = scores.logsumexp(-1)
        weights = (scores - normaliser[..., None]).exp_()
        value = weights @ v[part.keys, part.kv_head].float()
        out.view(q.shape)[part.rows, part.heads] = value.transpose(0, 1).to(out.dtype)
        lse[part.rows, part.heads] = normaliser.T


@dataclass(frozen=True)
class Part:
    """The queries of one group of heads and one block of rows, and the keys of their sequence."""

    rows: slice
    keys: slice
    heads: slice
    kv_head: int
    visible: Tensor

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """float32 [heads, rows, keys], scaled, minus infinity where a key is not visible."""
        queries = q[self.rows, self.heads].float().transpose(0, 1)
        scores = queries @ k[self.keys, self.kv_head].float().T * q.shape[2] ** -0.5
        masked: Tensor = scores.masked_fill(~self.visible, float("-inf"))
        return masked


def parts(q: Tensor, k: Tensor, batch: int, mask: Mask) -> list[Part]:
    """What the references take at a time."""
    tokens, group = q.shape[0] // batch, q.shape[1] // k.shape[1]
    positions = torch.arange(tokens, device=q.device)
    return [
        Part(
            rows=slice(start + first, start + min(first + REFERENCE_ROWS, tokens)),
            keys=slice(start, start + tokens),
            heads=slice(head * group, (head + 1) * group),
            kv_head=head,
            visible=mask.visible(positions[first : first + REFERENCE_ROWS], positions),
        )
        for start in range(0, q.shape[0], tokens)
        for first in range(0, tokens, REFERENCE_ROWS)
        for head in range(k.shape[1])
    ]


@_attention.kernel
def _launch(
    q: Tensor, k: Tensor, v: Tensor, batch: int, causal: bool, window: int, sinks: int,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    for name, tensor in (("queries", q), ("keys", k), ("values", v)):
        expect_adjacent(name, tensor)
    (tokens, heads, width), tile = q.shape, forward_tile(q)
    tokens //= batch
    expect_heads(batch, heads)
    _attention_kernel[(-(-tokens // tile.rows), batch * heads)](
        q, k, v, out, lse, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *lse.stride(),
        tokens, heads, heads // k.shape[1], window or tokens, sinks, scale_of(width),
        CAUSAL=causal, LOG2_E=LOG2_E, **columns_of(width), **tile.options(),
    )  # fmt: skip


@jit
def _attention_kernel(
    q, k, v, out, lse, q_row, q_head, k_row, k_head, v_row, v_head, lse_row, lse_head,
    tokens, heads, group, window, sinks, scale,
    CAUSAL: tl.constexpr, LOG2_E: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program takes a block of queries of one head; those that see most begin first.

    q: float [T, A, D]; k and v: its type, [T, G, D]; out: its type, [T, A * D]. lse: float32
    [T, A].
    """
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    head = tl.program_id(1) % heads
    begin = (tl.program_id(1) // heads).to(tl.int64) * tokens
    row = first + tl.arange(0, ROWS)
    held = row < tokens
    queries = q + begin * q_row + head * q_head
    queries = load_rows(queries, first, q_row, held, ROWS, True, WIDTH, COLUMNS)
    best, total, mixed = nothing_yet(ROWS, COLUMNS)
    best, total, mixed = attend(
        best, total, mixed, queries, row, first, tl.minimum(first + ROWS, tokens) - 1,
        k + begin * k_row + head // group * k_head, v + begin * v_row + head // group * v_head,
        k_row, v_row, tokens, window, sinks, scale, CAUSAL, KEYS, WIDTH, COLUMNS,
    )  # fmt: skip
    total = tl.where(held, total, 1.0)
    place = out + (begin * heads + head) * WIDTH
    mixed = mixed * (1.0 / total)[:, None]
    store_rows(place, first, heads * WIDTH, held, mixed, ROWS, WIDTH, COLUMNS)
    level = (best + tl.log2(total)) / LOG2_E
    tl.store(lse + begin * lse_row + head * lse_head + row.to(tl.int64) * lse_row, level, mask=held)
