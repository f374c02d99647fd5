"""A new baseline from new figures, and what that changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tritter_mem.check.baseline import Baseline, Entry
from tritter_mem.check.compare import difference
from tritter_mem.check.outcome import Change, Outcome


def updated(baseline: Baseline, entries: Iterable[Entry]) -> Baseline:
    """The baseline with new figures, sorted; entries that were not made anew stay as they are.

    The gate and tolerance of an entry are kept, and go over to another GPU or version of PyTorch.
    """
    found = {entry.key: entry for entry in baseline.entries}
    for entry in entries:
        others = baseline.of_case(entry.case.label, entry.kind)
        own = found.get(entry.key) or next(others, entry)
        found[entry.key] = replace(entry, gate=own.gate, tolerance=own.tolerance)
    return replace(baseline, entries=tuple(found[key] for key in sorted(found)))


def what_changes(now: Entry, baseline: Baseline) -> Outcome:
    """What writing an entry changes in a baseline."""
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
