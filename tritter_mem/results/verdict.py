"""Kinds of answer compared with each other, and the best of them with the budget."""

from __future__ import annotations

from collections.abc import Iterable

from tritter_mem.results.run import (
    COMPONENTS,
    KINDS,
    RUN_KINDS,
    Difference,
    Kind,
    KindPair,
    MemoryUse,
    Result,
    Suggestion,
    Verdict,
)

TOLERANCES: dict[KindPair, float] = {
    ("planned", "simulated"): 0.02,
    ("simulated", "rehearsed"): 0.005,
    ("planned", "rehearsed"): 0.02,
    ("simulated", "measured"): 0.005,
    ("planned", "measured"): 0.02,
    ("rehearsed", "measured"): 0.005,
}
"""How far one kind of answer may be from the next."""
RESERVED_TOLERANCE = 0.01
"""What is reserved depends on the order of all requests: it may differ a little more."""


def tolerance_of(name: str, pair: KindPair) -> float:
    """How far a component or total of two kinds of answer may be apart, as a ratio."""
    return RESERVED_TOLERANCE if name == "reserved_peak" else TOLERANCES[pair]


def compare(uses: dict[Kind, MemoryUse]) -> tuple[Difference, ...]:
    """Set every component and the peaks side by side; rows of zeros are left out.

    The reserved peak is there where two kinds of answer know it. A run on the CPU has no libraries'
    workspaces and no allocator that rounds: against it the ratios leave both out.
    """
    known = [e for e in uses.values() if e.reserved_peak_bytes is not None]
    names = [*COMPONENTS, "allocated_peak", *(["reserved_peak"] if len(known) > 1 else [])]
    rows = (_difference(name, uses) for name in names)
    return tuple(row for row in rows if row is not None)


def _bytes_of(use: MemoryUse, name: str) -> int | None:
    if name in ("allocated_peak", "reserved_peak"):
        found: int | None = getattr(use, f"{name}_bytes")
        return found
    return use.components.items()[name] if use.components_known else None


def _difference(name: str, uses: dict[Kind, MemoryUse]) -> Difference | None:
    found = {kind: _bytes_of(use, name) for kind, use in uses.items()}
    if not any(found.values()):
        return None
    planned, simulated, rehearsed, measured = (found.get(kind) for kind in KINDS)
    on_cpu = {
        kind: None if size is None else size - _beyond_the_cpu(uses[kind], name)
        for kind, size in found.items()
    }
    alike = on_cpu if "measured" in found and uses["measured"].device == "cpu" else found
    return Difference(
        name=name,
        planned_bytes=planned,
        simulated_bytes=simulated,
        measured_bytes=measured,
        planned_vs_simulated=_ratio(planned, simulated),
        simulated_vs_measured=_ratio(alike.get("simulated"), measured),
        planned_vs_measured=_ratio(alike.get("planned"), measured),
        rehearsed_bytes=rehearsed,
        planned_vs_rehearsed=_ratio(planned, rehearsed),
        simulated_vs_rehearsed=_ratio(simulated, rehearsed),
        rehearsed_vs_measured=_ratio(alike.get("rehearsed"), measured),
    )


def _beyond_the_cpu(use: MemoryUse, name: str) -> int:
    workspace, rounding = use.library_workspace_bytes, use.components.rounding_bytes
    beyond = {
        "workspace": workspace,
        "rounding": rounding,
        "allocated_peak": workspace + rounding,
    }
    return beyond.get(name, 0)


def _ratio(first: int | None, second: int | None) -> float | None:
    if not first or second is None:
        return None
    return second / first - 1


def judge(uses: dict[Kind, MemoryUse], budget_bytes: int,
          suggestions: Iterable[Suggestion] = ()) -> Verdict | None:  # fmt: skip
    """Compare the best kind of answer there is with the budget.

    None where there is no answer, or only a lower bound which is within the budget.
    """
    basis = next((kind for kind in reversed(KINDS) if kind in uses), None)
    if basis is None:
        return None
    # A run that went out of memory ends there: it needs the refused request at least.
    refused = uses[basis].out_of_memory if basis in RUN_KINDS else None
    needs = uses[basis].footprint_bytes + (refused.requested_bytes if refused else 0)
    headroom = budget_bytes - needs
    if headroom >= 0 and uses[basis].lower_bound_reason is not None:
        return None
    return Verdict(
        fits=headroom >= 0 and refused is None,
        budget_bytes=budget_bytes,
        headroom_bytes=headroom,
        basis=basis,
        suggestions=tuple(suggestions),
    )


def basis_of(result: Result) -> Kind | None:
    """The kind of answer that the verdict stands on; without a verdict the best there is."""
    if result.verdict is not None and result.verdict.basis in result.by_kind():
        return result.verdict.basis
    kinds = list(on_the_card(result)) or list(result.by_kind())
    return kinds[-1] if kinds else None


def on_the_card(result: Result) -> dict[Kind, MemoryUse]:
    """The kinds of answer that can be compared with a card's budget.

    A run on the CPU has neither context nor libraries' workspaces: it counts only where the
    verdict says that it does.
    """
    basis = result.verdict.basis if result.verdict else None
    return {k: e for k, e in result.by_kind().items() if e.device != "cpu" or k == basis}


def best_kind_with(result: Result, field: str) -> Kind | None:
    """The best kind of answer where a field is there and not empty."""
    found = [kind for kind, use in result.by_kind().items() if getattr(use, field)]
    return found[-1] if found else None
