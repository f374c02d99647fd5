"""The MLP's activation, relu(gate)² · up: quantised at once, or differentiable in training.

Shapes: T tokens, F intermediate; gate is the first half of each row of `gate_up`, up the second.
Computed in float32, the result rounded to the activations' type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.dependent import dependent, wait_for_the_launch_ahead
from tritter_model.ops.jit import interpreted, jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import QuantisedRows, quantise_into, store_quantised, whole_rows

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 1024


def gated_relu2_rows(gate_up_T2F: Tensor) -> QuantisedRows:
    """relu(gate)² · up, quantised."""
    _expect_halves(gate_up_T2F)
    rows = QuantisedRows.empty(gate_up_T2F, gate_up_T2F.shape[1] // 2)
    _gated_relu2_rows(gate_up_T2F, *rows)
    return rows


def _expect_halves(gate_up: Tensor) -> None:
    expect("gate and up", gate_up, FLOATS, -1, gate_up.shape[-1] // 2 * 2)


@operator("gated_relu2_rows(Tensor x, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()")
def _gated_relu2_rows(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    quantise_into(_value(x), codes, scale, total)


@_gated_relu2_rows.kernel
def _launch_rows(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    expect_adjacent("gate and up", x)
    width = codes.shape[1]
    _gate_rows_kernel[(x.shape[0],)](
        x, x.stride(0), codes, scale, total, width,
        PTX=not interpreted(), **whole_rows(width), **dependent(),
    )  # fmt: skip


@jit
def _gate(x, row, column, width):
    """relu(gate) and up of one row, in float32; `row` points to it."""
    gate = tl.load(x + row + column, mask=column < width, other=0).to(tl.float32)
    up = tl.load(x + row + width + column, mask=column < width, other=0).to(tl.float32)
    return tl.where(gate < 0, 0.0, gate), up


@jit
def _gate_rows_kernel(
    x, stride, codes, scale, total, width,
    BLOCK: tl.constexpr, PTX: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A program takes a row.

    x: float [T, 2F], elements adjacent. codes: int8 [T, F]. scale: float32 and total: int32 [T].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    wait_for_the_launch_ahead(DEPENDENT)
    gate, up = _gate(x, row * stride, column, width)
    value = (gate * gate * up).to(x.dtype.element_ty)
    store_quantised(value, row, column, width, codes, scale, total, PTX)


def gated_relu2(gate_up_T2F: Tensor) -> Tensor:
    """relu(gate)² · up; differentiable, keeping its input alone for the backward pass."""
    _expect_halves(gate_up_T2F)
    out: Tensor = _GatedReLU2.apply(gate_up_T2F)  # type: ignore[no-untyped-call]
    return out


class _GatedReLU2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
        _gated_relu2(gate_up, out)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad_gate_up = torch.empty_like(gate_up)
        _gated_relu2_backward(grads[0], gate_up, grad_gate_up)
        return grad_gate_up


def _value(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    return (gate.relu().square() * up).to(gate_up.dtype)


@operator("gated_relu2(Tensor gate_up, Tensor(a!) out) -> ()")
def _gated_relu2(gate_up: Tensor, out: Tensor) -> None:
    out.copy_(_value(gate_up))


@_gated_relu2.kernel
def _launch(gate_up: Tensor, out: Tensor) -> None:
    expect_adjacent("gate and up", gate_up)
    tokens, width = out.shape
    _gate_kernel[(tokens, -(-width // BLOCK))](
        gate_up, gate_up.stride(0), out, width, BLOCK=BLOCK, enable_fp_fusion=False
    )


@jit
def _gate_kernel(gate_up, stride, out, width, BLOCK: tl.constexpr):
    """A program takes a part of a row. gate_up: float [T, 2F]; out: its type, [T, F]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate, up = _gate(gate_up, row * stride, column, width)
    value = (gate * gate * up).to(out.dtype.element_ty)
    tl.store(out + row * width + column, value, mask=column < width)


@operator("gated_relu2_backward(Tensor grad, Tensor gate_up, Tensor(a!) grad_gate_up) -> ()")
def _gated_relu2_backward(grad: Tensor, gate_up: Tensor, grad_gate_up: Tensor) -> None:
    gate, up = gate_up.float().chunk(2, -1)
    open_gate, wide = gate.relu(), grad.float()
    halves = (2 * open_gate * up * wide, open_gate.square() * wide)
    grad_gate_up.copy_(torch.cat(halves, -1))


@_gated_relu2_backward.kernel
def _launch_backward(grad: Tensor, gate_up: Tensor, grad_gate_up: Tensor) -> None:
    expect_adjacent("gate and up", gate_up)
    expect_adjacent("their gradient", grad_gate_up)
    tokens, width = grad.shape
    _gate_backward_kernel[(tokens, -(-width // BLOCK))](
        grad, *grad.stride(), gate_up, gate_up.stride(0),
        grad_gate_up, grad_gate_up.stride(0), width, BLOCK=BLOCK,
    )  # fmt: skip


@jit
def _gate_backward_kernel(
    grad, row_stride, column_stride, gate_up, stride, grad_gate_up, out_stride, width, BLOCK:
    tl.constexpr,
):  # fmt: skip
    """A program takes a part of a row.

    grad: float [T, F], with any strides. gate_up and grad_gate_up: its type, [T, 2F].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate, up = _gate(gate_up, row * stride, column, width)
    slope = tl.load(grad + row * row_stride + column * column_stride, mask=inside, other=0)
    slope = slope.to(tl.float32)
    out = grad_gate_up + row * out_stride + column
    tl.store(out, (2 * gate * up * slope).to(out.dtype.element_ty), mask=inside)
    tl.store(out + width, (gate * gate * slope).to(out.dtype.element_ty), mask=inside)
