"""Queries and keys made ready for attention: QK-norm (RMSNorm per head), then RoPE.

Shapes: T = batch * chunk tokens, sequence by sequence; A query heads, G key-value heads, D their
width. `qkv` is [T, A + 2G, D]: queries, keys, values. The rotation pairs element d with d + D/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.ops.angles import cos_and_sin, frequencies, frequency_exponent, turned
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.jit import block, jit
from tritter_model.ops.registry import operator, scratch

if TYPE_CHECKING:
    import triton.language as tl

MANY = 1024
"""Programs that keep a card busy; with so many tokens, each program takes all heads of some."""
NORM_SUMS = 256
"""Parts into which tokens are split where the gradients of the norms are summed."""


@dataclass(frozen=True)
class Heads:
    """How a projection's rows split into heads, and how queries and keys are rotated."""

    batch: int
    heads: int
    kv_heads: int
    theta: float
    eps: float

    @property
    def rotated(self) -> int:
        """Heads that are normalised and rotated: queries and keys."""
        return self.heads + self.kv_heads


def rotate_(qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None) -> Tensor:
    """Normalise and rotate the queries and keys of `qkv` in place.

    Args:
        qkv: [T, A + 2G, D].
        norms: [2, D], the weights of the query norm and the key norm; None: no QK-norm.
        heads: the split of `qkv`.
        position: int32 [1], absolute position of each sequence's first token; None: 0.
    """
    rotate_into(qkv, norms, heads, position, qkv[:, : heads.rotated])
    return qkv


def rotate_into(
    qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None, out: Tensor
) -> None:
    """Write the normalised, rotated queries and keys of `qkv` to `out`, [T, A + G, D]."""
    check_heads(qkv, norms, heads)
    expect("the rotated heads", out, qkv.dtype, qkv.shape[0], heads.rotated, qkv.shape[2])
    if position is not None:
        expect("the position", position, torch.int32, 1)
    _rotate(qkv, norms, position, heads.batch, heads.heads, heads.theta, heads.eps, out)


def check_heads(qkv: Tensor, norms: Tensor | None, heads: Heads) -> None:
    """Check that a projection splits into whole sequences and heads that can be rotated.

    Raises:
        ValueError: it does not.
    """
    expect("the projection", qkv, FLOATS, -1, heads.rotated + heads.kv_heads, -1)
    if qkv.shape[0] % heads.batch or qkv.shape[2] % 2:
        raise ValueError(
            f"found a projection of {list(qkv.shape)} for {heads.batch} sequences; allowed:"
            " as many tokens of each, and heads of an even width"
        )
    if norms is not None:
        expect("the norms' weights", norms, FLOATS, 2, qkv.shape[2])


@operator(
    "rotate(Tensor qkv, Tensor? norms, Tensor? position, int batch, int heads, float theta,"
    " float eps, Tensor(a!) out) -> ()"
)
def _rotate(
    qkv: Tensor, norms: Tensor | None, position: Tensor | None, batch: int, heads: int,
    theta: float, eps: float, out: Tensor,
) -> None:  # fmt: skip
    x = qkv[:, : out.shape[1]].float()
    if norms is not None:
        x = x * _rstd(x, eps) * _by_head(norms.to(qkv.dtype), heads, out.shape[1])
    start = 0 if position is None else int(position)
    out.copy_(_turn(x, *_turns(x, batch, start, theta)))


@_rotate.kernel
def _launch(
    qkv: Tensor, norms: Tensor | None, position: Tensor | None, batch: int, heads: int,
    theta: float, eps: float, out: Tensor,
) -> None:  # fmt: skip
    expect_adjacent("the projection", qkv)
    expect_adjacent("the rotated heads", out)
    tokens, rotated, tile = qkv.shape[0], out.shape[1], head_tile(qkv.shape[2], theta)
    side_by_side = 1 if tokens >= MANY else -(-rotated // tile["HEADS"])
    _rotate_kernel[(min(tokens, MANY), side_by_side)](
        qkv, norms, position, out, *qkv.stride()[:2], *out.stride()[:2],
        tokens, tokens // batch, heads, rotated, eps, **tile,
    )  # fmt: skip


def head_tile(width: int, theta: float) -> dict[str, Any]:
    """How to launch a kernel whose programs hold some whole heads."""
    return {
        "HALF": width // 2,
        "EXPONENT": frequency_exponent(theta, width // 2),
        "HEADS": 8,
        "BLOCK": max(block(width), 16),
        "num_warps": 4,
    }


@jit
def load_heads(row, head, stride, channel, heads, HALF: tl.constexpr):
    """Heads of one token, float32 [heads, D], and for each channel the one half of D away."""
    there = row + (head * stride)[:, None]
    inside = (head < heads)[:, None] & (channel < 2 * HALF)[None]
    away = tl.where(channel < HALF, channel + HALF, channel - HALF)
    near = tl.load(there + channel[None], mask=inside, other=0)
    far = tl.load(there + away[None], mask=inside, other=0)
    return near.to(tl.float32), far.to(tl.float32)


@jit
def norm_weights(norms, which, channel, HALF: tl.constexpr, KIND: tl.constexpr):
    """The query norm's weights (which: 0) or the key norm's (1), in the activations' type."""
    inside = (which < 2) & (channel < 2 * HALF)
    weights = tl.load(norms + which * 2 * HALF + channel, mask=inside, other=0)
    return weights.to(KIND).to(tl.float32)


@jit
def inverse_rms(x, eps, HALF: tl.constexpr):
    """1 / rms of each head, [heads, 1]."""
    return tl.rsqrt(tl.sum(x * x, 1) / (2 * HALF) + eps)[:, None]


@jit
def _rotate_kernel(
    qkv, norms, position, out, row_stride, head_stride, out_row_stride, out_head_stride,
    tokens, chunk, heads, rotated, eps,
    HALF: tl.constexpr, EXPONENT: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes some tokens, and of each a few heads or all of them.

    A channel is read by two threads and, where `out` is `qkv`, written by one of them: the barrier
    keeps it from being written before both have it.
    """
    channel = tl.arange(0, BLOCK)
    away = tl.where(channel < HALF, channel + HALF, channel - HALF)
    frequency = frequencies(channel, HALF, EXPONENT)
    start = 0
    if position is not None:
        start = tl.load(position)
    program = tl.program_id(0).to(tl.int64)
    for step in range(tl.cdiv(tokens - program, tl.num_programs(0))):
        token = program + step * tl.num_programs(0)
        for first in range(tl.program_id(1) * HEADS, rotated, tl.num_programs(1) * HEADS):
            head = first + tl.arange(0, HEADS)
            row = qkv + token * row_stride
            near, far = load_heads(row, head, head_stride, channel, rotated, HALF)
            tl.debug_barrier()
            if norms is not None:
                which = (head >= heads).to(tl.int32)[:, None]
                inverse = inverse_rms(near, eps, HALF)
                kind: tl.constexpr = qkv.dtype.element_ty
                near = near * inverse * norm_weights(norms, which, channel[None], HALF, kind)
                far = far * inverse * norm_weights(norms, which, away[None], HALF, kind)
            value = turned(
                near, far, start + token % chunk, frequency[None], channel[None], HALF, False
            )
            there = out + token * out_row_stride + (head * out_head_stride)[:, None]
            inside = (head < rotated)[:, None] & (channel < 2 * HALF)[None]
            tl.store(there + channel[None], value.to(out.dtype.element_ty), mask=inside)


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
    cos, sin = _turns(grad, batch, 0, theta)
    slope = _turn(grad.float(), cos, -sin)
    if norms is None:
        grad_qkv.copy_(slope)
        return
    x = qkv[:, : grad.shape[1]].float()
    rstd, weight = _rstd(x, eps), _by_head(norms.to(qkv.dtype), heads, grad.shape[1])
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
    _backward_kernel[(programs, 2)](
        grad, qkv, norms, grad_qkv, sums, *strides,
        tokens, tokens // batch, heads, grad.shape[1], eps, **head_tile(qkv.shape[2], theta),
    )  # fmt: skip
    if sums is not None:
        width = qkv.shape[2]
        _norm_sums_kernel[(2,)](sums, grad_norms, programs, width, ROWS=16, BLOCK=block(width))


@jit
def _backward_kernel(
    grad, qkv, norms, grad_qkv, sums, grad_row_stride, grad_head_stride, row_stride, head_stride,
    out_row_stride, out_head_stride, tokens, chunk, heads, rotated, eps,
    HALF: tl.constexpr, EXPONENT: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes some tokens' queries or keys, and sums up what their norm is given."""
    channel = tl.arange(0, BLOCK)
    frequency = frequencies(channel, HALF, EXPONENT)
    program, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end = tl.where(which == 0, heads, rotated)
    total = tl.zeros((HEADS, BLOCK), tl.float32)
    for step in range(tl.cdiv(tokens - program, tl.num_programs(0))):
        token = program + step * tl.num_programs(0)
        for first in range(which * heads, end, HEADS):
            head = first + tl.arange(0, HEADS)
            near, far = load_heads(
                grad + token * grad_row_stride, head, grad_head_stride, channel, end, HALF
            )
            slope = turned(near, far, token % chunk, frequency[None], channel[None], HALF, True)
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
def _norm_sums_kernel(sums, grad_norms, parts, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program sums the parts of one norm, always in the same order."""
    column, which = tl.arange(0, BLOCK), tl.program_id(0)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS)
        inside = (part < parts)[:, None] & (column < width)[None]
        there = sums + ((part * 2 + which) * width)[:, None] + column[None]
        total += tl.load(there, mask=inside, other=0)
    value = tl.sum(total, 0).to(grad_norms.dtype.element_ty)
    tl.store(grad_norms + which * width + column, value, mask=column < width)


def _rstd(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _by_head(norms: Tensor, heads: int, rotated: int) -> Tensor:
    """float32 [A + G, D]: each head's norm weight."""
    which = torch.arange(rotated, device=norms.device) >= heads
    return norms.float()[which.long()]


def _turns(x: Tensor, batch: int, start: int, theta: float) -> tuple[Tensor, ...]:
    """Cosine and sine of each token's angles, [T, 1, D/2]."""
    angles = cos_and_sin(x.shape[0] // batch, start, x.shape[2] // 2, theta, x.device)
    return tuple(part.repeat(batch, 1)[:, None] for part in angles)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
