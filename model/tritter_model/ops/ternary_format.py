"""How ternary weights {-1, 0, +1} are stored: packing and unpacking, in PyTorch and in Triton.

Codes are u = w + 1 in {0, 1, 2}; a row of K weights packs into planes, so that unpacking needs no
interleave:

- 2 bits: byte j holds u at k = j + i * ceil(K / 4) in its bits 2i and 2i + 1, i = 0..3.
- 1.6 bits: byte j of W holds the base-3 number v of the digits u at k = j + i * W, i = 0..4, most
  significant first, stored as ceil(256 * v / 243). Digit n is then
  (((byte * 3**n) & 255) * 3) >> 8: a multiplication instead of a division. W is ceil(K / 5), from
  320 inputs on a multiple of 16, which is what a thread loads at once.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.jit import interpreted, jit

if TYPE_CHECKING:
    import triton.language as tl

PER_BYTE = {"ternary-2bit": 4, "ternary-1.6bit": 5}
WHOLE_LOADS_FROM = 320
"""Inputs of a layer; with fewer, a row made longer could have as many bytes as at 2 bits."""


def packed_width(in_features: int, weight_format: str) -> int:
    """Bytes of one packed row of `in_features` weights.

    Raises:
        ValueError: so few inputs that the width would not tell 1.6 bits from 2.
    """
    width = _width(in_features, weight_format)
    if weight_format == "ternary-1.6bit" and width == -(-in_features // 4):
        raise ValueError(
            f"got {in_features} inputs; 1.6-bit weights need 17 or more; use ternary-2bit"
        )
    return width


def _width(in_features: int, weight_format: str) -> int:
    width = -(-in_features // PER_BYTE[weight_format])
    padded = weight_format == "ternary-1.6bit" and in_features >= WHOLE_LOADS_FROM
    return -(-width // 16) * 16 if padded else width


def digits(packed: Tensor, in_features: int) -> int:
    """Weights a byte, 4 or 5, of packed rows: their width tells.

    Raises:
        ValueError: a width that rows of `in_features` weights have in neither format.
    """
    widths = {form: _width(in_features, form) for form in PER_BYTE}
    for form, width in widths.items():
        if packed.shape[1] == width:
            return PER_BYTE[form]
    raise ValueError(
        f"got packed rows of {packed.shape[1]} bytes for {in_features} inputs,"
        f" expected {widths['ternary-2bit']} (2 bits) or {widths['ternary-1.6bit']} (1.6 bits)"
    )


def pack(codes_NK: Tensor, weight_format: str) -> Tensor:
    """Pack codes u = w + 1 (uint8 [N, K]) into uint8 [N, packed_width]; padding is u = 1 (zero)."""
    per_byte = PER_BYTE[weight_format]
    rows, width = codes_NK.shape[0], packed_width(codes_NK.shape[1], weight_format)
    padded = codes_NK.new_ones((rows, per_byte * width))
    padded[:, : codes_NK.shape[1]] = codes_NK
    planes = padded.view(rows, per_byte, width).to(torch.int16)
    if per_byte == 4:
        return sum(planes[:, i] << (2 * i) for i in range(4)).to(torch.uint8)  # type: ignore[union-attr]
    value = planes[:, 0]
    for i in range(1, 5):
        value = value * 3 + planes[:, i]
    return ((value.to(torch.int32) * 256 + 242) // 243).to(torch.uint8)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """The codes u = w + 1 of packed rows: uint8 [N, in_features]. The width tells the format."""
    if digits(packed, in_features) == 4:
        planes = [(packed >> (2 * i)) & 3 for i in range(4)]
    else:
        wide = packed.to(torch.int32)
        planes = [((((wide * 3**i) & 255) * 3) >> 8).to(torch.uint8) for i in range(5)]
    return torch.cat(planes, 1)[:, :in_features]


NEXT_2BIT = "and.b32 $0, $2, 0x03030303; shr.b32 $1, $2, 2;"

# Bytes 0 and 2 and bytes 1 and 3 as two pairs of 16-bit numbers. Three times a byte is at most 765:
# no carry leaves a pair, the high bytes are the digits, the low bytes what is left.
NEXT_1BIT6 = """{
    .reg .b32 even, odd;
    and.b32 even, $2, 0x00FF00FF;
    prmt.b32 odd, $2, 0, 0x4341;
    mul.lo.u32 even, even, 3;
    mul.lo.u32 odd, odd, 3;
    prmt.b32 $0, even, odd, 0x7351;
    prmt.b32 $1, even, odd, 0x6240;
}"""


def next_code_ptx(per_byte: int) -> str | None:
    """The PTX that `next_code` is to use; none in the interpreter."""
    if interpreted():
        return None
    return NEXT_2BIT if per_byte == 4 else NEXT_1BIT6


@jit
def next_code(rest, DIGITS: tl.constexpr, PTX: tl.constexpr):
    """The first code of each byte, int8, and the bytes of those behind it, uint8.

    The PTX takes four bytes in a register at once, which the compiler on its own does not.
    """
    if PTX is not None:
        return tl.inline_asm_elementwise(
            PTX, "=&r,=&r,r", [rest], dtype=(tl.int8, tl.uint8), is_pure=True, pack=4
        )
    if DIGITS == 4:
        return (rest & 3).to(tl.int8), rest >> 2
    product = rest.to(tl.int32) * 3
    return (product >> 8).to(tl.int8), (product & 255).to(tl.uint8)


@jit
def next_codes_of_words(rest, DIGITS: tl.constexpr, PTX: tl.constexpr):
    """As `next_code`, for int32 words of four bytes."""
    if PTX is not None:
        return tl.inline_asm_elementwise(
            PTX, "=&r,=&r,r", [rest], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )
    if DIGITS == 4:
        return rest & 0x03030303, rest >> 2
    even, odd = (rest & 0x00FF00FF) * 3, ((rest >> 8) & 0x00FF00FF) * 3
    codes = ((even >> 8) & 0x00030003) | (odd & 0x03000300)
    return codes, (even & 0x00FF00FF) | ((odd & 0x00FF00FF) << 8)
