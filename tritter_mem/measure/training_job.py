"""A training step of any module as a job: forward and backward, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from tritter_mem.errors import UsageError
from tritter_mem.measure.jobs import Job, T
from tritter_mem.measure.ladder import Offers, Settings
from tritter_mem.measure.module_state import buffers_undo, claimed
from tritter_mem.measure.recompute import last_tokens, mixes_sequences, offered, recomputing

if TYPE_CHECKING:
    from torch import Tensor, nn


def rows(*tensors: Tensor) -> int:
    """Sequences of a batch: what a loss averages over where each sequence counts the same."""
    return tensors[0].shape[0]


def training_job(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batch: Sequence[Tensor],
    count: Callable[..., int | Tensor] = rows,
) -> Job[Tensor]:
    """Forward and backward of one batch: gradients in `.grad`, and the mean loss as the result.

    In pieces, each piece's loss counts by its share of what the loss averages over, so that loss
    and gradients are those of the whole batch, to rounding. The optimizer's step is not part of the
    job: half of one cannot be undone. To train on truncated sequences, `truncating` asks for it.

    A module with batch norm mixes sequences: it is neither cut into pieces nor checkpointed.

    Args:
        model: any module. Checkpointing is offered where it has layers (`layers_of`).
        loss: `loss(model, *batch)`, a mean.
        batch: tensors with a row a sequence.
        count: `count(*batch)`, what the loss averages over, such as the tokens that count, above 0
            for every sequence; default: sequences.

    Raises:
        UsageError: there are gradients already, or the tensors are of different batches.
    """
    if len({tensor.shape[0] for tensor in batch}) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in batch)
        raise UsageError(f"batch: found shapes {shapes}; allowed: tensors with as many rows each")
    _refuse_gradients(model)
    offers = Offers(
        training=True,
        checkpoint_every=offered(model),
        batch=1 if mixes_sequences(model) else rows(*batch),
    )

    def run(settings: Settings) -> Tensor:
        seen = [last_tokens(tensor, settings.window) for tensor in batch]
        with claimed(model):
            return _step(model, settings, seen, loss, count)

    return Job(run=run, offers=offers, undo=_undo_of(model))


def truncating(job: Job[T], window: int) -> Job[T]:
    """Let a training job truncate its sequences to their last tokens, as the last rung.

    Args:
        job: of `training_job`.
        window: tokens to truncate to.
    """
    return replace(job, offers=replace(job.offers, window=window, truncate_training=True))


def _refuse_gradients(model: nn.Module) -> None:
    held = [name for name, weight in model.named_parameters() if weight.grad is not None]
    if held:
        raise UsageError(
            f"found gradients already, of {held[0]} and {len(held) - 1} others: what a failed try "
            "adds to them could not be undone; call zero_grad(set_to_none=True) first"
        )


def _undo_of(model: nn.Module) -> Callable[[], None]:
    """What drops gradients, and puts buffers back: a forward pass may have changed them."""
    put_buffers_back = buffers_undo(model)

    def undo() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        put_buffers_back()

    return undo


def _step(
    model: nn.Module, settings: Settings, batch: Sequence[Tensor],
    loss: Callable[..., Tensor], count: Callable[..., int | Tensor],
) -> Tensor:  # fmt: skip
    pieces = list(_pieces(batch, settings.micro_batch))
    part_of = _share_of(batch, count) if len(pieces) > 1 else _whole

    def backward(piece: Sequence[Tensor]) -> Tensor:
        with recomputing(model, settings.checkpoint_every):
            mean = loss(model, *piece)
        part = part_of(mean, piece)
        part.backward()
        return part.detach()

    return reduce(add, map(backward, pieces))


def _whole(mean: Tensor, batch: Sequence[Tensor]) -> Tensor:
    del batch  # whose mean it is
    return mean


def _share_of(
    batch: Sequence[Tensor], count: Callable[..., int | Tensor]
) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """What a piece's mean adds to the batch's: its share, by count."""
    import torch

    # In float64: a share in float32 would round more than the loss does.
    total = torch.as_tensor(count(*batch), dtype=torch.float64)
    return lambda mean, piece: (mean * (count(*piece) / total)).to(mean.dtype)


def _pieces(batch: Sequence[Tensor], at_once: int | None) -> Iterator[Sequence[Tensor]]:
    if at_once is None or at_once >= rows(*batch):
        return iter([batch])
    return zip(*(tensor.split(at_once) for tensor in batch), strict=True)
