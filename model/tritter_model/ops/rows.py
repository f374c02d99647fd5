"""Rows of activations in int8, as ternary weights take them.

Shapes: T tokens, K their width. Values are rounded to the activations' type before they are
quantised, so that an operator fused with this one gives the bits of the two steps one after the
other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tritter_model.ops.jit import Pointer, block, jit, rows_apart, take
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl


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
    rows = QuantisedRows.empty(x_TK, x_TK.shape[1])
    _quantise_rows(x_TK, *rows)
    return rows


@operator("quantise_rows(Tensor x, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()")
def _quantise_rows(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    largest = x.abs().amax(-1).float().clamp_(min=1e-5)
    torch.div(largest, 127, out=scale)
    codes.copy_((x.float() * (largest.reciprocal() * 127)[:, None]).round_())
    total.copy_(codes.sum(-1, dtype=torch.int32))


@_quantise_rows.kernel
def _launch(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    _quantise_kernel[(x.shape[0],)](
        rows_apart(x), x.stride(0), codes, scale, total, x.shape[1], **whole_rows(x.shape[1])
    )


def whole_rows(width: int) -> dict[str, int | bool]:
    """How to launch a kernel whose programs each hold a whole row.

    Sums of products are not contracted to fused multiply-adds: codes are then those of the
    reference, and the same whether an operator is fused or not.

    Raises:
        ValueError: rows too wide to be held.
    """
    take("rows", width <= 65_536, f"{width} wide", "at most 65,536 wide")
    columns = max(block(width), 128)
    return {
        "BLOCK": columns,
        "num_warps": min(max(columns // 512, 1), 16),
        "enable_fp_fusion": False,
    }


@jit
def _quantise_kernel(
    x: Pointer, stride: int, codes: Pointer, scale: Pointer, total: Pointer, width: int,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + column, mask=column < width, other=0)
    store_quantised(value.to(tl.float32), row, column, width, codes, scale, total)


@jit
def store_quantised(
    value: Pointer, row: Pointer, column: Pointer, width: int,
    codes: Pointer, scale: Pointer, total: Pointer,
) -> None:  # fmt: skip
    """Quantise one row of float32 values, zero beyond its width, and write it."""
    largest = tl.maximum(tl.max(tl.abs(value), 0), 1e-5)
    tl.store(scale + row, tl.div_rn(largest, 127.0))
    code = round_to_even(value * (tl.div_rn(1.0, largest) * 127.0)).to(tl.int32)
    tl.store(codes + row * width + column, code.to(tl.int8), mask=column < width)
    tl.store(total + row, tl.sum(code, 0))


@jit
def round_to_even(x: Pointer) -> Pointer:
    """Round float32 values below 2²² in magnitude to whole numbers, halves to the even one."""
    return (x + 12582912.0) - 12582912.0  # 1.5 * 2**23: above it no fraction has a bit left
