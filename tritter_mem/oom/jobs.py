"""Jobs of any module: a training step and a forward pass, whole or in pieces, and what they need.

A job runs a module as it is under each rung's settings: its layers are checkpointed from outside,
its batch is cut, its buffers are put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import UsageError
from tritter_mem.oom.ladder import EVERY_LAYER, Job, Offers, Settings, T
from tritter_mem.planner.suggest import suggest
from tritter_mem.simulation.peaks import WARMUP
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_LOCK = threading.Lock()
_IN_USE: set[nn.Module] = set()


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
        raise UsageError(f"batch: got shapes {shapes}, expected tensors with as many rows each")
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
            f"there are gradients already, of {held[0]} and {len(held) - 1} others: what a failed "
            "try adds to them could not be undone; call zero_grad(set_to_none=True) first"
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

    total = count(*batch)
    if not isinstance(total, torch.Tensor):
        total = torch.tensor(total, device="cpu")
    total = total.double()  # a share in float32 would round more than the loss does
    return lambda mean, piece: (mean * (count(*piece) / total)).to(mean.dtype)


def _pieces(batch: Sequence[Tensor], at_once: int | None) -> Iterator[Sequence[Tensor]]:
    if at_once is None or at_once >= rows(*batch):
        return iter([batch])
    return zip(*(tensor.split(at_once) for tensor in batch), strict=True)


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
        f"got a result of type {type(first).__name__}, which cannot be joined from pieces; "
        "expected tensors with rows, and lists, tuples and mappings of them; or pass "
        "your own Job"
    )


@contextmanager
def claimed(model: nn.Module) -> Iterator[None]:
    """Keep a module, and all modules in it, to one run: two would share gradients and buffers.

    Raises:
        UsageError: another run has it, or a part of it.
    """
    parts = set(model.modules())
    with _LOCK:
        if not parts.isdisjoint(_IN_USE):
            raise UsageError(
                f"{type(model).__name__}: runs in another ladder now, another thread's or an outer "
                "one, whole or in part; let that one end first, or run a copy (copy.deepcopy)"
            )
        _IN_USE.update(parts)
    try:
        yield
    finally:
        with _LOCK:
            _IN_USE.difference_update(parts)


def buffers_undo(model: nn.Module) -> Callable[[], None]:
    """What makes a module's buffers those of now again: the same tensors with the same values.

    The values are copied, to where the buffers are.
    """
    import torch

    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    registered = [(module._buffers, dict(module._buffers)) for module in model.modules()]

    def undo() -> None:
        with torch.no_grad():
            for buffer, before in values:
                buffer.copy_(before)
        for now, earlier in registered:
            now.clear()
            now.update(earlier)

    return undo


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a module repeats: its longest list of modules of one class; else none."""
    from torch import nn

    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    longest = max(alike, key=len, default=[])
    return longest if len(longest) > 1 else []


def mixes_sequences(model: nn.Module) -> bool:
    """Whether training in pieces, or a forward pass run twice, is not the same: batch norm."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def offered(model: nn.Module) -> tuple[int, ...]:
    """How often a module's layers can be checkpointed; not at all where a rerun is not the same."""
    layers = 0 if mixes_sequences(model) else len(layers_of(model))
    return tuple(n for n in EVERY_LAYER if n < layers)


def last_tokens(tensor: Tensor, window: int | None) -> Tensor:
    """The last columns of a tensor of [rows, tokens, ...]; all where there is no window."""
    return tensor if window is None or tensor.dim() < 2 else tensor[:, -window:]


@contextmanager
def recomputing(model: nn.Module, every: int | None) -> Iterator[None]:
    """Checkpoint layers 0, n, 2n, ... of a module where their forward runs inside.

    A graph that was made inside recomputes outside too. Random numbers are drawn again as they
    were.

    Args:
        model: a module with layers (`layers_of`), which no other run has (`claimed`).
        every: the n; None: nothing is checkpointed.
    """
    with ExitStack() as stack:
        if every is not None:
            for layer in layers_of(model)[::every]:
                stack.enter_context(_recomputed(layer))
        yield


@contextmanager
def _recomputed(layer: nn.Module) -> Iterator[None]:
    """Stand in for a layer's forward: hooks around it run once, its work twice."""
    from torch.utils.checkpoint import checkpoint

    before = vars(layer).get("forward")  # other code may stand in for it already
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


def predictor(
    build: Callable[[torch.device], Job[Any]], card: GpuCard, allocator_conf: str = ""
) -> Callable[[Settings], int]:
    """A prediction for `Job.predict`: the job runs on `meta`, and is played through the allocator.

    Each settings are simulated once, in seconds, and remembered.

    Args:
        build: makes model, optimizer state and batch on a device, and returns the job. It is what
            makes the real job too.
        card: the card to stand for.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.

    Returns:
        For settings, the bytes that the card must hold, its CUDA context included.
    """
    known: dict[Settings, int] = {}

    def predict(settings: Settings) -> int:
        if settings not in known:
            known[settings] = _simulated(build, settings, card, allocator_conf)
        return known[settings]

    return predict


def _simulated(
    build: Callable[[torch.device], Job[Any]], settings: Settings, card: GpuCard, conf: str
) -> int:
    import torch

    from tritter_mem.simulation.cuda.dispatch import as_on_cuda
    from tritter_mem.simulation.simulate import PhaseHook, simulate_workload

    def workload(device: str, phase: PhaseHook) -> None:
        with as_on_cuda(card.compute_capability, card.vendor):
            with phase("load"):
                job = build(torch.device(device))
            with phase(WARMUP):
                job.run(settings)
                job.undo()
            with phase("step"):
                job.run(settings)

    return simulate_workload(workload, card, conf).footprint_bytes


def advice(profile: Profile) -> Callable[[int], Sequence[str]]:
    """What the planner would change in a profile, for `Job.advise`."""
    card = find_gpu(profile.gpu.name)

    def advise(budget_bytes: int) -> Sequence[str]:
        found = suggest(profile, card, budget_bytes)
        return [f"plan suggests: {s.text}, saves {format_bytes(s.saves_bytes)}" for s in found]

    return advise
