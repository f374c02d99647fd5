"""What a mark's subject comes to: a profile, third-party code, or what a test itself does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tritter_mem import __version__
from tritter_mem.check.baseline import CheckedKind
from tritter_mem.check.budget_mark import MemoryBudget
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.results import Components, Estimate, Kind, Phase, Result, Suggestion

if TYPE_CHECKING:
    from tritter_mem.config.card import GpuCard

PHASE = "test"
_ON_THE_CPU = 'device="cpu" counts the tensors of the CPU'
_NOT_FORESEEN = "a test's own body is neither planned nor simulated: it runs"


def kind_of(mark: MemoryBudget) -> CheckedKind:
    """The kind of number that is held against the budget."""
    return "measured" if mark.is_of_body else mark.kind or "simulated"


def why_not_measured(mark: MemoryBudget) -> str | None:
    """Why what is to be measured on a GPU cannot be here; None where it can."""
    from tritter_mem.measure.device import cuda_device
    from tritter_mem.measure.target import Asked, locate

    try:
        if kind_of(mark) == "measured" and not mark.is_of_body:
            locate(Asked(device="auto"))
        elif (mark.device or "cpu") != "cpu":
            cuda_device(str(mark.device), _ON_THE_CPU)
    except MeasureError as error:
        return str(error)
    return None


def result_of(mark: MemoryBudget) -> Result:
    """Simulate what a mark names, measure it where that is asked for, and judge it.

    Raises:
        TritterMemError: what is named is wrong, or could not be simulated or measured.
    """
    return _of_profile(mark) if mark.profile is not None else _of_module(mark)


def _of_profile(mark: MemoryBudget) -> Result:
    from tritter_mem.config.gpus import find_gpu
    from tritter_mem.config.loading import load_profile
    from tritter_mem.measure.profile import profile
    from tritter_mem.planner.suggest import suggest

    loaded = load_profile(str(mark.profile), mark.overrides(), mark.labels())
    card = find_gpu(loaded.gpu.name)
    _check_card(mark, card)
    found = profile(loaded, device=_device(mark), fast=bool(mark.fast))
    return _judged(found, mark, suggest(loaded, card, mark.budget_bytes))


def _of_module(mark: MemoryBudget) -> Result:
    from tritter_mem.config.gpus import find_gpu
    from tritter_mem.measure.module import DEFAULT_GPU, ModuleProfile, profile_module
    from tritter_mem.trace.user_code import ModuleCase

    path, _, function = str(mark.module).rpartition(":")
    case = ModuleCase(path=path, function=function, arguments=dict(mark.args or {}))
    asked = ModuleProfile(case=case, gpu=mark.gpu or DEFAULT_GPU)
    _check_card(mark, find_gpu(asked.gpu))
    try:
        found = profile_module(asked, device=_device(mark))
    except UsageError as error:  # which names options of the command line
        raise UsageError(*(problem.removeprefix("--") for problem in error.problems)) from error
    return _judged(found, mark)


def _check_card(mark: MemoryBudget, card: GpuCard) -> None:
    if mark.budget_bytes > card.total_bytes:
        raise UsageError(
            f"budget: found {mark.budget!r}; allowed: up to {card.total_bytes:,} bytes, the memory "
            f"of {card.name}; name a larger card by gpu"
        )


def _device(mark: MemoryBudget) -> str:
    return "auto" if kind_of(mark) == "measured" else "none"


def _judged(result: Result, mark: MemoryBudget, suggestions: Iterable[Suggestion] = ()) -> Result:
    """The record with the verdict on the mark's budget, by the kind that the mark asks for."""
    from tritter_mem.differences import judge

    kind: Kind = kind_of(mark)
    found = {kind: result.estimates()[kind]}
    return replace(result, verdict=judge(found, mark.budget_bytes, suggestions))


@contextmanager
def following(mark: MemoryBudget) -> Iterator[Callable[[], Result]]:
    """Follow a test's body; the function that it yields gives the record, once the body is done.

    On CUDA it is PyTorch's peak of allocated memory on the device, with what was there before. On
    the CPU it is what the body makes on this thread, and the weights, gradients and optimizer state
    of modules and optimizers that it uses.
    """
    device = mark.device or _default_device()
    with _on_cuda(device) if device.startswith("cuda") else _on_cpu() as estimate:
        yield lambda: _judged(_record(estimate()), mark)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _on_cpu() -> Iterator[Callable[[], Estimate]]:
    from tritter_mem.measure.cpu import estimate_of
    from tritter_mem.trace.categories import Categories
    from tritter_mem.trace.recorder import Recorder

    with Recorder("cpu") as recorder, Categories(recorder.adopt) as categories:
        with recorder.phase(PHASE):
            yield lambda: estimate_of(recorder.log)
        categories.settle()


@contextmanager
def _on_cuda(name: str) -> Iterator[Callable[[], Estimate]]:
    from tritter_mem.measure.cuda_peak import CudaPeak
    from tritter_mem.measure.device import cuda_device

    device = cuda_device(name, _ON_THE_CPU)
    gc.collect()  # what earlier tests left in cycles is not this test's
    peak = CudaPeak(device)  # which a tracker that the test resets leaves as it is
    peak.reset()
    yield lambda: _peak_only(str(device), peak.read_bytes())


def _peak_only(device: str, peak_bytes: int) -> Estimate:
    return Estimate(
        device=device,
        components=Components(),
        phases=(Phase(name=PHASE, allocated_peak_bytes=peak_bytes),),
        allocated_peak_bytes=peak_bytes,
    )


def _record(estimate: Estimate) -> Result:
    from tritter_mem.measure.environment import collect_environment

    index = int(estimate.device.partition(":")[2] or 0)
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=collect_environment(gpu=index),
        profile={"device": estimate.device},
        profile_hash="",
        measured=estimate,
        planned_reason=_NOT_FORESEEN,
        simulated_reason=_NOT_FORESEEN,
    )
