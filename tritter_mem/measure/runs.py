"""A case measured as often as was asked for, and what its runs come to together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median_low

from tritter_mem.devices.nvml import ASSUMED_CONTEXT_BYTES
from tritter_mem.errors import MeasureError
from tritter_mem.measure import cpu_run
from tritter_mem.measure.child import ChildJob, answer_of, measuring_environment, run_in_child
from tritter_mem.measure.recorded_run import with_components, with_fragmentation
from tritter_mem.measure.target import Target
from tritter_mem.measure.workload import Work, to_plain
from tritter_mem.results.run import DeviceRun, MemoryUse, OutOfMemory, RunFigures, Spread
from tritter_mem.units import format_bytes

LOAD = "load"


class PartlyMeasuredError(MeasureError):
    """Something failed after the measurement; `use` is what was measured before."""

    def __init__(self, *problems: str, use: MemoryUse) -> None:
        super().__init__(*problems)
        self.use = use


def measure(work: Work, target: Target) -> MemoryUse:
    """Measure a case, on the CPU or on a CUDA device, each run in a separate process.

    A run that goes out of memory is the answer, whatever others came to. On CUDA one more run tells
    where the bytes are, and one more writes the snapshot, where it is wanted.

    Raises:
        PartlyMeasuredError: a repetition failed, or the snapshot.
        MeasureError: the first run failed.
    """
    problems: list[str] = []
    runs = _repeated(work, target, problems)
    found = together(runs)
    if target.card is not None:
        found = with_recorded_components(found, work, target)
        problems += _problems_of(lambda: save_snapshot(work, target))
    if problems:
        raise PartlyMeasuredError(*problems, use=found)
    return found


def _repeated(work: Work, target: Target, problems: list[str]) -> list[MemoryUse]:
    """The runs that succeeded; why another did not is added to the problems."""
    runs = [measure_once(work, target)]
    while len(runs) < target.repeat and runs[-1].out_of_memory is None:
        try:
            runs.append(measure_once(work, target))
        except MeasureError as error:
            which = f"run {len(runs) + 1} of {target.repeat}"
            problems += [f"{which}: {problem}" for problem in error.problems]
            break
    return runs


def _problems_of(act: Callable[[], None]) -> Sequence[str]:
    try:
        act()
    except MeasureError as error:
        return error.problems
    return ()


def measure_once(work: Work, target: Target) -> MemoryUse:
    """Measure a case once; on CUDA without components.

    Raises:
        MeasureError: the run failed, or other processes left too little memory; says how.
    """
    if target.card is None:
        return cpu_run.measure(work, target.time_limit_seconds)
    found = answer_of(_cuda_job("measure_case", work, target), MemoryUse)
    if found.out_of_memory is not None and found.run is not None:
        _refuse_if_crowded(found.out_of_memory, found.run, found.context_bytes)
    return found


def with_recorded_components(measured: MemoryUse, work: Work, target: Target) -> MemoryUse:
    """Run the case once more, recorded: where the bytes are, and how they lie at the peak.

    Where either is not known, the answer says why.
    """
    try:
        recorded = answer_of(_cuda_job("record_case", work, target), MemoryUse)
    except MeasureError as error:
        why = str(error)
        run = measured.run and replace(
            measured.run, components_reason=why, fragmentation_reason=why
        )
        return replace(measured, run=run)
    return with_fragmentation(with_components(measured, recorded), recorded)


def save_snapshot(work: Work, target: Target) -> None:
    """Run the case once more with the allocator's history on, and write PyTorch's snapshot.

    Raises:
        MeasureError: the run failed, or the file cannot be written.
    """
    if target.snapshot is not None:
        path = str(target.snapshot.resolve())
        run_in_child(_cuda_job("snapshot_case", work, target, path=path))


def _cuda_job(function: str, work: Work, target: Target, **more: str) -> ChildJob:
    assumed = target.card.context_bytes if target.card else ASSUMED_CONTEXT_BYTES
    return ChildJob(
        function=f"tritter_mem.measure.cuda_run:{function}",
        arguments={
            "work": to_plain(work),
            "index": target.index,
            "budget_bytes": target.budget_bytes,
            "assumed_context_bytes": assumed,
            **more,
        },
        time_limit_seconds=target.time_limit_seconds,
        environment=measuring_environment(target.allocator_conf),
    )


def _refuse_if_crowded(refused: OutOfMemory, run: DeviceRun, context_bytes: int | None) -> None:
    """An error below the limit says that the device was full, and nothing of the case.

    Raises:
        MeasureError: says who holds the rest.
    """
    outside = 0 if run.allocator_limit_bytes is not None else context_bytes or 0
    wanted = refused.reserved_bytes + refused.requested_bytes + outside
    if not refused.requested_bytes or wanted > refused.limit_bytes:
        return
    others = run.other_processes_bytes
    held = "" if others is None else f", of which other processes hold {format_bytes(others)}"
    raise MeasureError(
        f"the device refused {format_bytes(refused.requested_bytes)} with "
        f"{format_bytes(refused.reserved_bytes)} reserved, below the limit of "
        f"{format_bytes(refused.limit_bytes)}: it has {format_bytes(run.total_bytes)}{held}; end "
        "those, choose another device (--device cuda:1), or lower the budget (--budget)"
    )


def together(runs: Sequence[MemoryUse]) -> MemoryUse:
    """The median run with the spread of all; a single run as it is.

    The median is by allocated peak, then by reserved peak, then by seconds; of an even number the
    lower of the two in the middle. The last run counts alone where it went out of memory.
    """
    if len(runs) == 1 or runs[-1].out_of_memory is not None:
        return runs[-1]
    figures = [figures_of(run) for run in runs]
    order = sorted(range(len(runs)), key=lambda i: _key(figures[i]))
    spread = Spread(
        runs=len(runs),
        minimum=_by_figure(figures, min),
        median=_by_figure(figures, median_low),
        maximum=_by_figure(figures, max),
    )
    return replace(runs[order[(len(runs) - 1) // 2]], spread=spread)


def figures_of(run: MemoryUse) -> RunFigures:
    """What is compared with other runs of the same case."""
    return RunFigures(
        allocated_peak_bytes=run.allocated_peak_bytes,
        reserved_peak_bytes=run.reserved_peak_bytes,
        seconds=seconds_of(run),
    )


def seconds_of(run: MemoryUse) -> float:
    """Seconds of all phases but loading."""
    return sum(phase.seconds or 0.0 for phase in run.phases if phase.name != LOAD)


def _key(figures: RunFigures) -> tuple[float, float, float]:
    return figures.allocated_peak_bytes, figures.reserved_peak_bytes or 0, figures.seconds


def _by_figure(figures: Sequence[RunFigures], choose: Callable[..., float]) -> RunFigures:
    reserved = [f.reserved_peak_bytes for f in figures if f.reserved_peak_bytes is not None]
    return RunFigures(
        allocated_peak_bytes=int(choose([f.allocated_peak_bytes for f in figures])),
        reserved_peak_bytes=int(choose(reserved)) if reserved else None,
        seconds=choose([f.seconds for f in figures]),
    )
