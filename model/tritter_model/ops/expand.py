"""int8 and int4 weights, made floating point again: what a product takes a block of rows of.

Shapes: N rows, K inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_adjacent
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl

INT4_GROUP = 128
BLOCK = 2048


def int4_groups(in_features: int) -> int:
    """Groups of a row of int4 weights; the last may be short."""
    return -(-in_features // INT4_GROUP)


def expand(codes: Tensor, scale: Tensor, out_NK: Tensor) -> None:
    """Write codes * scale to `out`, in any float type.

    Args:
        codes: int8 [N, K], or int4 packed as uint8 [N, ceil(K / 2)]: byte j holds k = j low and
            k = j + ceil(K / 2) high, each as w + 8.
        scale: of int8 float32 [N]; of int4 float16 [N, ceil(K / 128)], one for each 128 inputs.
        out_NK: where the weights go.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    expect("expanded weights", out_NK, FLOATS, -1, -1)
    rows, inputs = out_NK.shape
    if codes.dtype == torch.uint8:
        expect("int4 weights", codes, torch.uint8, rows, -(-inputs // 2))
        expect("their scale", scale, torch.float16, rows, int4_groups(inputs))
    else:
        expect("int8 weights", codes, torch.int8, rows, inputs)
        expect("their scale", scale, torch.float32, rows)
    _expand(codes, scale, out_NK)


@operator("expand(Tensor codes, Tensor scale, Tensor(a!) out) -> ()")
def _expand(codes: Tensor, scale: Tensor, out: Tensor) -> None:
    if codes.dtype == torch.int8:
        out.copy_(codes * scale[:, None])
        return
    nibbles = torch.cat((codes & 15, codes >> 4), 1)[:, : out.shape[1]].to(torch.int8) - 8
    groups = scale.float().repeat_interleave(INT4_GROUP, 1)
    out.copy_(nibbles * groups[:, : out.shape[1]])


@_expand.kernel
def _launch(codes: Tensor, scale: Tensor, out: Tensor) -> None:
    for name, tensor in (("the codes", codes), ("their scale", scale), ("the result", out)):
        expect_adjacent(name, tensor)
    kernel = _expand_int8_kernel if codes.dtype == torch.int8 else _expand_int4_kernel
    rows, width = codes.shape
    kernel[(rows, -(-width // BLOCK))](
        codes, codes.stride(0), scale, scale.stride(0), out, out.stride(0), width, out.shape[1],
        GROUP=INT4_GROUP, BLOCK=BLOCK,
    )  # fmt: skip


@jit
def _expand_int8_kernel(
    codes, stride, scale, scale_stride, out, out_stride, width, inputs,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes a part of a row. codes: int8, out: float [N, K]; scale: float32 [N]."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + row * stride + k, mask=k < inputs, other=0).to(tl.float32)
    weight = code * tl.load(scale + row * scale_stride)
    tl.store(out + row * out_stride + k, weight.to(out.dtype.element_ty), mask=k < inputs)


@jit
def _expand_int4_kernel(
    codes, stride, scale, scale_stride, out, out_stride, width, inputs,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes a part of a row.

    codes: uint8 [N, width], width = ceil(K / 2). scale: float16 [N, ceil(K / GROUP)]. out: float
    [N, K].
    """
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    held = byte < width
    both = tl.load(codes + row * stride + byte, mask=held, other=0)
    for half in tl.static_range(2):
        k = byte + half * width
        inside = held & (k < inputs)
        factor = tl.load(scale + row * scale_stride + k // GROUP, mask=inside, other=0)
        code = ((both >> (4 * half)) & 15).to(tl.int32) - 8
        weight = code.to(tl.float32) * factor.to(tl.float32)
        tl.store(out + row * out_stride + k, weight.to(out.dtype.element_ty), mask=inside)
