"""RMSNorm: quantised at once in inference, differentiable in training.

Shapes: T tokens, H hidden. Computed in float32, the result rounded to the activations' type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.dependent import dependent, wait_for_the_launch_ahead
from tritter_model.ops.jit import interpreted, jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import (
    QuantisedRows,
    quantise_into,
    store_quantised,
    sum_of_squares,
    whole_rows,
)

if TYPE_CHECKING:
    import triton.language as tl


def rms_norm_rows(x_TH: Tensor, weight_H: Tensor, eps: float) -> QuantisedRows:
    """RMSNorm and quantisation in one: the normalised row is never written."""
    expect("rows", x_TH, FLOATS, -1, -1)
    expect("the norm's weight", weight_H, FLOATS, x_TH.shape[1])
    rows = QuantisedRows.empty(x_TH, x_TH.shape[1])
    _rms_norm_rows(x_TH, weight_H, eps, *rows)
    return rows


@operator(
    "rms_norm_rows(Tensor x, Tensor weight, float eps,"
    " Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()"
)
def _rms_norm_rows(
    x: Tensor, weight: Tensor, eps: float, codes: Tensor, scale: Tensor, total: Tensor
) -> None:
    quantise_into(_normalised(x, weight, eps)[0], codes, scale, total)


@_rms_norm_rows.kernel
def _launch_rows(
    x: Tensor, weight: Tensor, eps: float, codes: Tensor, scale: Tensor, total: Tensor
) -> None:
    _launch_norm(x, None, weight, eps, None, QuantisedRows(codes, scale, total))


def add_rms_norm_rows(
    x_TH: Tensor, delta_TH: Tensor, weight_H: Tensor, eps: float
) -> QuantisedRows:
    """Add `delta` to x in place, then RMSNorm and quantisation of the sum: one pass over the rows.

    Args:
        x_TH: the residual stream; it becomes x + delta, rounded to its type.
        delta_TH: what a part of a layer adds to it, in the type of x.
        weight_H: the norm's weight.
        eps: added to the mean square.

    Returns:
        What `rms_norm_rows` makes of the sum, bit for bit.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    expect("rows", x_TH, FLOATS, -1, -1)
    expect("what is added to them", delta_TH, x_TH.dtype, *x_TH.shape)
    expect("the norm's weight", weight_H, FLOATS, x_TH.shape[1])
    rows = QuantisedRows.empty(x_TH, x_TH.shape[1])
    _add_rms_norm_rows(x_TH, delta_TH, weight_H, eps, *rows)
    return rows


@operator(
    "add_rms_norm_rows(Tensor(a!) x, Tensor delta, Tensor weight, float eps,"
    " Tensor(b!) codes, Tensor(c!) scale, Tensor(d!) total) -> ()"
)
def _add_rms_norm_rows(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float,
    codes: Tensor, scale: Tensor, total: Tensor,
) -> None:  # fmt: skip
    x.add_(delta)
    quantise_into(_normalised(x, weight, eps)[0], codes, scale, total)


@_add_rms_norm_rows.kernel
def _launch_add_rows(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float,
    codes: Tensor, scale: Tensor, total: Tensor,
) -> None:  # fmt: skip
    expect_adjacent("what is added to them", delta)
    _launch_norm(x, delta, weight, eps, None, QuantisedRows(codes, scale, total))


def _launch_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float,
    plain: tuple[Tensor, Tensor] | None, quantised: QuantisedRows | None,
) -> None:  # fmt: skip
    """Launch the norm's one kernel: its result goes to `plain`, with 1 / rms, or is quantised."""
    expect_adjacent("rows", x)
    out, rstd = plain or (None, None)
    _rms_norm_kernel[(x.shape[0],)](
        x, x.stride(0), delta, 0 if delta is None else delta.stride(0), weight, eps,
        out, 0 if out is None else out.stride(0), rstd, *(quantised or (None, None, None)),
        x.shape[1], PTX=not interpreted(), **whole_rows(x.shape[1]), **dependent(),
    )  # fmt: skip


@jit
def _rms_norm_kernel(
    x, stride, delta, delta_stride, weight, eps, out, out_stride, rstd, codes, scale, total, width,
    BLOCK: tl.constexpr, PTX: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A program takes a row. A pointer of None leaves out its step.

    x: float [T, H], elements adjacent. delta: as x, added to x in place. weight: any float [H].
    out: as x, and rstd: float32 [T]; or codes: int8 [T, H], scale: float32 [T], total: int32 [T].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    gain = tl.load(weight + column, mask=inside, other=0)
    wait_for_the_launch_ahead(DEPENDENT)
    value = tl.load(x + row * stride + column, mask=inside, other=0)
    gain = gain.to(value.dtype).to(tl.float32)
    if delta is not None:
        more = tl.load(delta + row * delta_stride + column, mask=inside, other=0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(value.dtype)
        tl.store(x + row * stride + column, value, mask=inside)
    wide = value.to(tl.float32)
    inverse = tl.rsqrt(sum_of_squares(wide, BLOCK, PTX) / width + eps)
    value = (wide * inverse * gain).to(value.dtype)
    if codes is not None:
        store_quantised(value, row, column, width, codes, scale, total, PTX)
    else:
        tl.store(out + row * out_stride + column, value, mask=inside)
        tl.store(rstd + row, inverse)


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight; differentiable, keeping x and one float32 a row."""
    expect("rows", x_TH, FLOATS, -1, -1)
    expect("the norm's weight", weight_H, FLOATS, x_TH.shape[1])
    out: Tensor = _RMSNorm.apply(x_TH, weight_H, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)
        _rms_norm(x, weight, eps, out, rstd)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        with label(GRADIENTS):
            grad_weight = torch.empty_like(weight)
        _rms_norm_backward(grads[0], x, weight, rstd, grad_x, grad_weight)
        return grad_x, grad_weight, None


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return (wide * rstd[:, None] * _in_type_of(x, weight)).to(x.dtype), rstd


def _in_type_of(x: Tensor, weight: Tensor) -> Tensor:
    """A master weight as inference stores it, so that training computes what inference will."""
    return weight.to(x.dtype).float()


@operator("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out, Tensor(b!) rstd) -> ()")
def _rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, rstd: Tensor) -> None:
    value, inverse = _normalised(x, weight, eps)
    out.copy_(value)
    rstd.copy_(inverse)


@_rms_norm.kernel
def _launch(x: Tensor, weight: Tensor, eps: float, out: Tensor, rstd: Tensor) -> None:
    expect_adjacent("the result", out)
    _launch_norm(x, None, weight, eps, (out, rstd), None)


@operator(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd,"
    " Tensor(a!) grad_x, Tensor(b!) grad_weight) -> ()"
)
def _rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, grad_x: Tensor, grad_weight: Tensor
) -> None:
    unit = x.float() * rstd[:, None]
    scaled = grad.float() * _in_type_of(x, weight)
    along = (scaled * unit).mean(-1, keepdim=True)
    grad_x.copy_((scaled - unit * along) * rstd[:, None])
    grad_weight.copy_((grad.float() * unit).sum(0))


@_rms_norm_backward.kernel
def _launch_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, grad_x: Tensor, grad_weight: Tensor
) -> None:
    expect_adjacent("rows", x)
    expect_adjacent("their gradient", grad_x)
    tokens, width = x.shape
    strides = (*grad.stride(), x.stride(0))
    _rms_norm_backward_kernel[(tokens,)](
        grad, x, weight, rstd, grad_x, *strides, grad_x.stride(0), width,
        **whole_rows(width),
    )  # fmt: skip
    _rms_norm_grad_weight_kernel[(-(-width // 32),)](
        grad, x, rstd, grad_weight, *strides, tokens, width, ROWS=64, COLUMNS=32
    )


@jit
def _rms_norm_backward_kernel(
    grad, x, weight, rstd, grad_x, row_stride, column_stride, x_stride, out_stride, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes a row.

    grad, x and grad_x: float [T, H], grad with any strides. weight: any float [H]. rstd: float32
    [T].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * x_stride + column, mask=inside, other=0)
    gain = tl.load(weight + column, mask=inside, other=0).to(value.dtype).to(tl.float32)
    slope = tl.load(grad + row * row_stride + column * column_stride, mask=inside, other=0)
    inverse = tl.load(rstd + row)
    unit, scaled = value.to(tl.float32) * inverse, slope.to(tl.float32) * gain
    along = tl.sum(scaled * unit, 0) / width
    result = ((scaled - unit * along) * inverse).to(value.dtype)
    tl.store(grad_x + row * out_stride + column, result, mask=inside)


@jit
def _rms_norm_grad_weight_kernel(
    grad, x, rstd, grad_weight, row_stride, column_stride, x_stride, tokens, width, ROWS:
    tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program sums a few columns over all tokens: always in the same order, without scratch.

    grad and x: float [T, H], grad with any strides. rstd: float32 [T]. grad_weight: any float [H].
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, tokens, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < tokens)[:, None] & (column < width)[None]
        slope = tl.load(
            grad + row[:, None] * row_stride + column[None] * column_stride, mask=inside, other=0
        )
        value = tl.load(x + row[:, None] * x_stride + column[None], mask=inside, other=0)
        inverse = tl.load(rstd + row, mask=row < tokens, other=0)
        sums += slope.to(tl.float32) * value.to(tl.float32) * inverse[:, None]
    total = tl.sum(sums, 0).to(grad_weight.dtype.element_ty)
    tl.store(grad_weight + column, total, mask=column < width)
