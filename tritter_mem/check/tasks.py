"""What a check profiles, and what its results come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritter_mem.check.compare import Rules, compare, difference, entry_of
from tritter_mem.errors import EXIT_NOT_MEASURED, TritterMemError
from tritter_mem.results.baseline import PROFILED_KINDS, Baseline, Case, CheckedKind, Entry
from tritter_mem.results.check import CaseOutcome, SizeChange
from tritter_mem.results.run import Result

if TYPE_CHECKING:
    from tritter_mem.simulation.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A case, and the kinds of number that are wanted of it."""

    case: Case
    kinds: Sequence[CheckedKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """What a task came to, or what went wrong.

    Attributes:
        result: None where nothing could be made.
        problem: why something is missing.
        exit_code: of the problem.
    """

    task: Task
    result: Result | None
    problem: str = ""
    exit_code: int = EXIT_NOT_MEASURED

    def found(self) -> Iterator[tuple[CheckedKind, Entry | str]]:
        """For each kind what a baseline would keep, or why there is nothing."""
        for kind in self.task.kinds:
            if self.result is not None and kind in self.result.by_kind():
                yield kind, entry_of(self.task.case, kind, self.result)
            else:
                reason = getattr(self.result, f"{kind}_reason", None)
                yield kind, self.problem or reason or f"there is no {kind} number"

    def failed(self, kind: CheckedKind, why: str) -> CaseOutcome:
        """The outcome of a kind that has no figures."""
        return CaseOutcome(
            label=self.task.case.label,
            kind=kind,
            gpu="",
            torch="",
            status="failed",
            message=why,
            exit_code=self.exit_code,
        )


def listed_tasks(baseline: Baseline, kinds: Sequence[CheckedKind]) -> list[Task]:
    """What the baseline lists of some kinds, each case once."""
    listed = [entry for entry in baseline.entries if entry.kind in kinds]
    cases = {entry.case.label: entry.case for entry in listed}
    return [
        Task(case=case, kinds=[kind for kind in kinds if any(baseline.of_case(label, kind))])
        for label, case in cases.items()
    ]


def run_task(
    task: Task, device: str, time_limit_seconds: float, progress: Progress | None = None
) -> Profiled:
    """Simulate a case and, where that is wanted, measure it; rehearse a command.

    Args:
        task: what to profile.
        device: where to measure, as `profile --device`.
        time_limit_seconds: for the measurement.
        progress: what shows how far the work is.
    """
    from tritter_mem.config.loading import load_any
    from tritter_mem.profiling.profiler import MeasurementFailedError, profile

    if task.case.command:
        return _rehearsed(task)
    try:
        result = profile(
            load_any(task.case.config, task.case.settings),
            device=device if "measured" in task.kinds else "none",
            time_limit_seconds=time_limit_seconds,
            fast=task.case.fast,
            progress=progress,
        )
    except MeasurementFailedError as error:
        return Profiled(task=task, result=error.result, problem="; ".join(error.problems))
    except TritterMemError as error:
        problem, code = "; ".join(error.problems), error.exit_code
        return Profiled(task=task, result=None, problem=problem, exit_code=code)
    return Profiled(task=task, result=result)


def _rehearsed(task: Task) -> Profiled:
    from tritter_mem.check.rehearsed import rehearsed_command

    try:
        return Profiled(task=task, result=rehearsed_command(task.case))
    except TritterMemError as error:
        problem = "; ".join(error.problems)
        return Profiled(task=task, result=None, problem=problem, exit_code=error.exit_code)


def from_file(baseline: Baseline, result: Result) -> Profiled:
    """A result that was made before, as what the baseline's case came to."""
    kinds = [kind for kind in PROFILED_KINDS if kind in result.by_kind()] or ["simulated"]
    return Profiled(task=Task(case=_case_of(baseline, result), kinds=kinds), result=result)


def _case_of(baseline: Baseline, result: Result) -> Case:
    """By the profile's content, else by its name where that names one case alone."""
    same = [entry.case for entry in baseline.entries if entry.profile_hash == result.profile_hash]
    named = {e.case.label: e.case for e in baseline.entries if Path(e.config).stem == result.name}
    alone = list(named.values()) if len(named) == 1 else []
    return next(iter(same + alone), Case(config=result.name))


def outcomes_of(
    profiled: Iterable[Profiled], baseline: Baseline, rules: Rules
) -> tuple[CaseOutcome, ...]:
    """Compare what cases came to with the baseline, kind by kind."""
    return tuple(
        compare(found, baseline, rules) if isinstance(found, Entry) else one.failed(kind, found)
        for one in profiled
        for kind, found in one.found()
    )


def update(
    baseline: Baseline, profiled: Sequence[Profiled]
) -> tuple[Baseline | None, tuple[CaseOutcome, ...]]:
    """The baseline with new figures, and what that changes.

    No baseline where something could not be profiled: what is committed is whole.
    """
    found = [(one, kind, entry) for one in profiled for kind, entry in one.found()]
    outcomes = tuple(
        _what_changes(entry, baseline) if isinstance(entry, Entry) else one.failed(kind, entry)
        for one, kind, entry in found
    )
    entries = [entry for _, _, entry in found if isinstance(entry, Entry)]
    return (updated(baseline, entries) if len(entries) == len(found) else None), outcomes


def updated(baseline: Baseline, entries: Iterable[Entry]) -> Baseline:
    """The baseline with new entries, sorted; those that were not made anew stay as they are.

    The gate and tolerance of an entry are kept, and go over to another GPU or version of PyTorch.
    """
    found = {entry.key: entry for entry in baseline.entries}
    for entry in entries:
        others = baseline.of_case(entry.case.label, entry.kind)
        own = found.get(entry.key) or next(others, entry)
        found[entry.key] = replace(entry, gate=own.gate, tolerance=own.tolerance)
    return replace(baseline, entries=tuple(found[key] for key in sorted(found)))


def _what_changes(now: Entry, baseline: Baseline) -> CaseOutcome:
    before = baseline.find(now.key)
    if before is None:
        return _added(now, baseline)
    same = before.figures == now.figures and before.profile_hash == now.profile_hash
    changed = difference(now, before, before.gate or baseline.gate)
    return replace(changed, status="ok" if same else "updated")


def _added(now: Entry, baseline: Baseline) -> CaseOutcome:
    allocated, reserved = (
        None if peak is None else SizeChange(baseline_bytes=0, now_bytes=peak)
        for peak in (now.figures.allocated_peak_bytes, now.figures.reserved_peak_bytes)
    )
    outcome = difference(now, now, baseline.gate)
    return replace(outcome, status="added", allocated=allocated, reserved=reserved)
