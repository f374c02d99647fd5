"""Layer normalisation of rows, without gradients: the vision tower's.

Shapes: T rows, W their width. Computed in float32, the result rounded to the rows' type. PyTorch's
own also returns each row's mean and deviation, which nothing needs here, and in types that differ
between devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_contiguous
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import whole_rows

if TYPE_CHECKING:
    import triton.language as tl


def layer_norm(x_TW: Tensor, weight_W: Tensor, bias_W: Tensor, eps: float) -> Tensor:
    """(x - mean) / deviation · weight + bias, row by row.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    expect("rows", x_TW, FLOATS, -1, -1)
    expect("the norm's weight", weight_W, FLOATS, x_TW.shape[1])
    expect("the norm's bias", bias_W, FLOATS, x_TW.shape[1])
    out = torch.empty_like(x_TW)
    _layer_norm(x_TW, weight_W, bias_W, eps, out)
    return out


@operator("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, Tensor(a!) out) -> ()")
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    wide = torch.nn.functional.layer_norm(
        x.float(), (x.shape[1],), weight.float(), bias.float(), eps
    )
    out.copy_(wide)


@_layer_norm.kernel
def _launch(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    expect_contiguous("rows", x)
    rows, width = x.shape
    _layer_norm_kernel[(rows,)](x, weight, bias, eps, out, width, **whole_rows(width))


@jit
def _layer_norm_kernel(x, weight, bias, eps, out, width, BLOCK: tl.constexpr):
    """A program takes a row. x and out: float [T, W]; weight and bias: any float [W]."""
    column = tl.arange(0, BLOCK)
    at, inside = tl.program_id(0).to(tl.int64) * width + column, column < width
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    apart = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
    unit = apart * tl.rsqrt(tl.sum(apart * apart, 0) / width + eps)
    gain = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + at, (unit * gain + shift).to(out.dtype.element_ty), mask=inside)
