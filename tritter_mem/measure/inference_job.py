"""A forward pass of any module as a job, in pieces whose results are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritter_mem.errors import UsageError
from tritter_mem.measure.jobs import Job
from tritter_mem.measure.ladder import Offers, Settings
from tritter_mem.measure.module_state import buffers_undo, claimed
from tritter_mem.measure.recompute import last_tokens, mixes_sequences, offered, recomputing

if TYPE_CHECKING:
    from torch import nn


def inference_job(
    model: nn.Module, *inputs: Any, window: int | None = None, **keywords: Any
) -> Job[Any]:
    """A forward pass; the result is what the model returns.

    Without gradients the batch is offered to be cut: results of pieces are joined along their first
    dimension, tensors, and lists, tuples and mappings of them. With gradients on, pieces would keep
    as much as the whole, so what is offered is checkpointing; the context is not truncated then.
    A module with batch norm in training is neither cut nor checkpointed. Undoing a run puts buffers
    back as they were when the job was made.

    Args:
        model: any module.
        inputs: the first is a tensor with a row a sequence. Every tensor among `inputs` and
            `keywords` with as many rows is cut with it, and with as many columns truncated with it.
        window: tokens that sequences may be truncated to.
        keywords: handed to the model too.

    Raises:
        UsageError: the first input is no tensor.
    """
    import torch

    if not inputs or not isinstance(inputs[0], torch.Tensor) or inputs[0].dim() == 0:
        raise UsageError("inputs: the first must be a tensor with a row a sequence")
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())
    if learns:
        offers = Offers(training=True, checkpoint_every=offered(model), window=window)
    else:
        rows = 1 if mixes_sequences(model) else inputs[0].shape[0]
        offers = Offers(batch=rows, window=window)

    def run(settings: Settings) -> Any:
        cut = _Cut(inputs[0].shape, settings.window)
        pieces = range(0, offers.batch, settings.micro_batch or offers.batch)
        with claimed(model), recomputing(model, settings.checkpoint_every):
            if len(pieces) == 1 or learns:
                return model(*cut.all(inputs), **cut.all(keywords))
            return join([
                model(*cut.piece(inputs, at, pieces.step), **cut.piece(keywords, at, pieces.step))
                for at in pieces
            ])  # fmt: skip

    return Job(run=run, offers=offers, undo=buffers_undo(model))


@dataclass(frozen=True)
class _Cut:
    """Cuts whatever has as many rows as the first input."""

    shape: Sequence[int]
    window: int | None

    def all(self, values: Any) -> Any:
        """All rows, truncated."""
        return self.piece(values, 0, self.shape[0])

    def piece(self, values: Any, start: int, count: int) -> Any:
        """Some rows, truncated, of a tuple or mapping of values."""
        if isinstance(values, Mapping):
            return {name: self._one(value, start, count) for name, value in values.items()}
        return tuple(self._one(value, start, count) for value in values)

    def _one(self, value: Any, start: int, count: int) -> Any:
        import torch

        if not isinstance(value, torch.Tensor) or value.shape[:1] != self.shape[:1]:
            return value
        seen = value if value.shape[:2] != self.shape[:2] else last_tokens(value, self.window)
        return seen[start : start + count]


def join(parts: Sequence[Any]) -> Any:
    """Results of pieces as one: tensors along their first dimension, and what is made of them.

    Raises:
        UsageError: something else is among them.
    """
    import torch

    first = parts[0]
    if isinstance(first, torch.Tensor) and first.dim():
        return torch.cat(list(parts))
    if first is None:
        return None
    if isinstance(first, Mapping):
        joined = {name: join([part[name] for part in parts]) for name in first}
        return type(first)(**joined)  # a dict, or a result that is one
    if isinstance(first, tuple | list):
        items = [join(part) for part in zip(*parts, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    raise UsageError(
        f"found a result of type {type(first).__name__}, which pieces cannot be joined to; "
        "allowed: tensors with rows, and lists, tuples and mappings of them; or hand over a Job of "
        "your own"
    )
