"""The gradient of a weight: gradᵀ @ x, summed in float32 and written or added in the weight's type.

Shapes: T tokens, K inputs, N outputs.
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


def write_grad_weight(
    grad_TN: Tensor, x_TK: Tensor, row_scale_T: Tensor | None, out_NK: Tensor
) -> None:
    """Write gradᵀ @ (row_scale * x) to `out`.

    Args:
        grad_TN: gradient of the outputs; any strides.
        x_TK: what the weight multiplied: a float type, or int8.
        row_scale_T: float32 factor of each row of x, or None.
        out_NK: where the gradient goes, in any float type.
    """
    _checked(grad_TN, x_TK, row_scale_T, out_NK)
    _grad_weight(grad_TN, x_TK, row_scale_T, False, out_NK)


def add_grad_weight(
    grad_TN: Tensor, x_TK: Tensor, row_scale_T: Tensor | None, out_NK: Tensor
) -> None:
    """Add gradᵀ @ (row_scale * x) to `out`; the arguments are those of `write_grad_weight`."""
    _checked(grad_TN, x_TK, row_scale_T, out_NK)
    _grad_weight(grad_TN, x_TK, row_scale_T, True, out_NK)


def _checked(grad: Tensor, x: Tensor, row_scale: Tensor | None, out: Tensor) -> None:
    expect("the outputs' gradient", grad, FLOATS, x.shape[0], -1)
    expect("the inputs", x, (*FLOATS, torch.int8), -1, -1)
    expect("the weight's gradient", out, FLOATS, grad.shape[1], x.shape[1])
    if row_scale is not None:
        expect("the inputs' scale", row_scale, torch.float32, x.shape[0])


@operator("grad_weight(Tensor grad, Tensor x, Tensor? row_scale, bool add, Tensor(a!) out) -> ()")
def _grad_weight(grad: Tensor, x: Tensor, row_scale: Tensor | None, add: bool, out: Tensor) -> None:
    wide = grad.float() if row_scale is None else grad.float() * row_scale[:, None]
    product = wide.T @ x.float()
    out.copy_(out.float() + product if add else product)


@_grad_weight.kernel
def _launch(grad: Tensor, x: Tensor, row_scale: Tensor | None, add: bool, out: Tensor) -> None:
    for name, tensor in (("the inputs", x), ("the weight's gradient", out)):
        expect_adjacent(name, tensor)
    (tokens, outputs), inputs = grad.shape, x.shape[1]
    launch = product_tile(grad)
    tile = launch["TILE"]
    _linear_grad_weight_kernel[(-(-outputs // tile), -(-inputs // tile))](
        grad, x, row_scale, out, *grad.stride(), x.stride(0), out.stride(0),
        tokens, outputs, inputs, ADD=add, **launch,
    )  # fmt: skip


def product_tile(grad: Tensor) -> dict[str, int]:
    """The tile of a gradient's product, and how far a program goes along the sum at a time.

    float32 is multiplied without tensor cores, and in smaller tiles, so that none spills.
    """
    if grad.dtype == torch.float32:
        return {"TILE": 64, "STEP": 16, "num_warps": 4, "num_stages": 3}
    return {"TILE": 128, "STEP": 64, "num_warps": 8, "num_stages": 3}


@jit
def _linear_grad_weight_kernel(
    grad, x, row_scale, out, row_stride, column_stride, x_stride, out_stride,
    tokens, outputs, inputs, ADD: tl.constexpr, STEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program computes a tile over all tokens, in the order of the tokens.

    grad: float [T, N], any strides. x: float or int8 [T, K]. row_scale: float32 [T], or None. out:
    float [N, K].
    """
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.program_id(1) * TILE + tl.arange(0, TILE)
    sums = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, tokens, STEP):
        t = (start + tl.arange(0, STEP)).to(tl.int64)
        slope = tl.load(
            grad + t[:, None] * row_stride + n[None] * column_stride,
            mask=(t < tokens)[:, None] & (n < outputs)[None], other=0,
        )  # fmt: skip
        value = tl.load(
            x + t[:, None] * x_stride + k[None],
            mask=(t < tokens)[:, None] & (k < inputs)[None], other=0,
        )  # fmt: skip
        if row_scale is not None:
            factor = tl.load(row_scale + t, mask=t < tokens, other=0)[:, None]
            slope = (slope.to(tl.float32) * factor).to(slope.dtype)
        sums = tl.dot(tl.trans(slope), value.to(slope.dtype), sums, input_precision="ieee")
    at = out + n.to(tl.int64)[:, None] * out_stride + k[None]
    inside = (n < outputs)[:, None] & (k < inputs)[None]
    if ADD:
        sums += tl.load(at, mask=inside, other=0).to(tl.float32)
    tl.store(at, sums.to(out.dtype.element_ty), mask=inside)
