"""Linear layers whose weights are floating point, int8 or int4, and their embedding tables.

Shapes: T tokens, K inputs, N outputs, V vocabulary. int8 and int4 weights are stored, and expanded
a block of rows at a time into scratch of the activations' type: their product is that of the
expanded weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritter_model.checkpointing import kept
from tritter_model.labels import GRADIENTS, LOGITS, label
from tritter_model.ops.grad_weight import write_grad_weight
from tritter_model.ops.registry import operator, scratch

EXPANDED_ROWS = 4096
INT4_GROUP = 128


def trained_linear(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """x @ weightᵀ in the type of x, from master weights of any float type; differentiable.

    The cast of the weights is made again for the backward pass, not kept.
    """
    out: Tensor = _TrainedLinear.apply(x_TK, weight_NK)  # type: ignore[no-untyped-call]
    return out


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        (out,) = kept("matmul", lambda: (torch.mm(x, cast_weight(weight, x).t()),))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = torch.mm(grads[0], cast_weight(weight, x))
        with label(GRADIENTS):
            grad_weight = torch.empty_like(weight)
        write_grad_weight(grads[0], x, None, grad_weight)
        return grad_x, grad_weight


def cast_weight(weight: Tensor, like: Tensor) -> Tensor:
    """The weights in the activations' type: themselves where they have it, else scratch."""
    if weight.dtype == like.dtype:
        return weight
    return scratch(tuple(weight.shape), weight, like.dtype).copy_(weight)


def quantise_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and a float32 scale for each output."""
    scale = weight_NK.float().abs().amax(1).clamp_(min=1e-8) / 127
    return (weight_NK.float() / scale[:, None]).round_().to(torch.int8), scale


def int8_linear(x_TK: Tensor, codes_NK: Tensor, scale_N: Tensor) -> Tensor:
    """x @ (codes * scale)ᵀ: [T, N] in the type of x."""
    out = x_TK.new_empty((x_TK.shape[0], codes_NK.shape[0]))
    rows = min(EXPANDED_ROWS, codes_NK.shape[0])
    expanded = scratch((rows, codes_NK.shape[1]), x_TK, x_TK.dtype)
    _int8_linear(x_TK, codes_NK, scale_N, expanded, out)
    return out


@operator(
    "int8_linear(Tensor x, Tensor codes, Tensor scale, Tensor(a!) expanded, Tensor(b!) out) -> ()"
)
def _int8_linear(x: Tensor, codes: Tensor, scale: Tensor, expanded: Tensor, out: Tensor) -> None:
    for start in range(0, codes.shape[0], expanded.shape[0]):
        part = codes[start : start + expanded.shape[0]]
        block = expanded[: part.shape[0]].copy_(part)
        block.mul_(scale[start : start + part.shape[0], None])
        out[:, start : start + part.shape[0]] = x @ block.T


def int4_groups(in_features: int) -> int:
    """Groups of a row of int4 weights; the last may be short."""
    return -(-in_features // INT4_GROUP)


def int4_linear(x_TK: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x @ weightᵀ for int4 weights.

    Args:
        x_TK: activations.
        packed: uint8 [N, ceil(K / 2)]; byte j holds k = j low and k = j + ceil(K / 2) high, each
            as w + 8.
        scale: float16 [N, ceil(K / 128)], one for each 128 inputs.
    """
    out = x_TK.new_empty((x_TK.shape[0], packed.shape[0]))
    rows = min(EXPANDED_ROWS, packed.shape[0])
    expanded = scratch((rows, x_TK.shape[1]), x_TK, x_TK.dtype)
    _int4_linear(x_TK, packed, scale, expanded, out)
    return out


@operator(
    "int4_linear(Tensor x, Tensor packed, Tensor scale, Tensor(a!) expanded, Tensor(b!) out) -> ()"
)
def _int4_linear(x: Tensor, packed: Tensor, scale: Tensor, expanded: Tensor, out: Tensor) -> None:
    half = packed.shape[1]
    for start in range(0, packed.shape[0], expanded.shape[0]):
        part = packed[start : start + expanded.shape[0]]
        block = expanded[: part.shape[0]]
        block[:, :half] = (part & 15).to(torch.int8) - 8
        block[:, half:] = ((part >> 4).to(torch.int8) - 8)[:, : block.shape[1] - half]
        groups = scale[start : start + part.shape[0]].repeat_interleave(INT4_GROUP, 1)
        block.mul_(groups[:, : block.shape[1]])
        out[:, start : start + part.shape[0]] = x @ block.T


def embed(
    ids_T: Tensor, table_VH: Tensor, scale_V: Tensor | None, prefix: Tensor | None, out: Tensor
) -> Tensor:
    """Fill `out`, [T, H], with rows of the table; differentiable with respect to the table.

    Args:
        ids_T: token ids; a negative id leaves its row to the prefix.
        table_VH: the embedding table, a float type or int8.
        scale_V: float32 scale of each row of an int8 table.
        prefix: [B, P, H] written over the first P rows of each sequence, or None.
        out: where the rows go, in the activations' type.
    """
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
    known = ids.clamp(min=0)
    rows = table[known]
    out.copy_(rows if scale is None else rows * scale[known, None])


@operator("embed_backward(Tensor grad, Tensor ids, Tensor(a!) grad_table) -> ()")
def _embed_backward(grad: Tensor, ids: Tensor, grad_table: Tensor) -> None:
    known = (ids >= 0)[:, None]
    grad_table.zero_().index_add_(0, ids.clamp(min=0), (grad * known).to(grad_table.dtype))


def shared(table_VH: Tensor) -> tuple[Tensor, Tensor]:
    """One table used in two places: two aliases, whose gradients are added in place.

    Autograd on its own would add them into a third tensor of the table's size.
    """
    aliases: tuple[Tensor, Tensor] = _Shared.apply(table_VH)  # type: ignore[no-untyped-call]
    return aliases


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor) -> tuple[Tensor, Tensor]:
        return table.view_as(table), table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].add_(grads[1])


def project(x_TH: Tensor, table_VH: Tensor, scale_V: Tensor | None) -> Tensor:
    """Logits [T, V]: in the type of a table of floats, in that of x where the table is int8."""
    with label(LOGITS):
        if scale_V is not None:
            return int8_linear(x_TH, table_VH, scale_V)
        return torch.mm(x_TH.to(table_VH.dtype), table_VH.t())
