"""Linear layers whose weights are floating point, int8 or int4, and output projections.

Shapes: T tokens, K inputs, N outputs, H hidden, V vocabulary. int8 and int4 weights are stored, and
expanded a block of rows at a time into scratch of the activations' type: their product is that of
the expanded weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritter_model.checkpointing import product
from tritter_model.labels import GRADIENTS, LOGITS, label
from tritter_model.ops.expand import expand
from tritter_model.ops.grad_weight import write_grad_weight
from tritter_model.ops.registry import scratch

EXPANDED_ROWS = 4096


def trained_linear(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """x @ weightᵀ in the type of x, from master weights of any float type; differentiable.

    The cast of the weights is made again for the backward pass, not kept.
    """

    def fill(out: Tensor) -> None:
        torch.mm(x_TK, cast_weight(weight_NK, x_TK).t(), out=out)

    return product(_TrainedLinear, x_TK, weight_NK, fill)


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = torch.mm(grads[0], cast_weight(weight, x))
        with label(GRADIENTS):
            grad_weight = torch.empty_like(weight)
        write_grad_weight(grads[0], x, None, grad_weight)
        return grad_x, grad_weight, None


def cast_weight(weight: Tensor, like: Tensor) -> Tensor:
    """The weights in the activations' type: themselves where they have it, else scratch."""
    if weight.dtype == like.dtype:
        return weight
    return scratch(tuple(weight.shape), weight, like.dtype).copy_(weight)


def quantise_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and a float32 scale for each output."""
    scale = weight_NK.float().abs().amax(1).clamp_(min=1e-8) / 127
    return (weight_NK.float() / scale[:, None]).round_().to(torch.int8), scale


def quantised_linear(x_TK: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x @ weightᵀ for int8 or int4 weights: [T, N] in the type of x.

    Args:
        x_TK: activations.
        codes: int8 or packed int4, as `expand` takes them; their type tells which.
        scale: theirs.
    """
    outputs = codes.shape[0]
    out = x_TK.new_empty((x_TK.shape[0], outputs))
    expanded = scratch((min(EXPANDED_ROWS, outputs), x_TK.shape[1]), x_TK, x_TK.dtype)
    for start in range(0, outputs, EXPANDED_ROWS):
        rows = slice(start, min(start + EXPANDED_ROWS, outputs))
        weight = expanded[: rows.stop - start]
        expand(codes[rows], scale[rows], weight)
        torch.mm(x_TK, weight.t(), out=out[:, rows])
    return out


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
            return quantised_linear(x_TH, table_VH, scale_V)
        return torch.mm(x_TH.to(table_VH.dtype), table_VH.t())
