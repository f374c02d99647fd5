"""The loss in chunks: projection and cross-entropy without the logits of every token at once.

Shapes: T tokens, H hidden, V vocabulary. The logits of `chunk` tokens exist at a time, in the
activations' type; the backward pass computes them again and turns them, in place, into their own
gradient. Between the passes the loss keeps the hidden states, one float32 a token, and a count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.labels import GRADIENTS, LOGITS, label
from tritter_model.ops.checks import FLOATS, expect
from tritter_model.ops.dense import cast_weight
from tritter_model.ops.grad_weight import add_grad_weight
from tritter_model.ops.jit import jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import QuantisedRows, quantise_rows
from tritter_model.ops.ternary import ternary_linear_into
from tritter_model.ops.ternary_training import ternarise, ternary_grad_input

if TYPE_CHECKING:
    import triton.language as tl

IGNORED = -100


def chunked_cross_entropy(
    hidden_TH: Tensor, table_VH: Tensor, targets_T: Tensor, chunk: int, ternary: bool = False
) -> Tensor:
    """Mean cross-entropy of hidden @ tableᵀ against targets, as a float32 scalar; differentiable.

    Args:
        hidden_TH: final hidden states.
        table_VH: output projection, in any float type.
        targets_T: token ids from 0 to V - 1; -100 is left out of the mean.
        chunk: tokens whose logits exist at a time.
        ternary: whether the table is rounded to ternary weights, and the hidden states to int8.

    Raises:
        ValueError: shapes or types that do not fit; on the CPU also other targets. On a GPU, where
            nobody waits for the targets, those make the loss and its gradients NaN.
    """
    expect("hidden states", hidden_TH, FLOATS, -1, -1)
    expect("the output projection", table_VH, FLOATS, -1, hidden_TH.shape[1])
    expect("targets", targets_T, torch.int64, hidden_TH.shape[0])
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden_TH, table_VH, targets_T, chunk, ternary)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, chunk: int, ternary: bool
    ) -> Tensor:
        loss, count = (hidden.new_empty((), dtype=torch.float32) for _ in range(2))
        normaliser = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        head = _TernaryHead.of(hidden, table) if ternary else _Head.of(hidden, table)
        loss.zero_()
        for part, logits in _chunks(hidden, table, chunk):
            head.project(part, logits)
            _cross_entropy(logits, targets[part], normaliser[part], loss)
        _mean(targets, loss, count)
        ctx.save_for_backward(hidden, table, targets, normaliser, count)
        ctx.chunk, ctx.head = chunk, type(head)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, table, targets, normaliser, count = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        with label(GRADIENTS):
            grad_table = torch.empty_like(table)
        head = ctx.head.of(hidden, table)
        grad_table.zero_()
        for part, logits in _chunks(hidden, table, ctx.chunk):
            head.project(part, logits)
            _cross_entropy_backward(grads[0], count, targets[part], normaliser[part], logits)
            head.add_gradients(part, logits, grad_hidden, grad_table)
        return grad_hidden, grad_table, None, None, None


def _chunks(hidden: Tensor, table: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the tokens, each with the memory for its logits: the same for all."""
    tokens = hidden.shape[0]
    with label(LOGITS):
        logits = hidden.new_empty((min(chunk, tokens), table.shape[0]))
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        yield slice(start, end), logits[: end - start]


@dataclass(frozen=True)
class _Head:
    """An output projection in the activations' type."""

    hidden: Tensor
    table: Tensor

    @classmethod
    def of(cls, hidden: Tensor, table: Tensor) -> _Head:
        return cls(hidden, cast_weight(table, hidden))

    def project(self, part: slice, logits: Tensor) -> None:
        torch.mm(self.hidden[part], self.table.t(), out=logits)

    def add_gradients(
        self, part: slice, slope: Tensor, grad_hidden: Tensor, grad_table: Tensor
    ) -> None:
        torch.mm(slope, self.table, out=grad_hidden[part])
        add_grad_weight(slope, self.hidden[part], None, grad_table)


@dataclass(frozen=True)
class _TernaryHead:
    """An output projection rounded to ternary weights, on hidden states rounded to int8."""

    rows: QuantisedRows
    packed: Tensor
    scale: Tensor

    @classmethod
    def of(cls, hidden: Tensor, table: Tensor) -> _TernaryHead:
        return cls(quantise_rows(hidden), *ternarise(table))

    def project(self, part: slice, logits: Tensor) -> None:
        rows = QuantisedRows(*(tensor[part] for tensor in self.rows))
        ternary_linear_into(rows, self.packed, self.scale, logits)

    def add_gradients(
        self, part: slice, slope: Tensor, grad_hidden: Tensor, grad_table: Tensor
    ) -> None:
        ternary_grad_input(slope, self.packed, self.scale, grad_hidden[part])
        add_grad_weight(slope, self.rows.codes[part], self.rows.scale[part], grad_table)


@operator(
    "cross_entropy(Tensor logits, Tensor targets, Tensor(a!) normaliser, Tensor(b!) loss) -> ()"
)
def _cross_entropy(logits: Tensor, targets: Tensor, normaliser: Tensor, loss: Tensor) -> None:
    """Each row's log of the sum of exponentials; its loss is added."""
    _expect_targets(targets, logits.shape[1])
    wide = logits.float()
    normaliser.copy_(wide.logsumexp(-1))
    picked = wide.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    loss += ((normaliser - picked) * (targets != IGNORED)).sum()


def _expect_targets(targets: Tensor, vocabulary: int) -> None:
    wrong = targets[((targets < 0) | (targets >= vocabulary)) & (targets != IGNORED)]
    if wrong.numel():
        raise ValueError(
            f"got a target of {int(wrong[0])}, expected 0 to {vocabulary - 1}, or {IGNORED} for a"
            " token that has none"
        )


@_cross_entropy.kernel
def _launch(logits: Tensor, targets: Tensor, normaliser: Tensor, loss: Tensor) -> None:
    rows, vocabulary = logits.shape
    _normaliser_kernel[(rows,)](logits, normaliser, vocabulary, BLOCK=4096, num_warps=8)
    _loss_kernel[(1,)](logits, targets, normaliser, loss, rows, vocabulary, IGNORED, ROWS=1024)


@jit
def _normaliser_kernel(logits, normaliser, vocabulary, BLOCK: tl.constexpr):
    """A program takes a row, with a maximum and a sum for each of its columns until the end.

    logits: any float [rows, V]. normaliser: float32 [rows].
    """
    row = logits + tl.program_id(0).to(tl.int64) * vocabulary
    largest = tl.full((BLOCK,), -3e38, tl.float32)  # finite, so that no difference is NaN
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(row + column, mask=column < vocabulary, other=float("-inf"))
        value = value.to(tl.float32)
        before, largest = largest, tl.maximum(largest, value)
        total = total * tl.exp(before - largest) + tl.exp(value - largest)
    top = tl.max(largest, 0)
    total = tl.sum(total * tl.exp(largest - top), 0)
    tl.store(normaliser + tl.program_id(0), top + tl.log(total))


@jit
def _loss_kernel(
    logits, targets, normaliser, loss, rows, vocabulary, IGNORED: tl.constexpr, ROWS: tl.constexpr
):
    """One program adds all losses, always in the same order; of a target beyond V it is NaN.

    logits: any float [rows, V]. targets: int64 [rows]. normaliser: float32 [rows]. loss: float32.
    """
    losses = tl.zeros((ROWS,), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        target = tl.load(targets + row, mask=row < rows, other=IGNORED)
        counted = target != IGNORED
        at = logits + row.to(tl.int64) * vocabulary + target
        known = (target >= 0) & (target < vocabulary)
        picked = tl.load(at, mask=known, other=0).to(tl.float32)
        picked = tl.where(known, picked, float("nan"))
        losses += tl.where(counted, tl.load(normaliser + row, mask=counted, other=0) - picked, 0.0)
    tl.store(loss, tl.load(loss) + tl.sum(losses, 0))


@operator("cross_entropy_mean(Tensor targets, Tensor(a!) loss, Tensor(b!) count) -> ()")
def _mean(targets: Tensor, loss: Tensor, count: Tensor) -> None:
    """Divide the sum of the losses by the count of tokens that have one."""
    count.copy_((targets != IGNORED).sum())
    loss /= count


@_mean.kernel
def _launch_mean(targets: Tensor, loss: Tensor, count: Tensor) -> None:
    _mean_kernel[(1,)](targets, loss, count, targets.shape[0], IGNORED, BLOCK=4096, num_warps=8)


@jit
def _mean_kernel(targets, loss, count, tokens, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    """One program. targets: int64 [tokens]; loss and count: one float32 each."""
    counts = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        target = tl.load(targets + token, mask=token < tokens, other=IGNORED)
        counts += (target != IGNORED).to(tl.int32)
    counted = tl.sum(counts, 0).to(tl.float32)
    tl.store(count, counted)
    tl.store(loss, tl.load(loss) / counted)


@operator(
    "cross_entropy_backward(Tensor grad, Tensor count, Tensor targets, Tensor normaliser,"
    " Tensor(a!) logits) -> ()"
)
def _cross_entropy_backward(
    grad: Tensor, count: Tensor, targets: Tensor, normaliser: Tensor, logits: Tensor
) -> None:
    """Turn the logits into their gradient: (softmax - one at the target) * grad / count."""
    slope = (logits.float() - normaliser[:, None]).exp_()
    target = targets.clamp(min=0)[:, None]
    slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
    logits.copy_(slope * (grad / count * (targets != IGNORED))[:, None])


@_cross_entropy_backward.kernel
def _launch_backward(
    grad: Tensor, count: Tensor, targets: Tensor, normaliser: Tensor, logits: Tensor
) -> None:
    rows, vocabulary = logits.shape
    _loss_backward_kernel[(rows, -(-vocabulary // 2048))](
        grad, count, targets, normaliser, logits, vocabulary, IGNORED, BLOCK=2048
    )


@jit
def _loss_backward_kernel(
    grad, count, targets, normaliser, logits, vocabulary, IGNORED: tl.constexpr, BLOCK: tl.constexpr
):
    """A program turns a part of a row into its gradient; of a target beyond V it is NaN.

    grad and count: one float32 each. targets: int64, normaliser: float32 [rows]. logits: any float
    [rows, V].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, inside = logits + row * vocabulary + column, column < vocabulary
    target = tl.load(targets + row)
    slope = tl.exp(tl.load(at, mask=inside, other=0).to(tl.float32) - tl.load(normaliser + row))
    slope = tl.where(column == target, slope - 1.0, slope)
    weight = tl.where(target == IGNORED, 0.0, tl.load(grad) / tl.load(count))
    known = ((target >= 0) & (target < vocabulary)) | (target == IGNORED)
    weight = tl.where(known, weight, float("nan"))
    tl.store(at, (slope * weight).to(logits.dtype.element_ty), mask=inside)
