"""Rows of an embedding table for tokens, and the gradient of the table.

Shapes: T tokens, H hidden, V vocabulary, B sequences, P prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.checks import FLOATS, expect, expect_adjacent, expect_contiguous
from tritter_model.ops.jit import block, jit
from tritter_model.ops.registry import operator

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 2048
WIDEST_SUM = 4096
"""Columns that a program of the backward pass sums in registers."""


def embed(
    ids_T: Tensor, table_VH: Tensor, scale_V: Tensor | None, prefix: Tensor | None, out: Tensor
) -> Tensor:
    """Fill `out`, [T, H], with rows of the table; differentiable with respect to the table.

    Args:
        ids_T: token ids below V; a negative id leaves its row to the prefix.
        table_VH: the embedding table, a float type or int8.
        scale_V: float32 scale of each row of an int8 table.
        prefix: [B, P, H] written over the first P rows of each sequence, or None.
        out: where the rows go, in the activations' type.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    expect("token ids", ids_T, torch.int64, -1)
    expect("the table", table_VH, (*FLOATS, torch.int8), -1, -1)
    expect("the result", out, FLOATS, ids_T.shape[0], table_VH.shape[1])
    if scale_V is not None:
        expect("the table's scale", scale_V, torch.float32, table_VH.shape[0])
    rows: Tensor = _Embed.apply(ids_T, table_VH, scale_V, prefix, out)  # type: ignore[no-untyped-call]
    return rows


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, table: Tensor, scale: Tensor | None, prefix: Tensor | None,
        out: Tensor,
    ) -> Tensor:  # fmt: skip
        _embed(ids, table, scale, out)
        if prefix is not None:
            out.unflatten(0, (prefix.shape[0], -1))[:, : prefix.shape[1]].copy_(prefix)
        ctx.save_for_backward(ids, table)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None]:
        ids, table = ctx.saved_tensors
        with label(GRADIENTS):
            grad_table = torch.empty_like(table)
        _embed_backward(grads[0], ids, grad_table)
        return None, grad_table, None, None, None


@operator("embed(Tensor ids, Tensor table, Tensor? scale, Tensor(a!) out) -> ()")
def _embed(ids: Tensor, table: Tensor, scale: Tensor | None, out: Tensor) -> None:
    known = ids >= 0
    rows = table[ids[known]]
    out[known] = (rows if scale is None else rows * scale[ids[known], None]).to(out.dtype)


@_embed.kernel
def _launch(ids: Tensor, table: Tensor, scale: Tensor | None, out: Tensor) -> None:
    for name, tensor in (("the table", table), ("the result", out)):
        expect_contiguous(name, tensor)
    (tokens, width), vocabulary = out.shape, table.shape[0]
    _embed_kernel[(tokens, -(-width // BLOCK))](
        ids, ids.stride(0), table, scale, out, vocabulary, width, BLOCK=BLOCK
    )


@jit(do_not_specialize_on_alignment=("ids",))
def _embed_kernel(ids, ids_stride, table, scale, out, vocabulary, width, BLOCK: tl.constexpr):
    """A program copies a part of a row; ids that the table does not have become NaN.

    ids: int64 [T]. table: any float or int8 [V, H]. scale: float32 [V], or None. out: float [T, H].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token, inside = tl.load(ids + row * ids_stride), column < width
    known = token < vocabulary
    value = tl.load(table + token * width + column, mask=inside & (token >= 0) & known, other=0)
    value = value.to(tl.float32)
    if scale is not None:
        value *= tl.load(scale + token, mask=(token >= 0) & known, other=0)
    value = tl.where(known, value, float("nan"))
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside & (token >= 0))


@operator("embed_backward(Tensor grad, Tensor ids, Tensor(a!) grad_table) -> ()")
def _embed_backward(grad: Tensor, ids: Tensor, grad_table: Tensor) -> None:
    """Each row's sum in float32."""
    known = ids >= 0
    sums = grad.new_zeros(grad_table.shape, dtype=torch.float32)
    grad_table.copy_(sums.index_add_(0, ids[known], grad[known].float()))


@_embed_backward.kernel
def _launch_backward(grad: Tensor, ids: Tensor, grad_table: Tensor) -> None:
    expect_adjacent("the table's gradient", grad_table)
    rows, width = grad_table.shape
    columns = min(max(block(width), 128), WIDEST_SUM)
    _embed_backward_kernel[(rows, -(-width // columns))](
        grad, ids, ids.stride(0), grad_table, *grad.stride(), grad_table.stride(0),
        ids.shape[0], width, TOKENS=1024, BLOCK=columns,
    )  # fmt: skip


@jit
def _embed_backward_kernel(
    grad, ids, ids_stride, grad_table, row_stride, column_stride, out_stride, tokens, width,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program looks through the tokens for its row's: summed in their order, without scratch.

    grad: float [T, H], with any strides. ids: int64 [T]. grad_table: any float [V, H].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slopes = grad + column * column_stride
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        ids_here = ids + token.to(tl.int64) * ids_stride
        found = tl.load(ids_here, mask=token < tokens, other=-1) == row
        at = tl.min(tl.where(found, token, tokens), 0)
        while at < tokens:
            slope = tl.load(slopes + at.to(tl.int64) * row_stride, mask=column < width, other=0)
            sums += slope.to(tl.float32)
            at = tl.min(tl.where(found & (token > at), token, tokens), 0)
    out = grad_table + row * out_stride + column
    tl.store(out, sums.to(grad_table.dtype.element_ty), mask=column < width)
