"""Random ternary weights, made packed: nothing of them is ever there in full precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.checks import expect, expect_contiguous
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 4096
SLICE = 1 << 20
"""Bytes that the reference takes at a time."""


def fill_packed(packed: Tensor, generator: torch.Generator, two_bit: bool) -> None:
    """Random ternary weights, in place; a half of 2-bit ones is zero, a third of 1.6-bit ones.

    Every byte is five valid ternary digits in the 1.6-bit format. In the 2-bit format a code may
    come out as 3, which is no weight; it becomes 1 (zero).

    Raises:
        ValueError: not contiguous rows of bytes.
    """
    expect("packed weights", packed, torch.uint8, -1, -1)
    expect_contiguous("packed weights", packed)
    packed.random_(0, 256, generator=generator)
    if two_bit:
        _without_threes(packed)


@operator("without_threes(Tensor(a!) packed) -> ()")
def _without_threes(packed: Tensor) -> None:
    for part in packed.view(-1).split(SLICE):
        threes = (part >> 1).bitwise_and_(part).bitwise_and_(0x55)
        part.sub_(threes, alpha=2)


@_without_threes.kernel
def _launch(packed: Tensor) -> None:
    count = packed.numel()
    _without_threes_kernel[(-(-count // BLOCK),)](packed, count, BLOCK=BLOCK)


@jit
def _without_threes_kernel(packed, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(packed + at, mask=at < count, other=0)
    threes = (codes >> 1) & codes & 0x55
    tl.store(packed + at, codes - (threes << 1), mask=at < count)
