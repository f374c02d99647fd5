"""Rows of activations: RMSNorm, the gated MLP activation, and their int8 quantisation.

Shapes: T tokens, H hidden, F intermediate. Everything is computed in float32 and rounded to the
activations' type before it is quantised, so that the fused operators give the bits of the two
steps one after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.registry import operator


class QuantisedRows(NamedTuple):
    """int8 activations: a row's values are `codes * scale`; `total` is the sum of its codes.

    The sum lets a kernel that multiplies by the weight codes {0, 1, 2} take the offset of one off
    again without reading the activations twice.
    """

    codes: Tensor  # int8 [T, K]
    scale: Tensor  # float32 [T]
    total: Tensor  # int32 [T]


def _empty_rows(x: Tensor, width: int) -> QuantisedRows:
    return QuantisedRows(
        x.new_empty((x.shape[0], width), dtype=torch.int8),
        x.new_empty(x.shape[0], dtype=torch.float32),
        x.new_empty(x.shape[0], dtype=torch.int32),
    )


def quantise_rows(x_TK: Tensor) -> QuantisedRows:
    """Quantise each row to int8 by its largest magnitude (BitNet b1.58's activations)."""
    rows = _empty_rows(x_TK, x_TK.shape[1])
    _quantise_rows(x_TK, *rows)
    return rows


@operator("quantise_rows(Tensor x, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()")
def _quantise_rows(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    largest = x.abs().amax(-1).float().clamp_(min=1e-5)
    torch.div(largest, 127, out=scale)
    codes.copy_((x.float() * (127 / largest)[:, None]).round_())
    total.copy_(codes.sum(-1, dtype=torch.int32))


def rms_norm_rows(x_TH: Tensor, weight_H: Tensor, eps: float) -> QuantisedRows:
    """RMSNorm and quantisation in one: the normalised row is never written."""
    rows = _empty_rows(x_TH, x_TH.shape[1])
    _rms_norm_rows(x_TH, weight_H, eps, *rows)
    return rows


@operator(
    "rms_norm_rows(Tensor x, Tensor weight, float eps,"
    " Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()"
)
def _rms_norm_rows(
    x: Tensor, weight: Tensor, eps: float, codes: Tensor, scale: Tensor, total: Tensor
) -> None:
    _quantise_rows(_normalised(x, weight, eps)[0], codes, scale, total)


def gated_relu2_rows(gate_up_T2F: Tensor) -> QuantisedRows:
    """relu(gate)² · up, quantised; gate is the first half of each row, up the second."""
    rows = _empty_rows(gate_up_T2F, gate_up_T2F.shape[1] // 2)
    _gated_relu2_rows(gate_up_T2F, *rows)
    return rows


@operator("gated_relu2_rows(Tensor x, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) total) -> ()")
def _gated_relu2_rows(x: Tensor, codes: Tensor, scale: Tensor, total: Tensor) -> None:
    _quantise_rows(_gated_relu2_value(x), codes, scale, total)


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight; differentiable, keeping x and one float32 a row."""
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


def gated_relu2(gate_up_T2F: Tensor) -> Tensor:
    """relu(gate)² · up; differentiable, keeping its input alone for the backward pass."""
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


def _gated_relu2_value(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    return (gate.relu().square() * up).to(gate_up.dtype)


@operator("gated_relu2(Tensor gate_up, Tensor(a!) out) -> ()")
def _gated_relu2(gate_up: Tensor, out: Tensor) -> None:
    out.copy_(_gated_relu2_value(gate_up))


@operator("gated_relu2_backward(Tensor grad, Tensor gate_up, Tensor(a!) grad_gate_up) -> ()")
def _gated_relu2_backward(grad: Tensor, gate_up: Tensor, grad_gate_up: Tensor) -> None:
    gate, up = gate_up.float().chunk(2, -1)
    open_gate, wide = gate.relu(), grad.float()
    halves = (2 * open_gate * up * wide, open_gate.square() * wide)
    grad_gate_up.copy_(torch.cat(halves, -1))
