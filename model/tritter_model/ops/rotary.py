"""Queries and keys made ready for attention: QK-norm (RMSNorm per head), then RoPE.

Shapes: T = batch * chunk tokens, sequence by sequence; A query heads, G key-value heads, D their
width. `qkv` is [T, A + 2G, D]: queries, keys, values. The rotation pairs element d with d + D/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.ops.angles import cos_and_sin, cos_and_sin_of, frequency_exponent, turned
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.jit import block, jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl

MANY = 1024
"""Programs that keep a card busy; with so many tokens, each program takes all heads of some."""


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


def rotate_(
    qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None,
    angles: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Normalise and rotate the queries and keys of `qkv` in place.

    Args:
        qkv: [T, A + 2G, D].
        norms: [2, D], the weights of the query norm and the key norm; None: no QK-norm.
        heads: the split of `qkv`.
        position: int32 [1], absolute position of each sequence's first token; None: 0.
        angles: of the position, from `rotary_angles`; None: they are computed here.
    """
    rotate_into(qkv, norms, heads, position, qkv[:, : heads.rotated], angles)
    return qkv


def rotate_into(
    qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None, out: Tensor,
    angles: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the normalised, rotated queries and keys of `qkv` to `out`, [T, A + G, D]."""
    check_heads(qkv, norms, heads)
    expect("the rotated heads", out, qkv.dtype, qkv.shape[0], heads.rotated, qkv.shape[2])
    if position is not None:
        expect("the position", position, torch.int32, 1)
    check_angles(angles, qkv.shape[0] // heads.batch, qkv.shape[2])
    _rotate(qkv, norms, position, angles, heads.batch, heads.heads, heads.theta, heads.eps, out)


def check_angles(angles: Tensor | None, tokens: int, width: int) -> None:
    """Check that angles, where they are given, are those of so many tokens.

    Raises:
        ValueError: they are not.
    """
    if angles is not None:
        expect("the angles", angles, torch.float32, tokens, 2, width // 2)


def check_heads(qkv: Tensor, norms: Tensor | None, heads: Heads) -> None:
    """Check that a projection splits into whole sequences and heads that can be rotated.

    Raises:
        ValueError: it does not.
    """
    expect("the projection", qkv, FLOATS, -1, heads.rotated + heads.kv_heads, -1)
    if qkv.shape[0] % heads.batch or qkv.shape[2] % 2:
        raise ValueError(
            f"got a projection of {list(qkv.shape)} for {heads.batch} sequences, expected"
            " as many tokens of each, and heads of an even width"
        )
    if norms is not None:
        expect("the norms' weights", norms, FLOATS, 2, qkv.shape[2])


@operator(
    "rotate(Tensor qkv, Tensor? norms, Tensor? position, Tensor? angles, int batch, int heads,"
    " float theta, float eps, Tensor(a!) out) -> ()"
)
def _rotate(
    qkv: Tensor, norms: Tensor | None, position: Tensor | None, angles: Tensor | None,
    batch: int, heads: int, theta: float, eps: float, out: Tensor,
) -> None:  # fmt: skip
    x = qkv[:, : out.shape[1]].float()
    if norms is not None:
        x = x * inverse_rms_of(x, eps) * weights_by_head(norms.to(qkv.dtype), heads, out.shape[1])
    if angles is None:
        out.copy_(turn(x, *turns_of(x, batch, 0 if position is None else int(position), theta)))
    else:
        out.copy_(turn(x, *angles.repeat(batch, 1, 1)[:, :, None].unbind(1)))


@_rotate.kernel
def _launch(
    qkv: Tensor, norms: Tensor | None, position: Tensor | None, angles: Tensor | None,
    batch: int, heads: int, theta: float, eps: float, out: Tensor,
) -> None:  # fmt: skip
    expect_adjacent("the projection", qkv)
    expect_adjacent("the rotated heads", out)
    tokens, rotated, tile = qkv.shape[0], out.shape[1], head_tile(qkv.shape[2], theta)
    side_by_side = 1 if tokens >= MANY else -(-rotated // tile["HEADS"])
    _rotate_kernel[(min(tokens, MANY), side_by_side)](
        qkv, norms, position, angles, out, *qkv.stride()[:2], *out.stride()[:2],
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
def rotate_heads(
    row, out_row, stride, out_stride, norms, cos, sin, channel, head, heads, end, eps,
    HALF: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate those heads of one token that are below `end`.

    A channel is read by two threads and, in place, written by one of them: the barrier keeps it
    from being written before both have it.
    """
    near, far = load_heads(row, head, stride, channel, end, HALF)
    tl.debug_barrier()
    if norms is not None:
        away = tl.where(channel < HALF, channel + HALF, channel - HALF)
        which = (head >= heads).to(tl.int32)[:, None]
        inverse = inverse_rms(near, eps, HALF)
        kind: tl.constexpr = row.dtype.element_ty
        near = near * inverse * norm_weights(norms, which, channel[None], HALF, kind)
        far = far * inverse * norm_weights(norms, which, away[None], HALF, kind)
    value = turned(near, far, cos[None], sin[None], channel[None], HALF)
    inside = (head < end)[:, None] & (channel < 2 * HALF)[None]
    there = out_row + (head * out_stride)[:, None] + channel[None]
    tl.store(there, value.to(out_row.dtype.element_ty), mask=inside)


@jit
def _rotate_kernel(
    qkv, norms, position, angles, out, row_stride, head_stride, out_row_stride, out_head_stride,
    tokens, chunk, heads, rotated, eps,
    HALF: tl.constexpr, EXPONENT: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes some tokens, and of each a few heads or all of them.

    qkv: float [T, A + 2G, D]. norms: float [2, D], or None. position: int32 [1], or None for 0.
    angles: float32 [T / batch, 2, D/2], or None to compute them. out: as the first A + G heads.
    """
    channel = tl.arange(0, BLOCK)
    start = 0
    if position is not None:
        start = tl.load(position)
    program = tl.program_id(0).to(tl.int64)
    for step in range(tl.cdiv(tokens - program, tl.num_programs(0))):
        token = program + step * tl.num_programs(0)
        cos, sin = cos_and_sin_of(angles, start, token % chunk, channel, HALF, EXPONENT)
        for first in range(tl.program_id(1) * HEADS, rotated, tl.num_programs(1) * HEADS):
            rotate_heads(
                qkv + token * row_stride, out + token * out_row_stride, head_stride,
                out_head_stride, norms, cos, sin, channel,
                first + tl.arange(0, HEADS), heads, rotated, eps, HALF,
            )  # fmt: skip


def inverse_rms_of(x: Tensor, eps: float) -> Tensor:
    """The reference's 1 / rms of each head, [T, heads, 1]."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def weights_by_head(norms: Tensor, heads: int, rotated: int) -> Tensor:
    """float32 [A + G, D]: each head's norm weight."""
    which = torch.arange(rotated, device=norms.device) >= heads
    return norms.float()[which.long()]


def turns_of(x: Tensor, batch: int, start: int, theta: float) -> tuple[Tensor, ...]:
    """Cosine and sine of each token's angles, [T, 1, D/2]."""
    angles = cos_and_sin(x.shape[0] // batch, start, x.shape[2] // 2, theta, x.device)
    return tuple(part.repeat(batch, 1)[:, None] for part in angles)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The reference's rotation; with minus the sine, back."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
