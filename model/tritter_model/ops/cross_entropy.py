"""The loss in chunks: projection and cross-entropy without the logits of every token at once.

Shapes: T tokens, H hidden, V vocabulary. The logits of `chunk` tokens exist at a time, in the
activations' type; the backward pass computes them again. Between the passes the loss keeps the
hidden states and one float32 a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritter_model.labels import GRADIENTS, LOGITS, label
from tritter_model.ops.dense import cast_weight
from tritter_model.ops.registry import operator

IGNORED = -100


def chunked_cross_entropy(
    hidden_TH: Tensor, table_VH: Tensor, targets_T: Tensor, chunk: int
) -> Tensor:
    """Mean cross-entropy of hidden @ tableᵀ against targets, as a float32 scalar; differentiable.

    Args:
        hidden_TH: final hidden states.
        table_VH: output projection, in any float type.
        targets_T: token ids; -100 is left out of the mean.
        chunk: tokens whose logits exist at a time.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden_TH, table_VH, targets_T, chunk)  # type: ignore[no-untyped-call]
    return loss


def _logits(hidden: Tensor, vocabulary: int, chunk: int) -> Tensor:
    with label(LOGITS):
        return hidden.new_empty((min(chunk, hidden.shape[0]), vocabulary))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, chunk: int) -> Tensor:
        loss = hidden.new_empty((), dtype=torch.float32)
        normaliser = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        logits = _logits(hidden, table.shape[0], chunk)
        _forward(hidden, cast_weight(table, hidden), targets, logits, normaliser, loss)
        ctx.save_for_backward(hidden, table, targets, normaliser)
        ctx.chunk = chunk
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, table, targets, normaliser = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        with label(GRADIENTS):
            grad_table = torch.empty_like(table)
        logits = _logits(hidden, table.shape[0], ctx.chunk)
        _backward(
            grads[0], hidden, cast_weight(table, hidden), targets, normaliser,
            logits, grad_hidden, grad_table,
        )  # fmt: skip
        return grad_hidden, grad_table, None, None


@operator(
    "cross_entropy(Tensor hidden, Tensor table, Tensor targets,"
    " Tensor(a!) logits, Tensor(b!) normaliser, Tensor(c!) loss) -> ()"
)
def _forward(
    hidden: Tensor, table: Tensor, targets: Tensor, logits: Tensor, normaliser: Tensor, loss: Tensor
) -> None:
    loss.zero_()
    for start in range(0, hidden.shape[0], logits.shape[0]):
        part = slice(start, start + logits.shape[0])
        block = torch.mm(hidden[part], table.T, out=logits[: hidden[part].shape[0]]).float()
        normaliser[part] = block.logsumexp(-1)
        counted = targets[part] != IGNORED
        picked = block.gather(-1, targets[part].clamp(min=0)[:, None])[:, 0]
        loss += ((normaliser[part] - picked) * counted).sum()
    loss /= (targets != IGNORED).sum()


@operator(
    "cross_entropy_backward(Tensor grad, Tensor hidden, Tensor table, Tensor targets,"
    " Tensor normaliser, Tensor(a!) logits, Tensor(b!) grad_hidden, Tensor(c!) grad_table) -> ()"
)
def _backward(
    grad: Tensor, hidden: Tensor, table: Tensor, targets: Tensor, normaliser: Tensor,
    logits: Tensor, grad_hidden: Tensor, grad_table: Tensor,
) -> None:  # fmt: skip
    grad_table.zero_()
    weight = grad / (targets != IGNORED).sum()
    for start in range(0, hidden.shape[0], logits.shape[0]):
        part = slice(start, start + logits.shape[0])
        block = torch.mm(hidden[part], table.T, out=logits[: hidden[part].shape[0]]).float()
        slope = (block - normaliser[part][:, None]).exp_()
        slope.scatter_add_(
            1, targets[part].clamp(min=0)[:, None], slope.new_full((slope.shape[0], 1), -1.0)
        )
        slope *= (weight * (targets[part] != IGNORED))[:, None]
        grad_hidden[part] = slope @ table.float()
        grad_table += slope.T @ hidden[part].float()
