"""How keys and values become 8, 4 or 2 bits, and back.

A group of numbers shares a float16 minimum and a float16 scale: x = code * scale + minimum. Keys
are grouped along tokens, one group a channel; values along channels, one group a token. Along D,
8 / bits planes share a byte: with int4, byte d holds the elements d and d + D/2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise along `dim`: unpacked uint8 codes, float16 scale and minimum (`dim` of size 1)."""
    wide = x.float()
    low, high = wide.amin(dim, keepdim=True), wide.amax(dim, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_(min=1e-6).half()
    minimum = low.half()
    codes = ((wide - minimum.float()) / scale.float()).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, minimum


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
