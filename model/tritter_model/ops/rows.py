"""Rows of activations in int8, as ternary weights take them.

Shapes: T tokens, K their width. Values are rounded to the activations' type before they are
quantised, so that an operator fused with this one gives the bits of the two steps one after the
other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.dependent import dependent, wait_for_the_launch_ahead
from tritter_model.ops.jit import block, interpreted, jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl


WIDEST_ROW = 65_536


class QuantisedRows(NamedTuple):
    """int8 activations: a row's values are `codes * scale`; `total` is the sum of its codes.

    The sum lets a kernel that multiplies by the weight codes {0, 1, 2} take the offset of one off
    again without reading the activations twice.
    """

    codes: Tensor  # int8 [T, K]
    scale: Tensor  # float32 [T]
    total: Tensor  # int32 [T]

    @classmethod
    def empty(cls, x: Tensor, width: int) -> QuantisedRows:
        """Room for rows of this width, as many as `x` has."""
        return cls(
            x.new_empty((x.shape[0], width), dtype=torch.int8),
            x.new_empty(x.shape[0], dtype=torch.float32),
            x.new_empty(x.shape[0], dtype=torch.int32),
        )


def quantise_rows(x_TK: Tensor) -> QuantisedRows:
    """Quantise each row to int8 by its largest magnitude (BitNet b1.58's activations)."""
    expect("rows", x_TK, FLOATS, -1, -1)
    rows = QuantisedRows.empty(x_TK, x_TK.shape[1])
    quantise_into(x_TK, *rows)
    return rows


@operator("quantise_rows(Tensor x, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()")
def quantise_into(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    """Fill the parts of quantised rows."""
    largest = x.abs().amax(-1).float().clamp_(min=1e-5)
    most = torch.full_like(largest, 127)  # CUDA would multiply by the reciprocal of a number
    torch.div(largest, most, out=scale)
    codes.copy_((x.float() * (largest.reciprocal() * 127)[:, None]).round_())
    total.copy_(codes.sum(-1, dtype=torch.int32))


@quantise_into.kernel
def _launch(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    expect_adjacent("rows", x)
    _quantise_kernel[(x.shape[0],)](
        x, x.stride(0), codes, scale, total, x.shape[1],
        PTX=not interpreted(), **whole_rows(x.shape[1]), **dependent(),
    )  # fmt: skip


def whole_rows(width: int) -> dict[str, int]:
    """How to launch a kernel whose programs each hold a whole row.

    Products and sums are not contracted, so that an operator gives the same bits fused or not.

    Raises:
        ValueError: rows too wide to be held.
    """
    if width > WIDEST_ROW:
        raise ValueError(f"got rows {width} wide; the kernel takes at most {WIDEST_ROW}")
    columns = max(block(width), 128)
    return {
        "BLOCK": columns,
        "num_warps": min(max(columns // 512, 1), 16),
        "enable_fp_fusion": False,
    }


@jit
def _quantise_kernel(
    x, stride, codes, scale, total, width,
    BLOCK: tl.constexpr, PTX: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A program takes a row.

    x: float [T, K], elements adjacent. codes: int8 [T, K]. scale: float32 and total: int32 [T].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    wait_for_the_launch_ahead(DEPENDENT)
    value = tl.load(x + row * stride + column, mask=column < width, other=0)
    store_quantised(value, row, column, width, codes, scale, total, PTX)


@jit
def store_quantised(value, row, column, width, codes, scale, total, PTX: tl.constexpr):
    """Quantise one row of values, which are zero beyond its width, and write it."""
    wide = value.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(wide), 0), 1e-5)
    code = round_to_even(wide * (tl.div_rn(1.0, largest) * 127.0), PTX)
    tl.store(scale + row, tl.div_rn(largest, 127.0))
    tl.store(codes + row * width + column, code.to(tl.int8), mask=column < width)
    tl.store(total + row, tl.sum(code, 0))


@jit
def sum_of_squares(x, BLOCK: tl.constexpr, PTX: tl.constexpr):
    """The sum of the squares of BLOCK float32 numbers, in one order."""
    return sum_in_pairs(product(x, x, PTX), BLOCK)


@jit
def sum_in_pairs(x, BLOCK: tl.constexpr):
    """The sum of BLOCK float32 numbers: neighbours first, then neighbouring sums, and so on.

    Every step adds two numbers, so the order is the program's. `tl.sum` over the whole row adds up
    what a thread holds first, and how much that is depends on the types that the kernel stores.
    """
    for step in tl.static_range(31):
        if BLOCK >> step > 2:
            x = tl.sum(tl.reshape(x, (BLOCK >> (step + 1), 2)), 1)
    return tl.sum(x, 0)


@jit
def product(a, b, PTX: tl.constexpr):
    """a * b in float32, rounded before anything is added to it.

    `enable_fp_fusion=False` is not enough for compute capability 12.0: there the compiler pairs
    products that lie side by side, and ptxas contracts pairs all the same. It leaves given PTX.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    return a * b


@jit
def round_to_even(x, PTX: tl.constexpr):
    """Round float32 values below 2**22 in magnitude to int32, halves to the even one.

    The interpreter, which knows no PTX, adds and subtracts 1.5 * 2**23, above which no fraction
    has a bit left. A compiler might contract that with the product before it.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    return ((x + 12582912.0) - 12582912.0).to(tl.int32)
