"""Gradients of QK-norm and RoPE: of the projection, and of the norms' weights.

Shapes: T = batch * chunk tokens, sequence by sequence; A query heads, G key-value heads, D their
width. `qkv` is [T, A + 2G, D]: queries, keys, values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.angles import cos_and_sin_at, frequencies, turned
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.jit import block, jit
from tritter_model.ops.registry import operator, scratch
from tritter_model.ops.rotary import (
    Heads,
    check_heads,
    head_tile,
    inverse_rms,
    inverse_rms_of,
    load_heads,
    norm_weights,
    turn,
    turns_of,
    weights_by_head,
)

if TYPE_CHECKING:
    import triton.language as tl

NORM_SUMS = 256
"""Parts into which tokens are split where the gradients of the norms are summed."""


def rotate_backward(
    grad: Tensor, qkv: Tensor, norms: Tensor | None, heads: Heads, grads: tuple[Tensor, Tensor]
) -> None:
    """Fill the gradients of `rotate_into` without a position.

    Args:
        grad: of the rotated heads, [T, A + G, D].
        qkv: what was rotated.
        norms: the weights of the norms, or None.
        heads: the split of `qkv`.
        grads: to be filled: of qkv's first A + G heads, and of `norms`.
    """
    check_heads(qkv, norms, heads)
    shape = (qkv.shape[0], heads.rotated, qkv.shape[2])
    expect("the rotated heads' gradient", grad, qkv.dtype, *shape)
    expect("the projection's gradient", grads[0], qkv.dtype, *shape)
    sums = None
    if norms is not None:
        expect("the norms' gradient", grads[1], FLOATS, *norms.shape)
        sums = scratch((min(NORM_SUMS, shape[0]), *norms.shape), qkv, torch.float32)
    _rotate_backward(
        grad, qkv, norms, heads.batch, heads.heads, heads.theta, heads.eps, sums, *grads
    )


@operator(
    "rotate_backward(Tensor grad, Tensor qkv, Tensor? norms, int batch, int heads, float theta,"
    " float eps, Tensor(a!)? sums, Tensor(b!) grad_qkv, Tensor(c!) grad_norms) -> ()"
)
def _rotate_backward(
    grad: Tensor, qkv: Tensor, norms: Tensor | None, batch: int, heads: int, theta: float,
    eps: float, sums: Tensor | None, grad_qkv: Tensor, grad_norms: Tensor,
) -> None:  # fmt: skip
    del sums  # the kernel's
    cos, sin = turns_of(grad, batch, 0, theta)
    slope = turn(grad.float(), cos, -sin)
    if norms is None:
        grad_qkv.copy_(slope)
        return
    x = qkv[:, : grad.shape[1]].float()
    rstd, weight = (
        inverse_rms_of(x, eps),
        weights_by_head(norms.to(qkv.dtype), heads, grad.shape[1]),
    )
    unit, scaled = x * rstd, slope * weight
    grad_qkv.copy_((scaled - unit * (scaled * unit).mean(-1, keepdim=True)) * rstd)
    by_head = (slope * unit).sum(0)
    grad_norms[0] = by_head[:heads].sum(0)
    grad_norms[1] = by_head[heads:].sum(0)


@_rotate_backward.kernel
def _launch_backward(
    grad: Tensor, qkv: Tensor, norms: Tensor | None, batch: int, heads: int, theta: float,
    eps: float, sums: Tensor | None, grad_qkv: Tensor, grad_norms: Tensor,
) -> None:  # fmt: skip
    tensors = {"their gradient": grad, "the projection": qkv, "its gradient": grad_qkv}
    for name, tensor in tensors.items():
        expect_adjacent(name, tensor)
    tokens, programs = grad.shape[0], min(NORM_SUMS, grad.shape[0])
    strides = (stride for tensor in tensors.values() for stride in tensor.stride()[:2])
    _rotary_backward_kernel[(programs, 2)](
        grad, qkv, norms, grad_qkv, sums, *strides,
        tokens, tokens // batch, heads, grad.shape[1], eps, **head_tile(qkv.shape[2], theta),
    )  # fmt: skip
    if sums is not None:
        width = qkv.shape[2]
        _rotary_norm_sums_kernel[(2,)](
            sums, grad_norms, programs, width, ROWS=16, BLOCK=block(width)
        )


@jit
def _rotary_backward_kernel(
    grad, qkv, norms, grad_qkv, sums, grad_row_stride, grad_head_stride, row_stride, head_stride,
    out_row_stride, out_head_stride, tokens, chunk, heads, rotated, eps,
    HALF: tl.constexpr, EXPONENT: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes some tokens' queries or keys, and sums up what their norm is given.

    grad: float [T, A + G, D]. qkv: float [T, A + 2G, D]. norms: float [2, D], or None. grad_qkv: as
    grad. sums: float32 [programs, 2, D], or None.
    """
    channel = tl.arange(0, BLOCK)
    frequency = frequencies(channel, HALF, EXPONENT)
    program, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end = tl.where(which == 0, heads, rotated)
    total = tl.zeros((HEADS, BLOCK), tl.float32)
    for step in range(tl.cdiv(tokens - program, tl.num_programs(0))):
        token = program + step * tl.num_programs(0)
        cos, sin = cos_and_sin_at(token % chunk, frequency)
        for first in range(which * heads, end, HEADS):
            head = first + tl.arange(0, HEADS)
            near, far = load_heads(
                grad + token * grad_row_stride, head, grad_head_stride, channel, end, HALF
            )
            slope = turned(near, far, cos[None], -sin[None], channel[None], HALF)
            if norms is not None:
                x, _ = load_heads(qkv + token * row_stride, head, head_stride, channel, end, HALF)
                inverse = inverse_rms(x, eps, HALF)
                unit = x * inverse
                total += slope * unit
                kind: tl.constexpr = qkv.dtype.element_ty
                slope *= norm_weights(norms, which, channel[None], HALF, kind)
                along = tl.sum(slope * unit, 1)[:, None] / (2 * HALF)
                slope = (slope - unit * along) * inverse
            there = grad_qkv + token * out_row_stride + (head * out_head_stride)[:, None]
            inside = (head < end)[:, None] & (channel < 2 * HALF)[None]
            tl.store(there + channel[None], slope.to(grad_qkv.dtype.element_ty), mask=inside)
    if norms is not None:
        there = sums + (program * 2 + which) * 2 * HALF + channel
        tl.store(there, tl.sum(total, 0), mask=channel < 2 * HALF)


@jit
def _rotary_norm_sums_kernel(
    sums, grad_norms, parts, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program sums the parts of one norm, always in the same order.

    sums: float32 [parts, 2, D]. grad_norms: float [2, D].
    """
    column, which = tl.arange(0, BLOCK), tl.program_id(0)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS)
        inside = (part < parts)[:, None] & (column < width)[None]
        there = sums + ((part * 2 + which) * width)[:, None] + column[None]
        total += tl.load(there, mask=inside, other=0)
    value = tl.sum(total, 0).to(grad_norms.dtype.element_ty)
    tl.store(grad_norms + which * width + column, value, mask=column < width)
