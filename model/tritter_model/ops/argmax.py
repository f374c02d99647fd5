"""The likeliest token of each row of logits.

PyTorch's own `argmax` takes memory inside on CUDA where the vocabulary is large.

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl


def argmax(logits_TV: Tensor) -> Tensor:
    """Index of the largest number of each row, int64 [T, 1]; the first of equals, NaN the largest.

    Raises:
        ValueError: no rows of a float type.
    """
    expect("logits", logits_TV, FLOATS, -1, -1)
    chosen = logits_TV.new_empty((logits_TV.shape[0], 1), dtype=torch.int64)
    _argmax(logits_TV, chosen)
    return chosen


@operator("argmax(Tensor logits, Tensor(a!) chosen) -> ()")
def _argmax(logits: Tensor, chosen: Tensor) -> None:
    torch.argmax(logits, -1, keepdim=True, out=chosen)


@_argmax.kernel
def _launch(logits: Tensor, chosen: Tensor) -> None:
    expect_adjacent("logits", logits)
    rows, vocabulary = logits.shape
    _argmax_kernel[(rows,)](logits, logits.stride(0), chosen, vocabulary, BLOCK=4096, num_warps=8)


@jit
def _argmax_kernel(logits, stride, chosen, vocabulary, BLOCK: tl.constexpr):
    """A program takes a row, with a largest number for each of its columns until the end.

    logits: float [T, V], elements adjacent. chosen: int64 [T].
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    largest, index = tl.full((BLOCK,), float("-inf"), tl.float32), lane
    for start in range(0, vocabulary, BLOCK):
        column = start + lane
        value = tl.load(
            logits + row * stride + column, mask=column < vocabulary, other=float("-inf")
        ).to(tl.float32)
        value = tl.where(value <= float("inf"), value, float("inf"))  # NaN fails the comparison
        index = tl.where(value > largest, column, index)
        largest = tl.maximum(largest, value)
    first = tl.min(tl.where(largest == tl.max(largest, 0), index, vocabulary), 0)
    tl.store(chosen + row, first.to(tl.int64))
