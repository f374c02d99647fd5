"""Ternary weights, packed, times int8 activations: sums of integers, exact.

With the codes u = w + 1 the product is y = row_scale * scale * (sum(x * u) - sum(x)); the second
sum comes with the quantised rows. Each kernel sums in int32 and allocates nothing: where there are
few tokens, the warps of a program take different parts of K and add up at the end, so K is split
without scratch; where there are many, tiles are made smaller until there are enough of them.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_contiguous
from tritter_model.ops.dependent import dependent, wait_for_the_launch_ahead
from tritter_model.ops.jit import block, capability, jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import QuantisedRows
from tritter_model.ops.ternary_format import (
    digits,
    next_code,
    next_code_ptx,
    next_codes_of_words,
    unpack,
)
from tritter_model.ops.tuning import tuning

if TYPE_CHECKING:
    import triton.language as tl

FEW = 32
"""Up to so many tokens a program takes them all."""
ENOUGH_TILES = 256
"""About two for each multiprocessor of the cards there are."""


def ternary_linear(
    rows: QuantisedRows, packed: Tensor, scale_N: Tensor, dtype: torch.dtype
) -> Tensor:
    """rows @ weightᵀ for packed weights: [T, N] in `dtype`, from exact integer sums.

    Args:
        rows: int8 activations [T, K].
        packed: uint8 [N, packed_width], 2 or 1.6 bits a weight; the width tells which.
        scale_N: float32 scale of each output.
        dtype: type of the result.

    Raises:
        ValueError: packed rows of a width that K weights do not have.
    """
    out = packed.new_empty((rows.codes.shape[0], packed.shape[0]), dtype=dtype)
    ternary_linear_into(rows, packed, scale_N, out)
    return out


def ternary_linear_into(rows: QuantisedRows, packed: Tensor, scale_N: Tensor, out: Tensor) -> None:
    """`ternary_linear` into memory that is there: `out`, [T, N]."""
    tokens, inputs = rows.codes.shape
    expect("the rows' codes", rows.codes, torch.int8, tokens, inputs)
    expect("packed weights", packed, torch.uint8, -1, -1)
    expect("the weights' scale", scale_N, torch.float32, packed.shape[0])
    expect("the result", out, FLOATS, tokens, packed.shape[0])
    digits(packed, inputs)
    _ternary_linear(*rows, packed, scale_N, out)


@operator(
    "ternary_linear(Tensor codes, Tensor row_scale, Tensor total, Tensor packed, Tensor scale,"
    " Tensor(a!) out) -> ()"
)
def _ternary_linear(
    codes: Tensor, row_scale: Tensor, total: Tensor, packed: Tensor, scale: Tensor, out: Tensor
) -> None:
    """The sums in float32, where they are exact below K = 132,104."""
    del total  # the kernel's: the reference takes the offset off the weights instead
    for rows in torch.arange(packed.shape[0]).split(_rows_at_once(codes.shape[1])):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        weight = unpack(packed[part], codes.shape[1]).float() - 1
        sums = codes.float() @ weight.T
        out[:, part] = sums * (row_scale[:, None] * scale[None, part])


def _rows_at_once(width: int) -> int:
    """Rows of weights that the reference unpacks at a time: about 64 MiB in float32."""
    return max(1, (1 << 24) // width)


@_ternary_linear.kernel
def _launch(
    codes: Tensor, row_scale: Tensor, total: Tensor, packed: Tensor, scale: Tensor, out: Tensor
) -> None:
    for name, tensor in (
        ("the rows' codes", codes),
        ("packed weights", packed),
        ("the result", out),
    ):
        expect_contiguous(name, tensor)
    per_byte = digits(packed, codes.shape[1])
    tensors = (codes, row_scale, total, packed, scale, out)
    if codes.shape[0] == 1 and _in_words(codes, packed):
        _launch_one_row(tensors, per_byte)
    elif codes.shape[0] <= FEW:
        _launch_few_rows(tensors, per_byte)
    else:
        _launch_many_rows(tensors, per_byte)


def _in_words(codes: Tensor, packed: Tensor) -> bool:
    """Whether rows of both can be read four bytes at a time."""
    starts = (tensor.storage_offset() * tensor.element_size() for tensor in (codes, packed))
    sizes = (codes.shape[1], packed.shape[1])
    return not any(number % 4 for number in (*sizes, *starts))


def _launch_one_row(tensors: tuple[Tensor, ...], per_byte: int) -> None:
    codes, row_scale, total, packed, scale, out = tensors
    (outputs, width), inputs = packed.shape, codes.shape[1]
    _ternary_one_row_kernel[(-(-outputs // 8),)](
        codes.view(torch.int32), row_scale, total, packed.view(torch.int32), scale, out,
        outputs, width, inputs, ROWS=8, WORDS=256, DIGITS=per_byte,
        EXACT=width * per_byte == inputs, PTX=next_code_ptx(per_byte), num_warps=2, **dependent(),
    )  # fmt: skip


@jit
def _dot4(a, b, sums, PTX: tl.constexpr):
    """Add to `sums` the products of four int8 pairs, a word each."""
    if PTX is not None:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, sums],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    for byte in tl.static_range(4):
        sums += ((a << (24 - 8 * byte)) >> 24) * ((b << (24 - 8 * byte)) >> 24)
    return sums


@jit
def _ternary_one_row_kernel(
    codes, row_scale, total, packed, scale, out, outputs, width, inputs,
    ROWS: tl.constexpr, WORDS: tl.constexpr, DIGITS: tl.constexpr, EXACT: tl.constexpr,
    PTX: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A program computes a few outputs, its threads side by side along K.

    Scales and the first weights are loaded before it waits, and weights a trip ahead of their use:
    a program is so short that each wait for memory is a good part of it.

    codes: int32 [K / 4], four int8 each. row_scale: float32 [1]. total: int32 [1]. packed: int32
    [N, width / 4], four bytes each. scale: float32 [N]. out: float [N].
    """
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    words = width // 4
    rows = packed + (n.to(tl.int64) * words)[:, None]
    factor = tl.load(scale + n, mask=n < outputs, other=0)
    following = _weights_from(0, rows, n, words, outputs, WORDS)
    wait_for_the_launch_ahead(DEPENDENT)
    factor *= tl.load(row_scale)
    offset = tl.load(total)
    sums = tl.zeros((ROWS, WORDS), tl.int32)
    for start in range(0, words, WORDS):
        rest = following
        following = _weights_from(start + WORDS, rows, n, words, outputs, WORDS)
        j = start + tl.arange(0, WORDS)
        for i in tl.static_range(DIGITS):
            k = i * words + j
            held = j < words if EXACT else (j < words) & (k < inputs // 4)
            x = tl.load(codes + k, mask=held, other=0)
            weights, rest = next_codes_of_words(rest, DIGITS, PTX)
            sums = _dot4(weights, tl.broadcast_to(x[None], (ROWS, WORDS)), sums, PTX)
    y = (tl.sum(sums, 1) - offset).to(tl.float32) * factor
    tl.store(out + n, y.to(out.dtype.element_ty), mask=n < outputs)


@jit
def _weights_from(start, rows, n, words, outputs, WORDS: tl.constexpr):
    """Packed words [ROWS, WORDS] of a trip; zeros beyond a row's end."""
    j = start + tl.arange(0, WORDS)
    inside = (n < outputs)[:, None] & (j < words)[None]
    return tl.load(rows + j[None], mask=inside, other=0)


def _launch_few_rows(tensors: tuple[Tensor, ...], per_byte: int) -> None:
    tokens, outputs = tensors[-1].shape
    tile = next((n for n in (64, 32) if outputs >= n * ENOUGH_TILES), 16)
    _ternary_few_rows_kernel[(-(-outputs // tile),)](
        *tensors, *_sizes(tensors, per_byte),
        TOKENS=max(block(tokens), 16), OUTPUTS=tile, BYTES=64, SPLITS=4, num_warps=4, num_stages=3,
        **_form(tensors, per_byte),
    )  # fmt: skip


def _sizes(tensors: tuple[Tensor, ...], per_byte: int) -> tuple[int, int, int, int]:
    """Tokens, outputs, inputs, and the bytes of a packed row in units of `_form`."""
    codes, packed = tensors[0], tensors[3]
    width = packed.shape[1]
    return (
        codes.shape[0],
        packed.shape[0],
        codes.shape[1],
        width // _form(tensors, per_byte)["UNIT"],
    )


def _form(tensors: tuple[Tensor, ...], per_byte: int) -> dict[str, Any]:
    """What a kernel is compiled for; UNIT is what a packed row's bytes are a multiple of."""
    codes, packed = tensors[0], tensors[3]
    width = packed.shape[1]
    return {
        "DIGITS": per_byte,
        "UNIT": next(unit for unit in (16, 4, 2, 1) if width % unit == 0),
        "EXACT": width * per_byte == codes.shape[1],
        "PTX": next_code_ptx(per_byte),
    }


@jit
def _ternary_few_rows_kernel(
    codes, row_scale, total, packed, scale, out, tokens, outputs, inputs, units,
    UNIT: tl.constexpr, DIGITS: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, BYTES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A program computes a few outputs of all tokens; each of its warps takes a part of K.

    codes: int8 [T, K]. row_scale: float32 [T]. total: int32 [T]. packed: uint8 [N, units * UNIT].
    scale: float32 [N]. out: float [T, N].
    """
    width = units * UNIT
    m = tl.arange(0, TOKENS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = packed + (n.to(tl.int64) * units * UNIT)[None, :, None]
    activations = codes + (m.to(tl.int64) * inputs)[None, None]
    part = tl.arange(0, SPLITS)[:, None] * BYTES + tl.arange(0, BYTES)[None]
    sums = tl.zeros((SPLITS, OUTPUTS, TOKENS), tl.int32)
    for start in range(0, width, SPLITS * BYTES):
        j = start + part
        inside = (j < width)[:, None] & (n < outputs)[None, :, None]
        rest = tl.load(rows + j[:, None], mask=inside, other=0)
        for i in tl.static_range(DIGITS):
            k = i * width + j
            held = j < width if EXACT else (j < width) & (k < inputs)
            x = tl.load(
                activations + k[:, :, None],
                mask=held[:, :, None] & (m < tokens)[None, None],
                other=0,
            )
            weights, rest = next_code(rest, DIGITS, PTX)
            sums = tl.dot(weights, x, sums, out_dtype=tl.int32)
    _store(tl.sum(sums, 0), n, m, row_scale, total, scale, out, tokens, outputs)


@jit
def _store(sums, n, m, row_scale, total, scale, out, tokens, outputs):
    """Scale a tile [N, T] of sums over codes and write it."""
    offset = tl.load(total + m, mask=m < tokens, other=0)[None]
    factor = tl.load(row_scale + m, mask=m < tokens, other=0)[None]
    factor = factor * tl.load(scale + n, mask=n < outputs, other=0)[:, None]
    y = (sums - offset).to(tl.float32) * factor
    at = (m.to(tl.int64) * outputs)[None] + n[:, None]
    inside = (m < tokens)[None] & (n < outputs)[:, None]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


def _launch_many_rows(tensors: tuple[Tensor, ...], per_byte: int) -> None:
    tokens, outputs = tensors[-1].shape
    tile = _many_rows_tile(tokens, outputs, per_byte)
    _ternary_many_rows_kernel[(-(-outputs // tile["OUTPUTS"]), -(-tokens // tile["TOKENS"]))](
        *tensors, *_sizes(tensors, per_byte), **tile, **_form(tensors, per_byte)
    )


def _many_rows_tile(tokens: int, outputs: int, per_byte: int) -> dict[str, int]:
    """Tokens and outputs of a program, bytes of a row that it takes at a time, warps and stages.

    256 outputs are for Hopper, which multiplies from shared memory: 131,072 bytes of it with three
    stages, of 232,448. Other cards would spill registers. Such a program has a multiprocessor to
    itself, so half as many tiles are enough.
    """
    choice, held = tuning(), 64 if per_byte == 4 else 32
    if -(-tokens // 128) * -(-outputs // 128) < ENOUGH_TILES:
        stages = choice.many_rows_small_stages
        return {"TOKENS": 64, "OUTPUTS": 64, "BYTES": held, "num_warps": 4, "num_stages": stages}
    wide = choice.many_rows_tile if capability() in (0, 90) else 128
    stages = choice.many_rows_stages
    return {"TOKENS": 128, "OUTPUTS": wide, "BYTES": held, "num_warps": 8, "num_stages": stages}


@jit
def _ternary_many_rows_kernel(
    codes, row_scale, total, packed, scale, out, tokens, outputs, inputs, units,
    UNIT: tl.constexpr, DIGITS: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A program computes a tile. The weights stand on the left, where they stay in registers.

    codes: int8 [T, K]. row_scale: float32 [T]. total: int32 [T]. packed: uint8 [N, units * UNIT].
    scale: float32 [N]. out: float [T, N].
    """
    width = units * UNIT
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    rows = packed + (n.to(tl.int64) * units * UNIT)[:, None]
    activations = codes + (m.to(tl.int64) * inputs)[None]
    sums = tl.zeros((OUTPUTS, TOKENS), tl.int32)
    for start in range(0, width, BYTES):
        j = start + tl.arange(0, BYTES)
        inside = (j < width)[None] & (n < outputs)[:, None]
        rest = tl.load(rows + j[None], mask=inside, other=0)
        for i in tl.static_range(DIGITS):
            k = i * width + j
            held = j < width if EXACT else (j < width) & (k < inputs)
            x = tl.load(activations + k[:, None], mask=held[:, None] & (m < tokens)[None], other=0)
            weights, rest = next_code(rest, DIGITS, PTX)
            sums = tl.dot(weights, x, sums, out_dtype=tl.int32)
    _store(sums, n, m, row_scale, total, scale, out, tokens, outputs)
