"""What a check profiles, and what its results come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritter_mem.check.baseline import Baseline, Case, CheckedKind, Entry
from tritter_mem.check.compare import Rules, compare, entry_of
from tritter_mem.check.outcome import Outcome
from tritter_mem.errors import EXIT_NOT_MEASURED, TritterMemError
from tritter_mem.results import Result

if TYPE_CHECKING:
    from tritter_mem.trace.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """One case's result, or what went wrong.

    Attributes:
        result: None where there is none at all.
        problem: why something is missing.
        exit_code: of the problem.
    """

    case: Case
    result: Result | None
    problem: str = ""
    exit_code: int = EXIT_NOT_MEASURED


def cases_of(baseline: Baseline, kinds: Sequence[CheckedKind]) -> list[Case]:
    """What the baseline lists of some kinds, each case once."""
    listed = (entry.case for entry in baseline.entries if entry.kind in kinds)
    return list({case.label: case for case in listed}.values())


def case_of_result(baseline: Baseline, result: Result) -> Case:
    """The case that a result of a file belongs to: by the profile's content, else by its name."""
    same = [entry.case for entry in baseline.entries if entry.profile_hash == result.profile_hash]
    named = {e.case.label: e.case for e in baseline.entries if Path(e.config).stem == result.name}
    alone = list(named.values()) if len(named) == 1 else []
    return next(iter(same + alone), Case(config=result.name))


def run_case(
    case: Case, device: str, time_limit_seconds: float, progress: Progress | None = None
) -> Profiled:
    """Simulate a case and, where a device is given, measure it.

    Args:
        case: what to profile.
        device: as `profile --device`; `none` to simulate alone.
        time_limit_seconds: for the measurement.
        progress: told how far the work is.
    """
    from tritter_mem.config.loading import load_profile
    from tritter_mem.measure.profile import MeasurementFailedError, profile

    try:
        loaded = load_profile(case.config, case.settings)
        result = profile(
            loaded,
            device=device,
            time_limit_seconds=time_limit_seconds,
            fast=case.fast,
            progress=progress,
        )
    except MeasurementFailedError as error:
        return Profiled(case=case, result=error.result, problem="; ".join(error.problems))
    except TritterMemError as error:
        problem, code = "; ".join(error.problems), error.exit_code
        return Profiled(case=case, result=None, problem=problem, exit_code=code)
    return Profiled(case=case, result=result)


def entries_of(
    profiled: Profiled, kinds: Iterable[CheckedKind]
) -> Iterator[tuple[CheckedKind, Entry | str]]:
    """For each kind what a baseline would keep, or why there is nothing."""
    result = profiled.result
    for kind in kinds:
        if result is not None and kind in result.estimates():
            yield kind, entry_of(profiled.case, kind, result)
        else:
            reason = getattr(result, f"{kind}_reason", None)
            yield kind, profiled.problem or reason or f"there is no {kind} number"


def outcomes_of(
    profiled: Profiled, kinds: Iterable[CheckedKind], baseline: Baseline, rules: Rules
) -> Iterator[Outcome]:
    """Hold what a case came to against the baseline, kind by kind."""
    for kind, found in entries_of(profiled, kinds):
        if isinstance(found, Entry):
            yield compare(found, baseline, rules)
        else:
            yield failed(profiled, kind, found)


def failed(profiled: Profiled, kind: CheckedKind, why: str) -> Outcome:
    """The outcome of a case that has no figures."""
    return Outcome(
        label=profiled.case.label,
        kind=kind,
        gpu="",
        torch="",
        status="failed",
        message=why,
        exit_code=profiled.exit_code,
    )


def kinds_of(
    case: Case, baseline: Baseline, kinds: Sequence[CheckedKind]
) -> tuple[CheckedKind, ...]:
    """The kinds of a case that the baseline lists, among some."""
    return tuple(kind for kind in kinds if any(baseline.of_case(case.label, kind)))


def with_speed(case: Case, baseline: Baseline) -> Case:
    """A case that is asked for, as fast as its entry."""
    listed = (entry.fast for entry in baseline.entries if entry.case.label == case.label)
    return replace(case, fast=case.fast or any(listed))
