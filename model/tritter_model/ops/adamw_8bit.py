"""A step of AdamW whose moments take 8 bits, and a float32 scale for each block of 256.

The first moment has 7 bits and a sign, the second is stored as its root in 8 bits, both in dynamic
codes. Linear codes lose what is small beside the largest of its block: a first moment below 1/254
of it is zero, and its parameter stands still. The root covers 8 decades of gradients where the
second moment itself would cover 4. A root is never stored as zero, by which a step would divide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.ops import adamw
from tritter_model.ops.adamw import expect_parameter, factors, new_moments, stepped
from tritter_model.ops.checks import expect
from tritter_model.ops.dynamic_codes import (
    SMALLEST,
    decode,
    decode_dynamic,
    encode,
    encode_dynamic,
    largest_value,
    zero_below,
)
from tritter_model.ops.jit import interpreted, jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import product

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 256
BLOCKS_A_PROGRAM = 8
FIRST_BITS, SECOND_BITS = 7, 8


class Moments(NamedTuple):
    """Both moments of a parameter of `size` elements, in `blocks` blocks of 256."""

    first: Tensor  # int8 [size], the code's sign that of the moment
    second: Tensor  # uint8 [size], of the root
    first_scale: Tensor  # float32 [blocks]
    second_scale: Tensor  # float32 [blocks]

    @classmethod
    def zero(cls, parameter: Tensor) -> Moments:
        """Before the first step."""
        size = parameter.numel()
        blocks = -(-size // BLOCK)
        shapes = ((torch.int8, size), (torch.uint8, size),
                  (torch.float32, blocks), (torch.float32, blocks))  # fmt: skip
        return cls(*(parameter.new_zeros(size, dtype=dtype) for dtype, size in shapes))


def adamw_8bit_(
    parameter: Tensor, grad: Tensor, moments: Moments, rates: list[float], steps: int
) -> None:
    """Step a parameter and its moments; rates and steps are those of `adamw_`.

    Raises:
        ValueError: shapes or types that do not fit, or tensors with gaps.
    """
    expect_parameter(parameter, grad)
    size = parameter.numel()
    expect("the first moment", moments.first, torch.int8, size)
    expect("the second moment", moments.second, torch.uint8, size)
    for scale in moments[2:]:
        expect("a moment's scales", scale, torch.float32, -(-size // BLOCK))
    _adamw_8bit(parameter, grad, *moments, factors(rates, steps))


@operator(
    "adamw_8bit(Tensor(a!) parameter, Tensor grad, Tensor(b!) first, Tensor(c!) second,"
    " Tensor(d!) first_scale, Tensor(e!) second_scale, float[] factors) -> ()"
)
def _adamw_8bit(
    parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor,
    first_scale: Tensor, second_scale: Tensor, factors: list[float],
) -> None:  # fmt: skip
    blocks = adamw.SLICE // BLOCK
    for i, (p, g, m8, v8) in enumerate(adamw.slices(parameter, grad, first, second)):
        scales = slice(i * blocks, (i + 1) * blocks)
        m = _by_block(decode(m8.int().abs(), FIRST_BITS) * m8.sign(), first_scale[scales])
        v = _by_block(decode(v8, SECOND_BITS), second_scale[scales]).square_()
        adamw.step(p, g.float(), m, v, factors)
        m8.copy_(_encoded(m, first_scale[scales], FIRST_BITS) * m.sign())
        v8.copy_(_encoded(v.sqrt_(), second_scale[scales], SECOND_BITS).clamp_(min=1))


def _by_block(codes: Tensor, scale: Tensor) -> Tensor:
    return codes * scale.repeat_interleave(BLOCK)[: codes.numel()]


def _encoded(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes of the magnitudes of a moment; fills the scales of its blocks."""
    padded = torch.nn.functional.pad(x.abs(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    torch.div(padded.amax(1).clamp_(min=SMALLEST), largest_value(bits), out=scale)
    return encode(padded * scale.reciprocal()[:, None], bits).view(-1)[: x.numel()]


@_adamw_8bit.kernel
def _launch(
    parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor,
    first_scale: Tensor, second_scale: Tensor, factors: list[float],
) -> None:  # fmt: skip
    blocks = first_scale.numel()
    _adamw_8bit_kernel[(-(-blocks // BLOCKS_A_PROGRAM),)](
        parameter, grad, first, second, first_scale, second_scale, parameter.numel(), blocks,
        *factors, BLOCKS=BLOCKS_A_PROGRAM, BLOCK=BLOCK,
        FIRST=FIRST_BITS, FIRST_ZERO=zero_below(FIRST_BITS), FIRST_LAST=largest_value(FIRST_BITS),
        SECOND=SECOND_BITS, SECOND_ZERO=zero_below(SECOND_BITS),
        SECOND_LAST=largest_value(SECOND_BITS), PTX=not interpreted(), enable_fp_fusion=False,
    )  # fmt: skip


@jit
def _adamw_8bit_kernel(
    parameter, grad, first, second, first_scale, second_scale, count, blocks,
    keep, size, toward, fade, fresh, unbiased, eps,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    FIRST: tl.constexpr, FIRST_ZERO: tl.constexpr, FIRST_LAST: tl.constexpr,
    SECOND: tl.constexpr, SECOND_ZERO: tl.constexpr, SECOND_LAST: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """A program steps whole blocks: it must know the largest of each to store it.

    parameter and grad: any float [count]. first: int8 and second: uint8 [count]. Both scales:
    float32 [blocks].
    """
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None]
    inside = at < count
    code = tl.load(first + at, mask=inside, other=0).to(tl.float32)
    scale = tl.load(first_scale + block, mask=block < blocks, other=0)[:, None]
    m = decode_dynamic(tl.abs(code), FIRST) * tl.where(code < 0, -scale, scale)
    code = tl.load(second + at, mask=inside, other=0).to(tl.float32)
    scale = tl.load(second_scale + block, mask=block < blocks, other=0)[:, None]
    root = decode_dynamic(code, SECOND) * scale
    g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
    m, v = new_moments(g, m, product(root, root, PTX), toward, fade, fresh, PTX)
    p = tl.load(parameter + at, mask=inside, other=0)
    p = stepped(p, m, v, keep, size, unbiased, eps, PTX)
    tl.store(parameter + at, p, mask=inside)
    code, scale = _encode_block(tl.abs(m), FIRST, FIRST_ZERO, FIRST_LAST)
    tl.store(first + at, tl.where(m < 0, -code, code).to(tl.int8), mask=inside)
    tl.store(first_scale + block, scale, mask=block < blocks)
    code, scale = _encode_block(tl.sqrt(v), SECOND, SECOND_ZERO, SECOND_LAST)
    tl.store(second + at, tl.maximum(code, 1.0).to(tl.uint8), mask=inside)
    tl.store(second_scale + block, scale, mask=block < blocks)


@jit
def _encode_block(magnitude, BITS: tl.constexpr, ZERO: tl.constexpr, LAST: tl.constexpr):
    """Codes of magnitudes, and the scale of each row of them."""
    scale = tl.maximum(tl.max(magnitude, 1), 1e-30) / LAST
    inverse = (1.0 / scale)[:, None]
    return encode_dynamic(magnitude * inverse, BITS, ZERO), scale
