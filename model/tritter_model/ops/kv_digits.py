"""Codes of a quantised cache taken apart in registers, for tensor cores.

Codes become digits of at most 4 bits. The digits of a byte are its planes with int4 and int2, see
`kv_codec`, and the two halves of an int8 code.

- As they are (`raw`) they come plus `OFFSET`: 128 to 143 are bfloat16 numbers whose last bits are
  the digit, so that one instruction makes two of them. That is for keys, whose sums are over the
  channels of one token; who multiplies them takes the offset off a sum.
- Else they come less half their range, -8 to 7, or -2 to 1 with int2, for an instruction more. That
  is for values, whose sums are over many tokens and come to little: with the offset in them, what
  tensor cores cut off would be seen.
"""

# mypy: disable-error-code="assignment"
# Tuples that grow in unrolled loops have another type each time.

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_model.ops.jit import interpreted, jit

if TYPE_CHECKING:
    import triton.language as tl

OFFSET = 128
_MASK = {4: "0x0F0F0F0F", 2: "0x03030303"}
_LESS = {4: "0xC308C308", 2: "0xC302C302"}
"""-(128 + half the range), twice."""
_CENTRE = ["mov.b32 one, 0x3F803F80;", "mov.b32 less, {};"]
_PAIRS = ("0x4140", "0x4342")
_MASK_OF_PAIRS = {4: "0x000F000F", 2: "0x00030003"}


def digits_ptx(digit: int, words: bool, raw: bool) -> str | None:
    """The PTX that `digits` is to use, or with `words` `digits_of_words`; none if interpreted.

    Two digits at a time: a byte below 0x43 is the bfloat16 128 + byte.
    """
    if interpreted():
        return None
    pairs = 16 // digit
    source = 2 * pairs if words else pairs
    lines = [] if raw else [line.format(_LESS[digit]) for line in _CENTRE]
    for pair in range(pairs):
        lines += [
            f"shr.b32 x, ${source}, {digit * (pair // 2)};",
            f"and.b32 x, x, {_MASK[digit]};",
            f"prmt.b32 x, x, 0x43434343, {_PAIRS[pair % 2]};",
            *([] if raw else ["fma.rn.bf16x2 x, x, one, less;"]),
            f"mov.b32 {{${2 * pair}, ${2 * pair + 1}}}, x;" if words else f"mov.b32 ${pair}, x;",
        ]
    return "\n".join(["{ .reg .b32 x, one, less;", *lines, "}"])


def digits_of_pairs_ptx(digit: int, raw: bool) -> str | None:
    """The PTX that `digits_of_pairs` is to use; none if interpreted.

    A digit of two pairs at a time, as the low bits of the bfloat16 128.
    """
    if interpreted():
        return None
    parts = 16 // digit
    lines = ["mov.b32 exponent, 0x43004300;"]
    lines += [] if raw else [line.format(_LESS[digit]) for line in _CENTRE]
    for part in range(parts):
        lines += [
            f"shr.b32 x, ${parts}, {digit * part};",
            f"lop3.b32 x, x, {_MASK_OF_PAIRS[digit]}, exponent, 0xEA;",
            f"mov.b32 ${part}, x;" if raw else f"fma.rn.bf16x2 ${part}, x, one, less;",
        ]
    return "\n".join(["{ .reg .b32 x, exponent, one, less;", *lines, "}"])


@jit
def digits(packed, DIGIT: tl.constexpr, PTX: tl.constexpr, RAW: tl.constexpr):
    """The digits of bytes, lowest first: bfloat16 tensors of the same shape."""
    PARTS: tl.constexpr = 8 // DIGIT
    if PTX is not None:
        return tl.inline_asm_elementwise(
            PTX, "=&r," * (2 * PARTS) + "r", [packed],
            dtype=(tl.bfloat16,) * PARTS, is_pure=True, pack=4,
        )  # fmt: skip
    found = ()
    for i in tl.static_range(PARTS):
        found += (_digit(packed.to(tl.int32) >> (DIGIT * i), DIGIT, RAW),)
    return found


@jit
def _digit(code, DIGIT: tl.constexpr, RAW: tl.constexpr):
    """The lowest digit, and the offset or less half its range."""
    MORE: tl.constexpr = 128 if RAW else -(2 ** (DIGIT - 1))
    return ((code & (2**DIGIT - 1)) + MORE).to(tl.float32).to(tl.bfloat16)


@jit
def digits_of_words(words, DIGIT: tl.constexpr, PTX: tl.constexpr):
    """As `digits`, not raw, for int32 [M, N] words of four bytes: bfloat16 tensors [M, 4 N].

    Words reach shared memory by asynchronous copies also where bytes do not.
    """
    PARTS: tl.constexpr = 8 // DIGIT
    if PTX is not None:
        of_bytes = tl.inline_asm_elementwise(
            PTX, "=&h," * (4 * PARTS) + "r", [words],
            dtype=(tl.bfloat16,) * (4 * PARTS), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        of_bytes = ()
        for i in tl.static_range(4 * PARTS):
            of_bytes += (_digit(words >> (8 * (i % 4) + DIGIT * (i // 4)), DIGIT, False),)
    found = ()
    for i in tl.static_range(PARTS):
        even = tl.join(of_bytes[4 * i], of_bytes[4 * i + 2])
        odd = tl.join(of_bytes[4 * i + 1], of_bytes[4 * i + 3])
        found += (tl.reshape(tl.join(even, odd), (words.shape[0], 4 * words.shape[1])),)
    return found


@jit
def digits_of_pairs(pairs, DIGIT: tl.constexpr, PTX: tl.constexpr, RAW: tl.constexpr):
    """The digits of int16 pairs of bytes, those of the lower byte first: bfloat16, same shape."""
    PARTS: tl.constexpr = 16 // DIGIT
    if PTX is not None:
        return tl.inline_asm_elementwise(
            PTX, "=&r," * PARTS + "r", [pairs],
            dtype=(tl.bfloat16,) * PARTS, is_pure=True, pack=2,
        )  # fmt: skip
    found = ()
    for i in tl.static_range(PARTS):
        found += (_digit(pairs.to(tl.int32) >> (DIGIT * i), DIGIT, RAW),)
    return found
