"""Angles of rotary embeddings, to float32 at every position.

A position times a frequency is many turns, of which only the fraction counts: at position 131,071 a
product in float32 is off by up to 0.004 radians, the distance between two float32 numbers of that
size. So frequencies, products and the whole turns that are taken off are float64; what is left, at
most an eighth of a turn to either side of a quarter, is float32. Cosine and sine are then within
2e-7 of the exact ones.

Channel c of D turns with channel c + D/2 or c - D/2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.checks import expect, expect_contiguous
from tritter_model.ops.jit import block, jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl


def cos_and_sin(
    tokens: int, start: int, half: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of consecutive tokens' angles, float32 [tokens, half]: the reference."""
    inverse = theta ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
    positions = torch.arange(start, start + tokens, device=device, dtype=torch.float64)
    angles = torch.outer(positions, inverse)
    return angles.cos().float(), angles.sin().float()


def frequency_exponent(theta: float, half: int) -> float:
    """What a channel's number is multiplied by to give the power of two of its frequency."""
    return -math.log2(theta) / half


def rotary_angles(position: Tensor, tokens: int, width: int, theta: float) -> Tensor:
    """Cosine and sine of a step's tokens, computed once for all layers: float32 [tokens, 2, D/2].

    Rotating with them gives the bits of rotating with the position.

    Args:
        position: int32 [1], absolute position of each sequence's first token.
        tokens: new ones of each sequence.
        width: D.
        theta: the base of the frequencies.
    """
    expect("the position", position, torch.int32, 1)
    out = position.new_empty((tokens, 2, width // 2), dtype=torch.float32)
    _rotary_angles(position, theta, out)
    return out


@operator("rotary_angles(Tensor position, float theta, Tensor(a!) out) -> ()")
def _rotary_angles(position: Tensor, theta: float, out: Tensor) -> None:
    tokens, _, half = out.shape
    for i, part in enumerate(cos_and_sin(tokens, int(position), half, theta, out.device)):
        out[:, i] = part


@_rotary_angles.kernel
def _launch(position: Tensor, theta: float, out: Tensor) -> None:
    expect_contiguous("the angles", out)
    half = out.shape[2]
    _rotary_angles_kernel[(out.shape[0],)](
        position, out, HALF=half, EXPONENT=frequency_exponent(theta, half), BLOCK=block(half),
        num_warps=min(max(block(half) // 32, 1), 4),
    )  # fmt: skip


@jit
def _rotary_angles_kernel(
    position, out, HALF: tl.constexpr, EXPONENT: tl.constexpr, BLOCK: tl.constexpr
):
    """A program takes a token. position: int32 [1]. out: float32 [tokens, 2, D/2]."""
    token, channel = tl.program_id(0), tl.arange(0, BLOCK)
    cos, sin = cos_and_sin_at(tl.load(position) + token, frequencies(channel, HALF, EXPONENT))
    at = out + token.to(tl.int64) * (2 * HALF) + channel
    tl.store(at, cos, mask=channel < HALF)
    tl.store(at + HALF, sin, mask=channel < HALF)


@jit
def cos_and_sin_of(angles, start, token, channel, HALF: tl.constexpr, EXPONENT: tl.constexpr):
    """For each channel, of a token that is so many behind `start`: loaded where there are angles.

    angles: float32 [tokens, 2, D/2], or None. channel: their numbers, [D or more].
    """
    if angles is not None:
        pair = tl.where(channel < HALF, channel, channel - HALF)
        at = angles + token * (2 * HALF) + pair
        inside = pair < HALF
        return tl.load(at, mask=inside, other=0), tl.load(at + HALF, mask=inside, other=0)
    else:
        return cos_and_sin_at(start + token, frequencies(channel, HALF, EXPONENT))


@jit
def frequencies(channel, HALF: tl.constexpr, EXPONENT: tl.constexpr):
    """Turns that each channel makes from one token to the next, float64."""
    pair = tl.where(channel < HALF, channel, channel - HALF)
    return tl.exp2(pair.to(tl.float64) * EXPONENT) * 0.15915494309189535


@jit
def turned(near, far, cos, sin, channel, HALF: tl.constexpr):
    """Rotate channels [..., D] by a token's angles; `far` holds the channels they turn with.

    Args:
        near: float32, the channels that are wanted.
        far: float32, for each the channel half of D away.
        cos: of each channel's angle.
        sin: of each channel's angle; with minus the sine, the other way.
        channel: their numbers.
        HALF: D / 2.
    """
    return near * cos + tl.where(channel < HALF, -far, far) * sin


@jit
def cos_and_sin_at(position, frequency):
    """Of float64 frequencies: polynomials within an eighth of a turn of a quarter (Cephes)."""
    turns = position.to(tl.float64) * frequency
    quarter = tl.floor(turns * 4 + 0.5)
    x = (turns - quarter * 0.25).to(tl.float32) * 6.2831853
    square = x * x
    sin = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square
    sin = sin * x + x
    cos = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cos = cos * square * square - 0.5 * square + 1.0
    number = (quarter - tl.floor(quarter * 0.25) * 4).to(tl.int32)
    odd = (number & 1) == 1
    turned_cos, turned_sin = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    return tl.where(number >= 2, -turned_cos, turned_cos), tl.where(
        number >= 2, -turned_sin, turned_sin
    )
