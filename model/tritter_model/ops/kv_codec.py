"""How keys and values become 8, 4 or 2 bits, and back.

A group of numbers shares a float16 minimum and a float16 scale: x = code * scale + minimum. Keys
are grouped along tokens, one group a channel; values along channels, one group a token. Along D,
8 / bits planes share a byte: with int4, byte d holds the elements d and d + D/2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.jit import jit
from tritter_model.ops.rows import round_to_even

if TYPE_CHECKING:
    import triton.language as tl


def quantise(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise along `dim`: unpacked uint8 codes, float16 scale and minimum (`dim` of size 1)."""
    wide = x.float()
    low, high = wide.amin(dim, keepdim=True), wide.amax(dim, keepdim=True)
    levels = torch.full_like(low, 2**bits - 1)  # a number would be multiplied by its reciprocal
    scale = ((high - low) / levels).clamp_(min=1e-6).half()
    minimum = low.half()
    codes = ((wide - minimum.float()) / scale.float()).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, minimum


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a narrower type; beyond its largest number there is neither infinity nor NaN."""
    limit = torch.finfo(dtype).max
    return x.float().clamp(-limit, limit).to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [..., D] into [..., D * bits / 8]."""
    planes = codes.chunk(8 // bits, -1)
    packed = planes[0].clone()
    for i, plane in enumerate(planes[1:], 1):
        packed |= plane << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The uint8 codes [..., D] of packed ones."""
    planes = [(packed >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)]
    return torch.cat(planes, -1)


def quantise_values(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values [..., D]: packed codes, scale and minimum, both [..., D / group]."""
    grouped = x.unflatten(-1, (-1, group))
    codes, scale, minimum = quantise(grouped, bits, -1)
    return pack(codes.flatten(-2), bits), scale[..., 0], minimum[..., 0]


def dequantise_values(packed: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """float32 [..., D] of packed values."""
    codes = unpack(packed, bits).float().unflatten(-1, (scale.shape[-1], -1))
    values: Tensor = codes * scale.float()[..., None] + minimum.float()[..., None]
    return values.flatten(-2)


def quantise_key_group(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """One group of keys [..., tokens, D]: packed codes, scale and minimum, both [..., D]."""
    codes, scale, minimum = quantise(x, bits, -2)
    return pack(codes, bits), scale[..., 0, :], minimum[..., 0, :]


def dequantise_keys(packed: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """float32 [..., D]; scale and minimum are already those of each token's group."""
    return unpack(packed, bits).float() * scale.float() + minimum.float()


@jit
def scale_and_minimum(low, high, BITS: tl.constexpr):
    """float16 scale and minimum of groups between two numbers."""
    step = tl.div_rn(high - low, 2.0**BITS - 1)
    return tl.maximum(step, 1e-6).to(tl.float16), low.to(tl.float16)


@jit
def packed_codes(x, scale, minimum, BITS: tl.constexpr, PTX: tl.constexpr):
    """Bytes [tokens, columns] of float32 numbers [tokens, planes, columns].

    Every step is rounded alike here and in the reference, so the codes are the same.
    """
    steps = tl.div_rn(x - minimum.to(tl.float32), scale.to(tl.float32))
    codes = round_to_even(tl.minimum(tl.maximum(steps, 0.0), 2.0**BITS - 1), PTX)
    plane = tl.arange(0, 8 // BITS)[None, :, None]
    return tl.sum(codes << (plane * BITS), 1).to(tl.uint8)


@jit
def narrowed_to(x, kind: tl.constexpr, LIMIT: tl.constexpr):
    """float32 numbers in a type whose largest number is LIMIT; uint8 stands for fp8 (e4m3).

    Not every card that has the type's bits to store can convert to it, so that is done by hand.
    """
    nan: tl.constexpr = tl.PropagateNan.ALL
    x = tl.minimum(tl.maximum(x, -LIMIT, propagate_nan=nan), LIMIT, propagate_nan=nan)
    if kind == tl.uint8:
        return _fp8_bits(x)
    return x.to(kind)


@jit
def _fp8_bits(x):
    """e4m3 of float32 numbers up to 448, halves to the even one; below 2**-6 its steps are 2**-9.

    Adding 2**14, whose neighbour is 2**-9 away, rounds a small number to that step.
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, normal)
    code = tl.where(size > 0x7F800000, 0x7F, code)  # NaN
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
