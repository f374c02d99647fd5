"""Dynamic 8-bit codes: numbers whose size spans many decades, with most digits for the largest.

The map is that of Dettmers (2016), which 8-bit optimizers use (Dettmers et al., 2022). With b bits,
the codes 1 to 2**b - 1 are b decades: the code j = 2**i + r, r < 2**i, stands for the middle of the
r-th of 2**i equal parts of [0.1, 1] * 10**(i - b + 1). The code 0 is zero. Published tables add a
last code for 1; here the scale of a block is such that its largest number has the last code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.jit import jit

if TYPE_CHECKING:
    import triton.language as tl

LOG2_10, LOG10_2 = 3.321928094887362, 0.3010299956639812
SMALLEST = 1e-30
"""Takes the place of a block's largest number where all are zero."""


def largest_value(bits: int) -> float:
    """What the last code stands for."""
    bins = 1 << (bits - 1)
    return 0.1 + 0.9 * (bins - 0.5) / bins


def decode(codes: Tensor, bits: int) -> Tensor:
    """Numbers, float32, of codes from 0 to 2**bits - 1."""
    code = codes.float()
    decade = code.clamp(min=1).log2().floor_()
    bins = torch.exp2(decade)
    part = 0.1 + 0.9 * ((code + 0.5) / bins - 1)
    value = torch.exp2((decade - (bits - 1)) * LOG2_10) * part
    return torch.where(code == 0, 0.0, value)


def encode(values: Tensor, bits: int) -> Tensor:
    """Codes, as float32, of numbers from 0 to `largest_value`."""
    decade = (values.clamp(min=SMALLEST).log2() * LOG10_2).ceil_() + (bits - 1)
    decade.clamp_(0, bits - 1)
    bins = torch.exp2(decade)
    unit = values * torch.exp2((bits - 1 - decade) * LOG2_10)
    part = ((unit - 0.1) * (bins / 0.9)).floor_()
    code = bins + torch.minimum(part.clamp_(min=0), bins - 1)
    return torch.where(values < zero_below(bits), 0.0, code)


def zero_below(bits: int) -> float:
    """Half of what the code 1 stands for: zero is nearer to what is smaller."""
    return float(0.275 * 10.0 ** (1 - bits))


@jit
def decode_dynamic(code, BITS: tl.constexpr):
    """Numbers of codes, float32 both."""
    bits = tl.maximum(code, 1.0).to(tl.int32, bitcast=True)
    decade = ((bits >> 23) - 127).to(tl.float32)
    bins_inverse = ((254 << 23) - (bits & 0x7F800000)).to(tl.float32, bitcast=True)
    part = 0.1 + 0.9 * ((code + 0.5) * bins_inverse - 1)
    value = tl.exp2((decade - (BITS - 1)) * 3.321928094887362) * part
    return tl.where(code == 0, 0.0, value)


@jit
def encode_dynamic(value, BITS: tl.constexpr, ZERO_BELOW: tl.constexpr):
    """Codes, float32, of numbers."""
    decade = tl.ceil(tl.log2(tl.maximum(value, 1e-30)) * 0.3010299956639812) + (BITS - 1)
    decade = tl.minimum(tl.maximum(decade, 0.0), BITS - 1.0)
    bins = tl.exp2(decade)
    unit = value * tl.exp2((BITS - 1 - decade) * 3.321928094887362)
    part = tl.floor((unit - 0.1) * (bins * 1.1111111111111112))
    code = bins + tl.minimum(tl.maximum(part, 0.0), bins - 1)
    return tl.where(value < ZERO_BELOW, 0.0, code)
