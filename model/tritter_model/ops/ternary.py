"""Ternary weights: {-1, 0, +1}, packed, times int8 activations.

Codes are u = w + 1 in {0, 1, 2}; a row of K weights packs into planes, so that unpacking needs no
interleave:

- 2 bits: byte j holds u at k = j + i * ceil(K / 4) in its bits 2i and 2i + 1, i = 0..3.
- 1.6 bits: byte j holds the base-3 number v of the digits u at k = j + i * ceil(K / 5), i = 0..4,
  most significant first, stored as ceil(256 * v / 243). Digit n is then
  (((byte * 3**n) & 255) * 3) >> 8: a multiplication instead of a division.

Shapes: T tokens, K inputs, N outputs. The products are sums of int8 by {-1, 0, 1}, exact in int32;
the reference computes them in float32, where they are exact below K = 132,104.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritter_model.checkpointing import kept
from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.registry import operator, scratch
from tritter_model.ops.rows import QuantisedRows, quantise_rows

PER_BYTE = {"ternary-2bit": 4, "ternary-1.6bit": 5}


def packed_width(in_features: int, weight_format: str) -> int:
    """Bytes of one packed row of `in_features` weights.

    Raises:
        ValueError: so few inputs that the width would not tell 1.6 bits from 2.
    """
    width = -(-in_features // PER_BYTE[weight_format])
    if weight_format == "ternary-1.6bit" and width == -(-in_features // 4):
        raise ValueError(
            f"found {in_features} inputs; 1.6-bit weights need 17 or more; use ternary-2bit"
        )
    return width


def pack(codes_NK: Tensor, weight_format: str) -> Tensor:
    """Pack codes u = w + 1 (uint8 [N, K]) into uint8 [N, packed_width]; padding is u = 1 (zero)."""
    digits = PER_BYTE[weight_format]
    rows, width = codes_NK.shape[0], packed_width(codes_NK.shape[1], weight_format)
    padded = codes_NK.new_ones((rows, digits * width))
    padded[:, : codes_NK.shape[1]] = codes_NK
    planes = padded.view(rows, digits, width).to(torch.int16)
    if digits == 4:
        return sum(planes[:, i] << (2 * i) for i in range(4)).to(torch.uint8)  # type: ignore[union-attr]
    value = planes[:, 0]
    for i in range(1, 5):
        value = value * 3 + planes[:, i]
    return ((value.to(torch.int32) * 256 + 242) // 243).to(torch.uint8)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """The codes u = w + 1 of packed rows: uint8 [N, in_features]. The width tells the format."""
    if packed.shape[1] == packed_width(in_features, "ternary-2bit"):
        planes = [(packed >> (2 * i)) & 3 for i in range(4)]
    else:
        wide = packed.to(torch.int32)
        planes = [((((wide * 3**i) & 255) * 3) >> 8).to(torch.uint8) for i in range(5)]
    return torch.cat(planes, 1)[:, :in_features]


def ternary_linear(
    rows: QuantisedRows, packed: Tensor, scale_N: Tensor, dtype: torch.dtype
) -> Tensor:
    """rows @ weightᵀ for packed weights: [T, N] in `dtype`, from exact integer sums.

    Args:
        rows: int8 activations [T, K].
        packed: uint8 [N, packed_width], 2 or 1.6 bits a weight; the width tells which.
        scale_N: float32 scale of each output.
        dtype: type of the result.
    """
    out = packed.new_empty((rows.codes.shape[0], packed.shape[0]), dtype=dtype)
    _ternary_linear(*rows, packed, scale_N, out)
    return out


@operator(
    "ternary_linear(Tensor codes, Tensor row_scale, Tensor total, Tensor packed, Tensor scale,"
    " Tensor(a!) out) -> ()"
)
def _ternary_linear(
    codes: Tensor, row_scale: Tensor, total: Tensor, packed: Tensor, scale: Tensor, out: Tensor
) -> None:
    del total  # the kernel's: the reference takes the offset off the weights instead
    for rows in torch.arange(packed.shape[0]).split(_rows_at_once(codes.shape[1])):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        weight = unpack(packed[part], codes.shape[1]).float() - 1
        sums = codes.float() @ weight.T
        out[:, part] = sums * (row_scale[:, None] * scale[None, part])


def _rows_at_once(width: int) -> int:
    """Rows of weights that the reference unpacks at a time: about 64 MiB in float32."""
    return max(1, (1 << 24) // width)


def trained_ternary_linear(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """What `ternary_linear` computes, from full-precision weights; differentiable.

    Gradients pass straight through both roundings. The backward pass rounds the weights and the
    activations again, so nothing of the weights' size is kept.
    """
    out: Tensor = _TrainedTernaryLinear.apply(x_TK, weight_NK)  # type: ignore[no-untyped-call]
    return out


class _TrainedTernaryLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        (out,) = kept(
            "matmul", lambda: (ternary_linear(quantise_rows(x), *ternarise(weight), x.dtype),)
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        _ternary_linear_grad_input(grads[0], *ternarise(weight), grad_x)
        with label(GRADIENTS):
            grad_weight = torch.empty_like(weight)
        rows = quantise_rows(x)
        _ternary_linear_grad_weight(grads[0], rows.codes, rows.scale, grad_weight)
        return grad_x, grad_weight


def ternarise(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to {-1, 0, 1} by each output's mean magnitude (BitNet b1.58): packed, scale.

    The scale is one an output rather than one a matrix: a matrix that was trained with a single
    scale is the case where all are equal.

    Returns:
        uint8 [N, ceil(K / 4)] in the 2-bit format, and float32 [N].
    """
    width = packed_width(weight_NK.shape[1], "ternary-2bit")
    packed = scratch((weight_NK.shape[0], width), weight_NK, torch.uint8)
    scale = scratch((weight_NK.shape[0],), weight_NK, torch.float32)
    _ternarise(weight_NK, packed, scale)
    return packed, scale


@operator("ternarise(Tensor weight, Tensor(a!) packed, Tensor(b!) scale) -> ()")
def _ternarise(weight: Tensor, packed: Tensor, scale: Tensor) -> None:
    wide = weight.float()
    scale.copy_(wide.abs().mean(1).clamp_(min=1e-5))
    codes = (wide / scale[:, None]).round_().clamp_(-1, 1).add_(1)
    packed.copy_(pack(codes.to(torch.uint8), "ternary-2bit"))


@operator(
    "ternary_linear_grad_input(Tensor grad, Tensor packed, Tensor scale, Tensor(a!) grad_x) -> ()"
)
def _ternary_linear_grad_input(grad: Tensor, packed: Tensor, scale: Tensor, grad_x: Tensor) -> None:
    weight = (unpack(packed, grad_x.shape[1]).float() - 1) * scale[:, None]
    grad_x.copy_(grad.float() @ weight)


@operator(
    "ternary_linear_grad_weight(Tensor grad, Tensor codes, Tensor row_scale,"
    " Tensor(a!) grad_weight) -> ()"
)
def _ternary_linear_grad_weight(
    grad: Tensor, codes: Tensor, row_scale: Tensor, grad_weight: Tensor
) -> None:
    grad_weight.copy_((grad.float() * row_scale[:, None]).T @ codes.float())
