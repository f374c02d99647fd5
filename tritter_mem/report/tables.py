"""Result to tables: which rows there are, and their order, for every renderer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tritter_mem.report.differences import (
    Pair,
    compared_pairs,
    difference_cell,
    difference_column,
)
from tritter_mem.report.table import (
    BLANK,
    UNKNOWN,
    Bars,
    Cell,
    Column,
    Row,
    Table,
    bytes_cell,
    headroom_cell,
    on_scale,
)
from tritter_mem.report.words import (
    KIND_LABELS,
    NAME_LIMIT,
    flatten,
    label,
    name_of,
    number,
    printable,
    setting,
)
from tritter_mem.results import COMPONENTS, Environment, Estimate, Kind, Phase, Result
from tritter_mem.units import format_bytes, format_count

TOTALS = ("allocated_peak", "reserved_peak", "context", "device_peak", "resident_peak")


def basis_of(result: Result) -> Kind | None:
    """The kind of number that the verdict stands on; without a verdict the best there is."""
    if result.verdict is not None and result.verdict.basis in result.estimates():
        return result.verdict.basis
    kinds = list(held(result)) or list(result.estimates())
    return kinds[-1] if kinds else None


def held(result: Result) -> dict[Kind, Estimate]:
    """The kinds of number that can be held against a card's budget.

    A run on the CPU has neither context nor libraries' workspaces: it counts only where the
    verdict says that it does.
    """
    basis = result.verdict.basis if result.verdict else None
    return {k: e for k, e in result.estimates().items() if e.device != "cpu" or k == basis}


def budget_table(result: Result, units: str) -> Table:
    """Bytes by component, the totals under them, the budget and what is left of it."""
    kinds = list(result.estimates())
    pairs = compared_pairs(kinds)
    return Table(
        caption="Budget by component",
        columns=(
            Column(label="Component", numeric=False),
            *(Column(label=KIND_LABELS[kind]) for kind in kinds),
            *(difference_column(pair, alone=len(pairs) == 1) for pair in pairs),
        ),
        rows=(
            *_component_rows(result, pairs, units),
            *_total_rows(result, pairs, units),
            *_budget_rows(result, len(pairs), units),
        ),
        bars=_budget_bars(result),
    )


def _budget_bars(result: Result) -> Bars | None:
    """Bars of the kind of number that the verdict stands on, with the limit where it is near."""
    basis = basis_of(result)
    if basis is None:
        return None
    needs = result.estimates()[basis].footprint_bytes
    budget = result.verdict.budget_bytes if result.verdict else None
    if budget is None or not on_scale(budget, needs):
        return Bars(label=KIND_LABELS[basis], full_bytes=max(needs, 1))
    return Bars(
        label=f"{KIND_LABELS[basis]} vs budget",
        full_bytes=max(needs, budget),
        limit_bytes=budget,
    )


def _component_rows(result: Result, pairs: Sequence[Pair], units: str) -> list[Row]:
    parts = {
        kind: e.components.items() if e.components_known else {}
        for kind, e in result.estimates().items()
    }
    found = {name: {kind: part.get(name) for kind, part in parts.items()} for name in COMPONENTS}
    return [
        Row(cells=_bytes_cells(result, name, sizes, pairs, units), bar_bytes=_bar(result, sizes))
        for name, sizes in found.items()
        if any(sizes.values())
    ]


def _total_rows(result: Result, pairs: Sequence[Pair], units: str) -> list[Row]:
    estimates = result.estimates()
    found = {name: {k: total_bytes(e, name) for k, e in estimates.items()} for name in TOTALS}
    return [
        Row(
            cells=_bytes_cells(result, name, sizes, pairs, units),
            # Resident memory is the host's: it has no place beside the card's.
            bar_bytes=None if name == "resident_peak" else _bar(result, sizes),
            total=True,
        )
        for name, sizes in found.items()
        if any(size is not None for size in sizes.values())
    ]


def total_bytes(estimate: Estimate, name: str) -> int | None:
    """A total of an estimate by its name in `TOTALS`; None where it is not known."""
    if name == "device_peak" and estimate.device_peak_bytes is None:
        known = (estimate.reserved_peak_bytes, estimate.context_bytes) != (None, None)
        return estimate.footprint_bytes if known else None
    found: int | None = getattr(estimate, f"{name}_bytes")
    return found


def _bar(result: Result, sizes: Mapping[Kind, int | None]) -> int | None:
    basis = basis_of(result)
    return sizes.get(basis) if basis else None


def _bytes_cells(
    result: Result,
    name: str,
    sizes: Mapping[Kind, int | None],
    pairs: Sequence[Pair],
    units: str,
) -> tuple[Cell, ...]:
    difference = next((d for d in result.differences if d.name == name), None)
    return (
        Cell(text=label(name)),
        *(bytes_cell(size, units) for size in sizes.values()),
        *(difference_cell(difference, pair) for pair in pairs),
    )


def _budget_rows(result: Result, blanks: int, units: str) -> list[Row]:
    """The budget, and what each kind of number leaves of it; without a verdict there is neither."""
    if result.verdict is None:
        return []
    verdict, kinds = result.verdict, held(result)
    budget = verdict.budget_bytes
    budgets = [bytes_cell(budget, units) for _ in result.estimates()]
    # Of a run that went out of memory the verdict knows what it needed beyond its figures.
    found = {k: budget - e.footprint_bytes for k, e in kinds.items()}
    found |= {k: verdict.headroom_bytes for k in kinds if k == verdict.basis}
    left = [
        headroom_cell(found[k], units, words=False) if k in found else UNKNOWN
        for k in result.estimates()
    ]
    empty = [BLANK] * blanks
    return [
        Row(cells=(Cell(text=label("budget")), *budgets, *empty), total=True),
        Row(cells=(Cell(text=label("headroom")), *left, *empty), total=True),
    ]


Phases = Mapping[Kind, Mapping[str, Phase]]


def phase_table(result: Result, units: str) -> Table | None:
    """Peaks by phase; None where no kind of number has phases.

    Allocated for each kind; the rest from the best kind that knows it.
    """
    phases = {k: {p.name: p for p in e.phases} for k, e in result.estimates().items()}
    names = list(dict.fromkeys(name for found in phases.values() for name in found))
    if not names:
        return None
    extras = [x for x in _PHASE_EXTRAS if any(_best(phases, n, x[1]) is not None for n in names)]
    peaks = {name: _best(phases, name, "allocated_peak_bytes") for name in names}
    return Table(
        caption="Allocated peak by phase",
        columns=(
            Column(label="Phase", numeric=False),
            *(Column(label=KIND_LABELS[kind]) for kind in phases),
            *(Column(label=heading) for heading, *_ in extras),
        ),
        rows=[
            Row(cells=_phase_cells(phases, name, extras, units), bar_bytes=peaks[name])
            for name in names
        ],
        bars=Bars(label="Peak", full_bytes=max(*peaks.values(), 1)),
    )


PhaseExtra = tuple[str, str, Callable[[Any, str], str]]
_PHASE_EXTRAS: tuple[PhaseExtra, ...] = (
    ("Reserved", "reserved_peak_bytes", format_bytes),
    ("Seconds", "seconds", lambda seconds, _: number(seconds)),
    ("Tokens/s", "tokens_per_second", lambda rate, _: number(rate)),
)


def _best(phases: Phases, name: str, field: str) -> Any:
    """A field of a phase from the best kind of number that knows it."""
    found = [getattr(p[name], field) for p in phases.values() if name in p]
    return next((value for value in reversed(found) if value is not None), None)


def _phase_cells(
    phases: Phases, name: str, extras: Sequence[PhaseExtra], units: str
) -> tuple[Cell, ...]:
    peaks = [p[name].allocated_peak_bytes if name in p else None for p in phases.values()]
    more = [(_best(phases, name, field), show) for _, field, show in extras]
    return (
        Cell(text=label(name)),
        *(bytes_cell(peak, units) for peak in peaks),
        *(UNKNOWN if v is None else Cell(text=show(v, units), value=v) for v, show in more),
    )


def comparison_table(results: Sequence[Result], units: str) -> Table:
    """One row a profile: what is left of the budget, and what the card must hold."""
    kinds = [kind for kind in KIND_LABELS if any(kind in held(r) for r in results)]
    rows = [_comparison_row(result, kinds, units) for result in results]
    return Table(
        caption="Profiles compared",
        columns=(
            Column(label="Profile", numeric=False),
            Column(label="Headroom"),
            Column(label="Mode", numeric=False, wide=True),
            Column(label="Context"),
            Column(label="Batch", wide=True),
            Column(label="Card", numeric=False, wide=True),
            *(Column(label=KIND_LABELS[kind]) for kind in kinds),
            Column(label="Budget", wide=True),
        ),
        rows=rows,
        bars=Bars(label="Needs", full_bytes=max(1, *(row.bar_bytes or 0 for row in rows))),
    )


def _comparison_row(result: Result, kinds: Sequence[Kind], units: str) -> Row:
    needs = {kind: e.footprint_bytes for kind, e in held(result).items()}
    verdict, basis = result.verdict, basis_of(result)
    return Row(
        cells=(
            Cell(text=name_of(result)),
            headroom_cell(verdict.headroom_bytes, units, words=True) if verdict else UNKNOWN,
            _setting_cell(result, "workload.mode"),
            _setting_cell(result, "workload.context"),
            _setting_cell(result, "workload.batch"),
            _setting_cell(result, "gpu.name"),
            *(bytes_cell(needs.get(kind), units) for kind in kinds),
            bytes_cell(verdict.budget_bytes if verdict else None, units),
        ),
        bar_bytes=needs.get(basis) if basis else None,
    )


def _setting_cell(result: Result, path: str) -> Cell:
    value = setting(result.profile, path)
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return Cell(text=format_count(value), value=value)
    return Cell(text=printable(value, NAME_LIMIT))


def environment_facts(environment: Environment, units: str) -> list[tuple[str, str]]:
    """What the numbers were made with; what is not known is left out."""
    total = environment.total_bytes
    facts = {
        "Python": environment.python,
        "PyTorch": environment.torch,
        "Triton": environment.triton,
        "CUDA": environment.cuda,
        "Driver": environment.driver,
        "GPU": environment.gpu,
        "GPU memory": None if total is None else format_bytes(total, units),
        "Allocator settings": environment.allocator_conf or None,
    }
    return [(name, printable(text)) for name, text in facts.items() if text is not None]


def profile_table(result: Result) -> Table:
    """The resolved profile, one row a key."""
    columns = (Column(label="Key", numeric=False), Column(label="Value", numeric=False))
    rows = [
        Row(cells=(Cell(text=printable(path)), Cell(text=printable(value))))
        for path, value in flatten(result.profile, "")
    ]
    return Table(caption="Resolved profile", columns=columns, rows=rows)
