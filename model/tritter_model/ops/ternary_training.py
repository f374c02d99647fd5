"""A ternary layer in training: master weights, rounded in each pass, straight-through gradients.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.checkpointing import product
from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent, expect_contiguous
from tritter_model.ops.grad_weight import product_tile, write_grad_weight
from tritter_model.ops.jit import block, interpreted, jit
from tritter_model.ops.registry import operator, scratch
from tritter_model.ops.rows import quantise_rows, round_to_even
from tritter_model.ops.ternary import ternary_linear_into
from tritter_model.ops.ternary_format import pack, packed_width, unpack

if TYPE_CHECKING:
    import triton.language as tl


def trained_ternary_linear(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """What `ternary_linear` computes, from full-precision weights; differentiable.

    Gradients pass straight through both roundings. The backward pass rounds the weights and the
    activations again, so nothing of the weights' size is kept.
    """

    def fill(out: Tensor) -> None:
        ternary_linear_into(quantise_rows(x_TK), *ternarise(weight_NK), out)

    return product(_TrainedTernaryLinear, x_TK, weight_NK, fill)


class _TrainedTernaryLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        ternary_grad_input(grads[0], *ternarise(weight), grad_x)
        with label(GRADIENTS):
            grad_weight = torch.empty_like(weight)
        rows = quantise_rows(x)
        write_grad_weight(grads[0], rows.codes, rows.scale, grad_weight)
        return grad_x, grad_weight, None


def ternarise(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to {-1, 0, 1} by each output's mean magnitude (BitNet b1.58): packed, scale.

    The scale is one an output rather than one a matrix: a matrix that was trained with a single
    scale is the case where all are equal.

    Returns:
        uint8 [N, ceil(K / 4)] in the 2-bit format, and float32 [N].
    """
    expect("the weights", weight_NK, FLOATS, -1, -1)
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


@_ternarise.kernel
def _launch_ternarise(weight: Tensor, packed: Tensor, scale: Tensor) -> None:
    expect_adjacent("the weights", weight)
    bytes_at_once = min(max(block(packed.shape[1]), 128), 1024)
    _ternarise_kernel[(weight.shape[0],)](
        weight, weight.stride(0), packed, scale, packed.shape[1], weight.shape[1],
        BYTES=bytes_at_once, PTX=not interpreted(), num_warps=bytes_at_once // 128,
    )  # fmt: skip


@jit
def _ternarise_kernel(
    weight, stride, packed, scale, width, inputs, BYTES: tl.constexpr, PTX: tl.constexpr
):
    """A program rounds a row: once over it for the scale, once more for the codes.

    weight: float [N, K], elements of a row adjacent. packed: uint8 [N, width]. scale: float32 [N].
    """
    n = tl.program_id(0).to(tl.int64)
    plane, row = tl.arange(0, 4)[:, None], weight + n * stride
    sums = tl.zeros((4, BYTES), tl.float32)
    for start in range(0, width, BYTES):
        sums += tl.abs(_planes(row, plane, start + tl.arange(0, BYTES), width, inputs))
    mean = tl.maximum(tl.sum(tl.sum(sums, 0), 0) / inputs, 1e-5)
    tl.store(scale + n, mean)
    for start in range(0, width, BYTES):
        j = start + tl.arange(0, BYTES)
        ratio = tl.div_rn(
            _planes(row, plane, j, width, inputs), mean + tl.zeros((4, BYTES), tl.float32)
        )
        code = round_to_even(tl.minimum(tl.maximum(ratio, -1.0), 1.0), PTX) + 1
        tl.store(
            packed + n * width + j, tl.sum(code << (2 * plane), 0).to(tl.uint8), mask=j < width
        )


@jit
def _planes(row, plane, j, width, inputs):
    """The weights that bytes j of a packed row hold, float32 [4, bytes]; zero beyond the row."""
    k = plane * width + j[None]
    return tl.load(row + k, mask=(j < width)[None] & (k < inputs), other=0).to(tl.float32)


def ternary_grad_input(grad_TN: Tensor, packed: Tensor, scale_N: Tensor, grad_x_TK: Tensor) -> None:
    """Write grad @ (scale * weight) to `grad_x`, for weights packed in 2 bits.

    Args:
        grad_TN: gradient of the outputs; any strides.
        packed: uint8 [N, ceil(K / 4)].
        scale_N: float32 scale of each output.
        grad_x_TK: where the gradient of the inputs goes.
    """
    inputs = grad_x_TK.shape[1]
    expect("the outputs' gradient", grad_TN, FLOATS, grad_x_TK.shape[0], packed.shape[0])
    expect("packed weights", packed, torch.uint8, -1, packed_width(inputs, "ternary-2bit"))
    expect("the weights' scale", scale_N, torch.float32, packed.shape[0])
    _ternary_grad_input(grad_TN, packed, scale_N, grad_x_TK)


@operator("ternary_grad_input(Tensor grad, Tensor packed, Tensor scale, Tensor(a!) grad_x) -> ()")
def _ternary_grad_input(grad: Tensor, packed: Tensor, scale: Tensor, grad_x: Tensor) -> None:
    weight = (unpack(packed, grad_x.shape[1]).float() - 1) * scale[:, None]
    grad_x.copy_(grad.float() @ weight)


@_ternary_grad_input.kernel
def _launch_grad_input(grad: Tensor, packed: Tensor, scale: Tensor, grad_x: Tensor) -> None:
    expect_contiguous("packed weights", packed)
    expect_adjacent("the inputs' gradient", grad_x)
    (tokens, outputs), width = grad.shape, packed.shape[1]
    launch = product_tile(grad)
    tile = launch["TILE"]
    _ternary_grad_input_kernel[(-(-tokens // tile), 4, -(-width // tile))](
        grad, packed, scale, grad_x, *grad.stride(), grad_x.stride(0),
        tokens, outputs, width, grad_x.shape[1], **launch,
    )  # fmt: skip


@jit
def _ternary_grad_input_kernel(
    grad, packed, scale, grad_x, row_stride, column_stride, out_stride,
    tokens, outputs, width, inputs, STEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program computes a tile of one plane's inputs; the weights exist in registers alone.

    grad: float [T, N], any strides. packed: uint8 [N, width]. scale: float32 [N]. grad_x: float
    [T, K].
    """
    t = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    plane, j = tl.program_id(1), tl.program_id(2) * TILE + tl.arange(0, TILE)
    sums = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, outputs, STEP):
        n = start + tl.arange(0, STEP)
        slope = tl.load(
            grad + t[:, None] * row_stride + n[None] * column_stride,
            mask=(t < tokens)[:, None] & (n < outputs)[None], other=0,
        )  # fmt: skip
        bits = tl.load(
            packed + n.to(tl.int64)[:, None] * width + j[None],
            mask=(n < outputs)[:, None] & (j < width)[None], other=0,
        )  # fmt: skip
        factor = tl.load(scale + n, mask=n < outputs, other=0)[None]
        slope = (slope.to(tl.float32) * factor).to(slope.dtype)
        weight = ((bits >> (2 * plane)) & 3).to(tl.int8) - 1
        sums = tl.dot(slope, weight.to(slope.dtype), sums, input_precision="ieee")
    k = plane * width + j
    inside = (t < tokens)[:, None] & ((j < width) & (k < inputs))[None]
    at = grad_x + t[:, None] * out_stride + k[None]
    tl.store(at, sums.to(grad_x.dtype.element_ty), mask=inside)
