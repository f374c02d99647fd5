"""Result to tables: which rows there are, and their order, for every renderer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tritter_mem.report.charts.axes import color
from tritter_mem.report.differences import (
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
    Piece,
    Row,
    Table,
    bytes_cell,
    headroom_cell,
    on_scale,
)
from tritter_mem.report.words import (
    KIND_LABELS,
    NAME_LIMIT,
    OUTSIDE,
    flatten,
    label,
    name_of,
    number,
    setting,
)
from tritter_mem.results.run import (
    COMPONENTS,
    DeviceRun,
    Environment,
    HeldBySame,
    Kind,
    KindPair,
    MemoryUse,
    Phase,
    Result,
    RunFigures,
    Spread,
    held_by_same,
)
from tritter_mem.results.verdict import basis_of, best_kind_with, on_the_card
from tritter_mem.text import printable
from tritter_mem.units import format_bytes, format_count


def budget_table(result: Result, units: str) -> Table:
    """Bytes by component, the totals under them, the budget and what is left of it."""
    kinds = list(result.by_kind())
    pairs = compared_pairs(kinds)
    return Table(
        caption="Budget by component",
        columns=(
            Column(label="Component", numeric=False),
            *(Column(label=_kind_heading(result, kind)) for kind in kinds),
            *(difference_column(pair, alone=len(pairs) == 1) for pair in pairs),
        ),
        rows=(
            *_component_rows(result, pairs, units),
            *_total_rows(result, pairs, units),
            *_budget_rows(result, len(pairs), units),
        ),
        bars=_budget_bars(result),
    )


def _kind_heading(result: Result, kind: Kind) -> str:
    """`Planned`; of a run on the CPU `Measured (CPU)`: it has no GPU's workspaces."""
    on_cpu = result.by_kind()[kind].device == "cpu"
    return f"{KIND_LABELS[kind]} (CPU)" if on_cpu else KIND_LABELS[kind]


def _budget_bars(result: Result) -> Bars | None:
    """Bars of the kind of number that the verdict stands on, with the limit where it is near."""
    basis = basis_of(result)
    if basis is None:
        return None
    needs = result.by_kind()[basis].footprint_bytes
    budget = result.verdict.budget_bytes if result.verdict else None
    if budget is None or not on_scale(budget, needs):
        return Bars(label=KIND_LABELS[basis], full_bytes=max(needs, 1))
    return Bars(
        label=f"{KIND_LABELS[basis]} vs budget",
        full_bytes=max(needs, budget),
        limit_bytes=budget,
    )


def _component_rows(result: Result, pairs: Sequence[KindPair], units: str) -> list[Row]:
    parts = {
        kind: e.components.items() if e.components_known else {}
        for kind, e in result.by_kind().items()
    }
    found = {name: {kind: part.get(name) for kind, part in parts.items()} for name in COMPONENTS}
    return [
        _drawn(
            Row(
                cells=_bytes_cells(result, name, sizes, pairs, units), bar_bytes=_bar(result, sizes)
            ),
            name,
            _of_basis(result),
            units,
        )
        for name, sizes in found.items()
        if any(sizes.values())
    ]


def parts_of(use: MemoryUse) -> dict[str, int]:
    """What the card must hold, by part: the components, then what is outside live tensors.

    The parts sum to `footprint_bytes` where the components sum to the allocated peak.
    """
    allocated, context = use.allocated_peak_bytes, use.context_bytes or 0
    cached = max((use.reserved_peak_bytes or allocated) - allocated, 0)
    other = max(use.footprint_bytes - allocated - cached - context, 0)
    parts = {**use.components.items(), "cached": cached, "context": context, "other": other}
    return {name: size for name, size in parts.items() if size}


OUTSIDE_TENSORS = ("cached", "context", "other")
_UP_TO = {
    "allocated_peak": OUTSIDE_TENSORS,
    "reserved_peak": OUTSIDE_TENSORS[1:],
    "device_peak": (),
}
"""Which parts a total does not have."""


def pieces_of(parts: Mapping[str, int], units: str) -> tuple[Piece, ...]:
    """The parts as pieces of a bar."""
    return tuple(
        Piece(
            color=color(part), words=f"{label(part)} {format_bytes(size, units)}", size_bytes=size
        )
        for part, size in parts.items()
    )


def _drawn(row: Row, name: str, use: MemoryUse | None, units: str) -> Row:
    """The row with its bar in the colours of the parts, each beginning where the last one ends."""
    if use is None or not use.components_known or row.bar_bytes is None:
        return row
    parts = parts_of(use)
    if name in _UP_TO:
        held = {part: size for part, size in parts.items() if part not in _UP_TO[name]}
        return replace(row, pieces=pieces_of(held, units))
    before = list(parts)[: list(parts).index(name)] if name in parts else []
    return replace(
        row,
        pieces=pieces_of({name: parts[name]} if name in parts else {}, units),
        start_bytes=sum(parts[part] for part in before),
    )


def _total_rows(result: Result, pairs: Sequence[KindPair], units: str) -> list[Row]:
    totals = {kind: use.totals() for kind, use in result.by_kind().items()}
    names = next(iter(totals.values()), {})
    found = {name: {kind: parts[name] for kind, parts in totals.items()} for name in names}
    return [
        _drawn(
            Row(
                cells=_bytes_cells(result, name, sizes, pairs, units),
                # Resident memory is the host's: it has no place beside the card's.
                bar_bytes=None if name == "resident_peak" else _bar(result, sizes),
                total=True,
            ),
            name,
            _of_basis(result),
            units,
        )
        for name, sizes in found.items()
        if any(size is not None for size in sizes.values())
    ]


def _of_basis(result: Result) -> MemoryUse | None:
    basis = basis_of(result)
    return result.by_kind()[basis] if basis else None


def _bar(result: Result, sizes: Mapping[Kind, int | None]) -> int | None:
    basis = basis_of(result)
    return sizes.get(basis) if basis else None


def _bytes_cells(
    result: Result,
    name: str,
    sizes: Mapping[Kind, int | None],
    pairs: Sequence[KindPair],
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
    verdict, kinds = result.verdict, on_the_card(result)
    budget = verdict.budget_bytes
    budgets = [bytes_cell(budget, units) for _ in result.by_kind()]
    # Of a run that went out of memory the verdict knows what it needed beyond its figures.
    found = {k: budget - e.footprint_bytes for k, e in kinds.items()}
    found |= {k: verdict.headroom_bytes for k in kinds if k == verdict.basis}
    left = [
        headroom_cell(found[k], units, words=False) if k in found else UNKNOWN
        for k in result.by_kind()
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
    phases = {k: {p.name: p for p in e.phases} for k, e in result.by_kind().items()}
    names = list(dict.fromkeys(name for found in phases.values() for name in found))
    if not names:
        return None
    extras = [
        x for x in _PHASE_EXTRAS if any(_best_known(phases, n, x[1]) is not None for n in names)
    ]
    peaks = {name: _best_known(phases, name, "allocated_peak_bytes") for name in names}
    return Table(
        caption="Allocated peak by phase",
        columns=(
            Column(label="Phase", numeric=False),
            *(Column(label=_kind_heading(result, kind)) for kind in phases),
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


def _best_known(phases: Phases, name: str, field: str) -> Any:
    """A field of a phase from the best kind of number that knows it."""
    found = [getattr(p[name], field) for p in phases.values() if name in p]
    return next((value for value in reversed(found) if value is not None), None)


def _phase_cells(
    phases: Phases, name: str, extras: Sequence[PhaseExtra], units: str
) -> tuple[Cell, ...]:
    peaks = [p[name].allocated_peak_bytes if name in p else None for p in phases.values()]
    more = [(_best_known(phases, name, field), show) for _, field, show in extras]
    return (
        Cell(text=label(name)),
        *(bytes_cell(peak, units) for peak in peaks),
        *(UNKNOWN if v is None else Cell(text=show(v, units), value=v) for v, show in more),
    )


def comparison_table(results: Sequence[Result], units: str) -> Table:
    """One row a profile: what is left of the budget, and what the card must hold."""
    kinds = [kind for kind in KIND_LABELS if any(kind in on_the_card(r) for r in results)]
    rows = [_comparison_row(result, kinds, units) for result in results]
    most = max(1, *(row.bar_bytes or 0 for row in rows))
    limits = [
        row.limit_bytes for row in rows if row.limit_bytes and on_scale(row.limit_bytes, most)
    ]
    used = {part for r in results if (use := _of_basis(r)) for part in parts_of(use)}
    return Table(
        caption="Profiles compared",
        columns=(
            Column(label="Profile", numeric=False),
            Column(label="Card", numeric=False),
            Column(label="Mode", numeric=False, wide=True),
            Column(label="Context", wide=True),
            Column(label="Batch", wide=True),
            *(Column(label=KIND_LABELS[kind]) for kind in kinds),
            Column(label="Budget"),
            Column(label="Headroom"),
        ),
        rows=rows,
        bars=Bars(
            label="Needs",
            full_bytes=most,
            widest_limit_bytes=max(limits, default=0),
            legend=[(color(part), label(part)) for part in PARTS if part in used],
        ),
        search="Show rows with",
    )


def comparison_parts_table(results: Sequence[Result], units: str) -> Table:
    """What each profile needs, by component: one row a profile."""
    parts = {at: parts_of(use) for at, r in enumerate(results) if (use := _of_basis(r))}
    used = [part for part in PARTS if any(part in found for found in parts.values())]
    return Table(
        caption="What each profile needs, by component",
        columns=(
            Column(label="Profile", numeric=False),
            *(Column(label=label(part)) for part in used),
        ),
        rows=[
            Row(
                cells=(
                    Cell(text=name_of(results[at])),
                    *(bytes_cell(found.get(part, 0), units) for part in used),
                )
            )
            for at, found in parts.items()
        ],
    )


def _comparison_row(result: Result, kinds: Sequence[Kind], units: str) -> Row:
    needs = {kind: e.footprint_bytes for kind, e in on_the_card(result).items()}
    verdict, basis = result.verdict, basis_of(result)
    return Row(
        cells=(
            Cell(text=name_of(result)),
            _setting_cell(result, "gpu.name"),
            _setting_cell(result, "workload.mode"),
            _setting_cell(result, "workload.context"),
            _setting_cell(result, "workload.batch"),
            *(bytes_cell(needs.get(kind), units) for kind in kinds),
            bytes_cell(verdict.budget_bytes if verdict else None, units),
            headroom_cell(verdict.headroom_bytes, units, words=False) if verdict else UNKNOWN,
        ),
        bar_bytes=needs.get(basis) if basis else None,
        pieces=pieces_of(parts_of(result.by_kind()[basis]), units) if basis else (),
        limit_bytes=verdict.budget_bytes if verdict else None,
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


PARTS = (*COMPONENTS, *OUTSIDE_TENSORS)
MOST_MODULES = 12


def holdings_table(result: Result, units: str, most: int = MOST_MODULES) -> Table | None:
    """What took most of the peak; None where no kind of number knows modules.

    Args:
        result: one profile's answers.
        units: `GiB` or `GB`.
        most: how many rows there are at most; one more has all others together.
    """
    kind = best_kind_with(result, "held_at_peak")
    if kind is None:
        return None
    modules = held_by_same(result.by_kind()[kind].held_at_peak)
    rows = [_module_row(one, units) for one in modules[:most]]
    if rest := modules[most:]:
        rows.append(_other_modules_row(rest, units))
    return Table(
        caption=f"Alive at the allocated peak ({kind})",
        columns=(
            Column(label="Module", numeric=False),
            Column(label="Component", numeric=False),
            Column(label="Modules", wide=True),
            Column(label="Size"),
        ),
        rows=rows,
        bars=Bars(label="Share", full_bytes=max(sum(one.allocated_bytes for one in modules), 1)),
        search="Find a module",
        first_rows=MOST_MODULES,
    )


def _module_row(modules: HeldBySame, units: str) -> Row:
    return Row(
        cells=(
            Cell(text=printable(modules.module, NAME_LIMIT) or OUTSIDE),
            Cell(text=label(modules.component)),
            Cell(text=format_count(modules.count), value=modules.count),
            bytes_cell(modules.allocated_bytes, units),
        ),
        bar_bytes=modules.allocated_bytes,
        pieces=pieces_of({modules.component: modules.allocated_bytes}, units),
    )


def _other_modules_row(rest: list[HeldBySame], units: str) -> Row:
    size = sum(modules.allocated_bytes for modules in rest)
    count = sum(modules.count for modules in rest)
    return Row(
        cells=(
            Cell(text=f"{len(rest)} others"),
            Cell(text=""),
            Cell(text=format_count(count), value=count),
            bytes_cell(size, units),
        ),
        bar_bytes=size,
        total=True,
    )


FigureRow = tuple[str, Cell]


def measured_table(result: Result, units: str) -> Table | None:
    """One row a figure; what was not read is left out. None where there is nothing to say."""
    kind: Kind = "measured" if result.measured else "rehearsed"
    use = result.by_kind().get(kind)
    if use is None:
        return None
    lines = [*_run_lines(use, units), *_spread_lines(use.spread, units)]
    if not lines:
        return None
    return Table(
        caption=f"{KIND_LABELS[kind]} on {printable(use.device, 40)}",
        columns=(Column(label="Figure", numeric=False), Column(label="Value")),
        rows=[Row(cells=(Cell(text=name), cell)) for name, cell in lines],
    )


def _run_lines(use: MemoryUse, units: str) -> Iterator[FigureRow]:
    run = use.run
    if run is None:
        return
    for name, count in _sizes_of_run(run, use.context_bytes):
        if count is not None:
            yield name, bytes_cell(count, units)
    counts = {
        "Segments allocated from the driver": run.allocator.segment_allocations,
        "Segments given back": run.allocator.segment_releases,
        "Allocations that needed a retry": run.allocator.retries,
    }
    for name, calls in counts.items():
        yield name, Cell(text=f"{calls:,}", value=calls)


def _sizes_of_run(run: DeviceRun, context_bytes: int | None) -> Iterator[tuple[str, int | None]]:
    yield "Requested peak, before rounding", run.allocator.requested_peak_bytes
    yield "Active peak", run.allocator.active_peak_bytes
    yield "Peak of inactive split blocks", run.allocator.inactive_split_peak_bytes
    yield "Limit of what PyTorch may reserve", run.allocator_limit_bytes
    yield "CUDA context when it was created", run.context_created_bytes
    yield "CUDA context after the first kernel", run.context_first_kernel_bytes
    read = run.context_first_kernel_bytes is not None  # else it is what is assumed for the card
    yield "CUDA context at the end", context_bytes if read else None
    yield "This process at the end (driver)", run.process_bytes
    yield "All processes at the end (driver)", run.device_used_bytes
    yield "Other processes before, not counted", run.other_processes_bytes


def _spread_lines(spread: Spread | None, units: str) -> Iterator[FigureRow]:
    """`Allocated peak over 5 runs`: the least, the median, the most."""
    if spread is None:
        return
    three = (spread.minimum, spread.median, spread.maximum)
    runs = f"over {spread.runs} runs (minimum, median, maximum)"
    yield f"Allocated peak {runs}", _spread_cell(three, "allocated_peak_bytes", units)
    if spread.median.reserved_peak_bytes is not None:
        yield f"Reserved peak {runs}", _spread_cell(three, "reserved_peak_bytes", units)
    seconds = ", ".join(number(figures.seconds) for figures in three)
    yield f"Seconds {runs}", Cell(text=seconds, value=spread.median.seconds)


def _spread_cell(three: tuple[RunFigures, ...], figure: str, units: str) -> Cell:
    sizes = [getattr(figures, figure) or 0 for figures in three]
    if len(set(sizes)) == 1:
        return Cell(text=f"{format_bytes(sizes[0], units)} each", value=sizes[0])
    return Cell(text=", ".join(format_bytes(s, units) for s in sizes), value=sizes[1])
