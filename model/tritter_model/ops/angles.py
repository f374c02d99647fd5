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

from tritter_model.ops.jit import jit

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


@jit
def frequencies(channel, HALF: tl.constexpr, EXPONENT: tl.constexpr):
    """Turns that each channel makes from one token to the next, float64."""
    pair = tl.where(channel < HALF, channel, channel - HALF)
    return tl.exp2(pair.to(tl.float64) * EXPONENT) * 0.15915494309189535


@jit
def turned(near, far, position, frequency, channel, HALF: tl.constexpr, BACK: tl.constexpr):
    """Rotate channels [..., D] by a token's angles; `far` holds the channels they turn with.

    Args:
        near: float32, the channels that are wanted.
        far: float32, for each the channel half of D away.
        position: absolute position of the token.
        frequency: of each channel, from `frequencies`.
        channel: their numbers.
        HALF: D / 2.
        BACK: turn the other way.
    """
    cos, sin = _cos_and_sin(position.to(tl.float64) * frequency)
    if BACK:
        sin = -sin
    return near * cos + tl.where(channel < HALF, -far, far) * sin


@jit
def _cos_and_sin(turns):
    """Of float64 numbers of turns: polynomials within an eighth of a turn of a quarter (Cephes)."""
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
