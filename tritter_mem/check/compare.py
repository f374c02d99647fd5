"""Today's figures compared with the baseline's, and what grew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE
from tritter_mem.results.baseline import (
    Baseline,
    Case,
    CheckedKind,
    Entry,
    Figures,
    Gate,
    PhasePeaks,
    Tolerance,
)
from tritter_mem.results.check import CaseOutcome, Group, Moved, Reason, SizeChange, Status
from tritter_mem.results.run import HeldBySame, MemoryUse, Result, held_by_same

_NUMBER = re.compile(r"(?<=\.)\d+\b")
_EXIT_CODES: dict[Status, int] = {
    "regression": EXIT_DOES_NOT_FIT,
    "no entry": EXIT_USAGE,
    "other torch": EXIT_USAGE,
    "other profile": EXIT_USAGE,
    "failed": EXIT_USAGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the command line says for this run; None where it says nothing."""

    gate: Gate | None = None
    relative: float | None = None
    absolute_bytes: int | None = None

    def gate_of(self, entry: Entry, baseline: Baseline) -> Gate:
        """The command line's, else the entry's, else the baseline's."""
        return self.gate or entry.gate or baseline.gate

    def tolerance_of(self, entry: Entry, baseline: Baseline) -> Tolerance:
        """Each part: the command line's, else the entry's, else the baseline's."""
        said = entry.tolerance or baseline.tolerance
        return Tolerance(
            relative=said.relative if self.relative is None else self.relative,
            absolute_bytes=(
                said.absolute_bytes if self.absolute_bytes is None else self.absolute_bytes
            ),
        )


def entry_of(case: Case, kind: CheckedKind, result: Result) -> Entry:
    """What a baseline keeps of a result.

    Raises:
        KeyError: the result has no such kind of number.
    """
    return Entry(
        config=case.config,
        settings=case.settings,
        fast=case.fast,
        command=case.command,
        gpus=case.gpus if case.gpus > 1 else None,
        kind=kind,
        gpu=result.gpu_of(kind),
        torch=(result.environment.torch or "none").partition("+")[0],
        profile_hash=result.profile_hash,
        figures=figures_of(result.by_kind()[kind]),
    )


def figures_of(use: MemoryUse) -> Figures:
    """What of a kind of answer is compared."""
    return Figures(
        allocated_peak_bytes=use.allocated_peak_bytes,
        reserved_peak_bytes=use.reserved_peak_bytes,
        peak_at=_NUMBER.sub("*", use.peak_at) if use.peak_at else None,
        components={name: size for name, size in use.components.items().items() if size},
        phases={
            phase.name: PhasePeaks(
                allocated_peak_bytes=phase.allocated_peak_bytes,
                reserved_peak_bytes=phase.reserved_peak_bytes,
            )
            for phase in use.phases
        },
        held_at_peak=tuple(
            sorted(held_by_same(use.held_at_peak), key=lambda h: (h.component, h.module))
        ),
    )


def compare(now: Entry, baseline: Baseline, rules: Rules) -> CaseOutcome:
    """Compare one case's figures with the baseline's entry of the same name."""
    before = baseline.find(now.key) or _of_other_torch(now, baseline)
    if before is None:
        return _without_entry(now, baseline)
    gate = rules.gate_of(before, baseline)
    change = _change(before.figures.peak_bytes(gate), now.figures.peak_bytes(gate))
    tolerated = rules.tolerance_of(before, baseline).of(change.baseline_bytes) if change else 0
    status, message = _not_alike(now, before) or _judge(change, tolerated, gate)
    return replace(
        difference(now, before, gate),
        status=status,
        message=message,
        tolerated_bytes=tolerated,
        exit_code=_EXIT_CODES.get(status, EXIT_OK),
    )


def _of_other_torch(now: Entry, baseline: Baseline) -> Entry | None:
    """The newest entry that differs in PyTorch's version alone."""
    found = [e for e in baseline.of_case(now.case.label, now.kind) if e.gpu == now.gpu]
    return max(found, key=lambda entry: _version(entry.torch), default=None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _without_entry(now: Entry, baseline: Baseline) -> CaseOutcome:
    known = sorted({entry.gpu for entry in baseline.of_case(now.case.label, now.kind)})
    found = f"the baseline has it for {', '.join(known)} alone" if known else "not in the baseline"
    return replace(
        _outcome_of(now),
        status="no entry",
        message=f"{found}; check --update-baseline {now.case.options} adds it",
        exit_code=EXIT_USAGE,
    )


def _not_alike(now: Entry, before: Entry) -> tuple[Status, str] | None:
    """Why the two may not be compared; None where they may."""
    if before.torch != now.torch:
        return "other torch", (
            f"the baseline is of torch {before.torch}, this is {now.torch}: the figures decide "
            "nothing; check --update-baseline with this version adds its own"
        )
    if before.profile_hash != now.profile_hash:
        return "other profile", (
            "the profile, or what is filled in where it says nothing, changed since: the figures "
            "decide nothing; if that is intended, run check --update-baseline"
        )
    return None


def _judge(change: SizeChange | None, tolerated_bytes: int, gate: Gate) -> tuple[Status, str]:
    if change is None:
        return "failed", f"the gate is the {gate} peak, which is not known here"
    if change.growth_bytes > tolerated_bytes:
        return "regression", ""
    return ("gain" if -change.growth_bytes > tolerated_bytes else "ok"), ""


def difference(now: Entry, before: Entry, gate: Gate) -> CaseOutcome:
    """What differs between two entries, not judged."""
    return replace(
        _outcome_of(now),
        gate=gate,
        allocated=_change(*(e.figures.allocated_peak_bytes for e in (before, now))),
        reserved=_change(*(e.figures.reserved_peak_bytes for e in (before, now))),
        moved=_moved(before.figures.peak_at, now.figures.peak_at),
        reasons=tuple(explain(before.figures, now.figures, gate)),
    )


def _outcome_of(now: Entry) -> CaseOutcome:
    """The outcome of a case that nothing is said of yet."""
    return CaseOutcome(
        label=now.case.label, kind=now.kind, gpu=now.gpu, torch=now.torch, status="ok"
    )


def _change(baseline_bytes: int | None, now_bytes: int | None) -> SizeChange | None:
    if baseline_bytes is None or now_bytes is None:
        return None
    return SizeChange(baseline_bytes=baseline_bytes, now_bytes=now_bytes)


def _moved(baseline: str | None, now: str | None) -> Moved | None:
    if baseline is None or now is None or baseline == now:
        return None
    return Moved(baseline=baseline, now=now)


def explain(before: Figures, now: Figures, gate: Gate) -> Iterator[Reason]:
    """Components, phases and modules that changed; those that moved the peak most come first."""
    grew = (now.peak_bytes(gate) or 0) >= (before.peak_bytes(gate) or 0)
    for reasons in (_components(before, now), _phases(before, now, gate), _modules(before, now)):
        changed = [reason for reason in reasons if reason.change.growth_bytes]
        yield from sorted(changed, key=lambda r: r.change.growth_bytes * (-1 if grew else 1))


def _reason(group: Group, name: str, sizes: tuple[int | None, int | None]) -> Reason:
    first, second = sizes
    change = SizeChange(baseline_bytes=first or 0, now_bytes=second or 0)
    return Reason(group=group, name=name, change=change)


def _components(before: Figures, now: Figures) -> Iterator[Reason]:
    for name in {**before.components, **now.components}:
        sizes = before.components.get(name), now.components.get(name)
        yield _reason("component", name, sizes)


def _phases(before: Figures, now: Figures, gate: Gate) -> Iterator[Reason]:
    for name in {**before.phases, **now.phases}:
        sizes = _phase_peak(before, name, gate), _phase_peak(now, name, gate)
        yield _reason("phase", name, sizes)


def _phase_peak(figures: Figures, name: str, gate: Gate) -> int | None:
    peaks = figures.phases.get(name)
    if peaks is None:
        return None
    return peaks.allocated_peak_bytes if gate == "allocated" else peaks.reserved_peak_bytes


def _modules(before: Figures, now: Figures) -> Iterator[Reason]:
    """Nothing where either knows no modules: all of the other's would seem new."""
    if not (before.held_at_peak and now.held_at_peak):
        return
    first = {(held.module, held.component): held for held in before.held_at_peak}
    second = {(held.module, held.component): held for held in now.held_at_peak}
    for key in {**first, **second}:
        module, component = key
        nothing = HeldBySame(module=module, component=component, count=0, allocated_bytes=0)
        was, is_now = first.get(key, nothing), second.get(key, nothing)
        reason = _reason("module", module, (was.allocated_bytes, is_now.allocated_bytes))
        yield replace(reason, component=component, count=is_now.count)
