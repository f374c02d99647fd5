"""Which setting to use: a decision over finished scenarios, in words."""

from __future__ import annotations

from collections.abc import Sequence

from tritter_mem.allocator.outcome import Advice, Scenario
from tritter_mem.units import MiB, format_bytes

# A change of settings must save this much to be worth it.
WORTHWHILE_RATIO = 0.01
WORTHWHILE_BYTES = 20 * MiB
# Savings this close count as equal; the first in the table wins.
EQUAL_RATIO = 0.005


def advise(
    scenarios: Sequence[Scenario], capacity_bytes: int | None, needed: Scenario | None = None
) -> Advice:
    """Say which setting to use, and when none helps.

    Args:
        scenarios: the recorded settings first.
        capacity_bytes: what segments may take; None: no limit.
        needed: where nothing fits, the scenario that needs least, run without a limit.
    """
    recorded = scenarios[0]
    if recorded.fits:
        return _saving(scenarios, "" if capacity_bytes is None else _room(recorded, capacity_bytes))
    fitting = [scenario for scenario in scenarios if scenario.fits]
    if capacity_bytes is not None and fitting:
        return _rescue(fitting, capacity_bytes)
    return _hopeless(capacity_bytes, needed)


def _room(scenario: Scenario, capacity_bytes: int) -> str:
    spare = format_bytes(capacity_bytes - scenario.reserved_peak_bytes)
    return f"The recorded settings fit, with {spare} to spare. "


def _saving(scenarios: Sequence[Scenario], room: str) -> Advice:
    # The recorded cache may stem from earlier work, so settings are compared from a fresh start.
    base = next((s for s in scenarios if s.fresh and s.conf == scenarios[0].conf), scenarios[0])
    best = _least([scenario for scenario in scenarios if scenario.fits])
    saved = base.reserved_peak_bytes - best.reserved_peak_bytes
    if best.conf == base.conf or saved < _worthwhile(base):
        return Advice(
            text=f"{room}No setting helps: none reserves noticeably less than "
            f"{format_bytes(base.reserved_peak_bytes)} for a peak of "
            f"{format_bytes(base.allocated_peak_bytes)} allocated."
        )
    return Advice(
        text=f"{room}Use {_named(best)}: reserves {format_bytes(best.reserved_peak_bytes)} at the "
        f"peak, {format_bytes(saved)} less.",
        conf=best.conf,
    )


def _rescue(fitting: Sequence[Scenario], capacity_bytes: int) -> Advice:
    best = _least(fitting)
    spare = format_bytes(capacity_bytes - best.reserved_peak_bytes)
    return Advice(
        text=f"The recorded settings do not fit. Use {_named(best)}: every request is served, "
        f"{format_bytes(best.reserved_peak_bytes)} reserved at the peak, {spare} to spare.",
        conf=best.conf,
    )


def _hopeless(capacity_bytes: int | None, needed: Scenario | None) -> Advice:
    text = "No setting helps: none of them fits."
    if needed is None or capacity_bytes is None:
        return Advice(text=text)
    allocated = needed.allocated_peak_bytes
    if allocated > capacity_bytes:
        short = format_bytes(allocated - capacity_bytes)
        why = f"The live tensors alone need {format_bytes(allocated)}, {short} more than there is"
    else:
        why = f"The live tensors need {format_bytes(allocated)}"
    return Advice(
        text=f"{text} {why}; with {_named(needed)} {format_bytes(needed.reserved_peak_bytes)} "
        "would have to be reserved."
    )


def _least(scenarios: Sequence[Scenario]) -> Scenario:
    least = min(scenario.reserved_peak_bytes for scenario in scenarios)
    return next(s for s in scenarios if s.reserved_peak_bytes <= least * (1 + EQUAL_RATIO))


def _worthwhile(base: Scenario) -> float:
    return max(WORTHWHILE_RATIO * base.reserved_peak_bytes, WORTHWHILE_BYTES)


def _named(scenario: Scenario) -> str:
    if scenario.conf:
        return scenario.conf
    return "PyTorch's defaults" if scenario.fresh else "the recorded settings"
