"""Every checkpointing policy measured, each in a process of its own, beside what was simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tritter_mem.config.schema import Profile
from tritter_mem.errors import MeasureError
from tritter_mem.measure import runs
from tritter_mem.measure.answer import Where
from tritter_mem.planner.change import changed
from tritter_mem.results import CheckpointCase, OutOfMemory
from tritter_mem.trace.bundled import run_settings
from tritter_mem.trace.progress import Progress
from tritter_mem.units import format_bytes

Cases = tuple[CheckpointCase, ...]


def measured_trade_off(
    profile: Profile, cases: Sequence[CheckpointCase], where: Where, progress: Progress
) -> Iterator[tuple[Cases, Sequence[str]]]:
    """Measure a training step under each policy, one after another; nothing where nothing can be.

    One that fails does not end the others. A budget caps each, as it caps the profile's own run.

    Args:
        profile: a resolved training profile; its own policy does not matter.
        cases: what was simulated.
        where: the device, and the card to run as on.
        progress: told which one runs.

    Yields:
        After each policy all cases, with what is measured so far, and what went wrong with this.
    """
    found = list(cases)
    for number, case in enumerate(cases if where.target else ()):
        name = f"{case.policy}:{case.n}" if case.n > 1 else case.policy
        progress.begin(f"{profile.name}, {name}: measuring")
        found[number] = measured = _measured(profile, case, where)
        failed = measured.measured_allocated_peak_bytes is None
        yield tuple(found), [f"{name}: {measured.measured_reason}"] if failed else []


def _measured(profile: Profile, case: CheckpointCase, where: Where) -> CheckpointCase:
    if where.target is None:
        return case
    own = changed(profile, {"training.checkpointing": {"policy": case.policy, "n": case.n}})
    try:
        estimate = runs.measure_once(run_settings(own, where.simulated), where.target)
    except MeasureError as error:
        return replace(case, measured_reason=str(error))
    refused = estimate.out_of_memory
    return replace(
        case,
        measured_allocated_peak_bytes=estimate.allocated_peak_bytes,
        measured_reserved_peak_bytes=estimate.reserved_peak_bytes,
        measured_seconds=None if refused else runs.seconds_of(estimate),
        measured_reason=_sentence(refused) if refused else None,
    )


def _sentence(refused: OutOfMemory) -> str:
    return (
        f"out of memory in {refused.phase or 'no phase'}: "
        f"{format_bytes(refused.requested_bytes)} more than {format_bytes(refused.reserved_bytes)} "
        f"reserved, of {format_bytes(refused.limit_bytes)}"
    )
