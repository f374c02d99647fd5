"""What a marked test needs, judged by its budget, and how it compares with a baseline."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from tritter_mem.check.budget_mark import MemoryBudget
from tritter_mem.check.compare import Rules
from tritter_mem.check.tasks import Profiled, Task, outcomes_of, update
from tritter_mem.errors import MeasureError, SimulationError, UsageError
from tritter_mem.results.baseline import CHECKED_KINDS, Baseline, Case
from tritter_mem.results.check import CaseOutcome
from tritter_mem.results.header import header
from tritter_mem.results.run import Components, Kind, MemoryUse, Phase, Result, Suggestion

if TYPE_CHECKING:
    from tritter_mem.config.cards import GpuCard

PHASE = "test"
_ON_THE_CPU = 'device="cpu" counts tensors on the CPU'
_NOT_FORESEEN = "the body of a test runs; it is neither planned nor simulated"


def why_not_measured(mark: MemoryBudget) -> str | None:
    """Why what is to be measured on a GPU cannot be here; None where it can."""
    from tritter_mem.devices.cuda import cuda_device
    from tritter_mem.measure.target import MeasureOptions, locate

    try:
        if mark.checked_kind == "measured" and not mark.is_of_body:
            locate(MeasureOptions(device="auto"))
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


def rehearsed_result(mark: MemoryBudget, name: str, options: Sequence[str]) -> Result:
    """Rehearse the test that has the mark, and judge it.

    Args:
        mark: with `rehearse`.
        name: the test's id.
        options: of the pytest that runs it.

    Raises:
        TritterMemError: it failed, or it cannot be rehearsed.
    """
    from tritter_mem.check.rehearsed import DEFAULT_GPU, rehearsed_test
    from tritter_mem.config.cards import find_card

    gpu = mark.gpu or DEFAULT_GPU
    _check_card(mark, find_card(gpu))
    return _judged(rehearsed_test(name, gpu, options), mark)


def _of_profile(mark: MemoryBudget) -> Result:
    from tritter_mem.config.loading import load_any
    from tritter_mem.devices.nvml import find_gpu
    from tritter_mem.planner.suggest import suggest
    from tritter_mem.profiling.profiler import profile

    loaded = load_any(str(mark.profile), mark.overrides(), mark.labels())
    card = find_gpu(loaded.gpu.name)
    _check_card(mark, card)
    found = profile(loaded, device=_device(mark), fast=bool(mark.fast))
    return _judged(found, mark, suggest(loaded, card, mark.budget_bytes))


def _of_module(mark: MemoryBudget) -> Result:
    from tritter_mem.devices.nvml import find_gpu
    from tritter_mem.models.user_code import ModuleCase
    from tritter_mem.profiling.profiler import DEFAULT_GPU, ModuleProfile, profile_module

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
            f"budget: got {mark.budget!r}, expected up to {card.total_bytes:,} bytes, the memory "
            f"of {card.name}; name a larger card by gpu"
        )


def _device(mark: MemoryBudget) -> str:
    return "auto" if mark.checked_kind == "measured" else "none"


def _judged(result: Result, mark: MemoryBudget, suggestions: Iterable[Suggestion] = ()) -> Result:
    """The record with the verdict on the mark's budget, by the kind that the mark asks for."""
    from tritter_mem.results.verdict import judge

    kind: Kind = mark.checked_kind
    found = result.by_kind()
    if kind not in found and "rehearsed" in found:  # over stand-ins nothing is measured
        kind = "rehearsed"
    if kind not in found:
        raise SimulationError(f"{result.name}: {getattr(result, f'{kind}_reason')}")
    return replace(result, verdict=judge({kind: found[kind]}, mark.budget_bytes, suggestions))


@contextmanager
def following(mark: MemoryBudget) -> Iterator[Callable[[], Result]]:
    """Follow a test's body; the function that it yields gives the record, once the body is done.

    On CUDA it is PyTorch's peak of allocated memory on the device, with what was there before. On
    the CPU it is what the body makes on this thread, and the weights, gradients and optimizer state
    of modules and optimizers that it uses.
    """
    device = mark.device or _default_device()
    with _on_cuda(device) if device.startswith("cuda") else _on_cpu() as use:
        yield lambda: _judged(_record(use()), mark)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _on_cpu() -> Iterator[Callable[[], MemoryUse]]:
    from tritter_mem.measure.cpu_run import memory_use_of
    from tritter_mem.simulation.recorder import Recorder
    from tritter_mem.simulation.user_module import Categories

    with Recorder("cpu") as recorder, Categories(recorder.adopt) as categories:
        with recorder.phase(PHASE):
            yield lambda: memory_use_of(recorder.log)
        categories.settle()


@contextmanager
def _on_cuda(name: str) -> Iterator[Callable[[], MemoryUse]]:
    from tritter_mem.devices.cuda import cuda_device
    from tritter_mem.devices.device import AllocatedPeak

    device = cuda_device(name, _ON_THE_CPU)
    gc.collect()  # what earlier tests left in cycles is not this test's
    peak = AllocatedPeak(device)  # which a tracker that the test resets leaves as it is
    peak.reset()
    yield lambda: _peak_only(device.name, peak.read_bytes())


def _peak_only(device: str, peak_bytes: int) -> MemoryUse:
    return MemoryUse(
        device=device,
        components=Components(),
        phases=(Phase(name=PHASE, allocated_peak_bytes=peak_bytes),),
        allocated_peak_bytes=peak_bytes,
    )


def _record(use: MemoryUse) -> Result:
    from tritter_mem.devices.cuda import CudaDevice
    from tritter_mem.devices.environment import collect_environment

    index = int(use.device.partition(":")[2] or 0)
    kind = "measured" if use.device == "cpu" else CudaDevice(index).kind
    return Result(
        **header(),
        environment=collect_environment(gpu=index),
        profile={"device": use.device},
        profile_hash="",
        planned_reason=_NOT_FORESEEN,
        simulated_reason=_NOT_FORESEEN,
        **{kind: use},  # type: ignore[arg-type]
    )


def compared(result: Result, baseline: Baseline) -> CaseOutcome:
    """Compare what a test needs with the baseline."""
    (outcome,) = outcomes_of([_profiled(result)], baseline, Rules())
    return outcome


def accepted(
    results: Iterable[Result], baseline: Baseline
) -> tuple[Baseline, tuple[CaseOutcome, ...]]:
    """The baseline with what tests need now, and what that changes; other entries stay."""
    new, outcomes = update(baseline, [_profiled(result) for result in results])
    return new or baseline, outcomes


def is_checked(result: Result) -> bool:
    """Whether a baseline has entries of the kind of number that the verdict is about."""
    return result.verdict is not None and result.verdict.basis in CHECKED_KINDS


def _profiled(result: Result) -> Profiled:
    """A test's record, of the kind of number that its verdict is about."""
    kinds = [kind for kind in CHECKED_KINDS if result.verdict and kind == result.verdict.basis]
    return Profiled(task=Task(case=Case(config=result.name), kinds=kinds), result=result)
