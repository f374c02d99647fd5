"""A new baseline from new figures, and what that changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tritter_mem.check.baseline import Baseline, Entry
from tritter_mem.check.compare import difference
from tritter_mem.check.outcome import Change, Outcome
from tritter_mem.check.run import Profiled


def update(
    baseline: Baseline, profiled: Sequence[Profiled]
) -> tuple[Baseline | None, tuple[Outcome, ...]]:
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


def _what_changes(now: Entry, baseline: Baseline) -> Outcome:
    before = baseline.find(now.key)
    if before is None:
        return _added(now, baseline)
    same = before.figures == now.figures and before.profile_hash == now.profile_hash
    changed = difference(now, before, before.gate or baseline.gate)
    return replace(changed, status="ok" if same else "updated")


def _added(now: Entry, baseline: Baseline) -> Outcome:
    allocated, reserved = (
        None if peak is None else Change(baseline_bytes=0, now_bytes=peak)
        for peak in (now.figures.allocated_peak_bytes, now.figures.reserved_peak_bytes)
    )
    outcome = difference(now, now, baseline.gate)
    return replace(outcome, status="added", allocated=allocated, reserved=reserved)
