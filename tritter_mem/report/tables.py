"""Result to tables: which rows there are, and their order, for every renderer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tritter_mem.report.table import (
    BLANK,
    KIND_LABELS,
    NAME_LIMIT,
    TEXT_LIMIT,
    UNKNOWN,
    Bars,
    Cell,
    Column,
    Row,
    Table,
    Tone,
    bytes_cell,
    flatten,
    headroom_cell,
    label,
    name_of,
    number,
    on_scale,
    percent,
    setting,
    signed_bytes,
)
from tritter_mem.results.run import (
    COMPONENTS,
    CheckpointCase,
    DeviceRun,
    Difference,
    Environment,
    Estimate,
    HeldBySame,
    Kind,
    Ladder,
    LadderEnd,
    LadderStep,
    Phase,
    Result,
    RunFigures,
    Spread,
    held_by_same,
)
from tritter_mem.results.verdict import tolerance_of
from tritter_mem.text import printable
from tritter_mem.units import format_bytes, format_count

Pair = tuple[Kind, Kind]

NOTABLE = 0.02
# A plan does not know it, so that there is some is no difference.
UNPLANNED = "rounding"


def compared_pairs(kinds: Sequence[Kind]) -> list[Pair]:
    """Each kind of number beside the next better one that is there."""
    return list(pairwise(kinds))


def difference_column(pair: Pair, *, alone: bool) -> Column:
    """The heading of a column of differences; one of several says which two it compares."""
    first, second = pair
    text = "Difference" if alone else f"{KIND_LABELS[first]} → {second}"
    return Column(label=text, wide=not alone)


def difference_cell(row: Difference | None, pair: Pair) -> Cell:
    """How far the second kind is from the first, coloured by the pair's tolerance."""
    if row is None or None in (sizes := _sizes(row, pair)) or _is_unplanned(row, pair):
        return BLANK
    ratio = _ratio(row, pair)
    if ratio is None:
        return _cell_from_nothing(*sizes)
    return Cell(text=percent(ratio), value=ratio, tone=tone_of(ratio, tolerance_of(row.name, pair)))


def _cell_from_nothing(before: int | None, after: int | None) -> Cell:
    """Without a ratio: nothing in both, or in the first alone; else it was left out on purpose."""
    if before == after:
        return Cell(text="equal", tone="good")
    return Cell(text="new", tone="bad") if before == 0 else BLANK


def tone_of(ratio: float, tolerance: float) -> Tone:
    """Good within the tolerance, a warning up to five times it, bad beyond."""
    if abs(ratio) <= tolerance:
        return "good"
    return "warn" if abs(ratio) <= 5 * tolerance else "bad"


def notable_differences(result: Result, units: str) -> list[str]:
    """A sentence for each component or total that differs by more than 2% between two kinds."""
    return [
        _sentence(row, pair, units)
        for pair in compared_pairs(list(result.estimates()))
        for row in result.differences
        if _is_notable(row, pair)
    ]


def _is_notable(row: Difference, pair: Pair) -> bool:
    before, after = _sizes(row, pair)
    if before is None or after is None or _is_unplanned(row, pair):
        return False
    ratio = _ratio(row, pair)
    return before == 0 != after if ratio is None else abs(ratio) > NOTABLE


def _is_unplanned(row: Difference, pair: Pair) -> bool:
    return row.name == UNPLANNED and pair[0] == "planned"


def _sentence(row: Difference, pair: Pair, units: str) -> str:
    """`Activations: planned 1.0 MiB, measured 1.2 MiB (+20.0%)`."""
    before, after = (size or 0 for size in _sizes(row, pair))
    ratio = _ratio(row, pair)
    change = signed_bytes(after - before, units) if ratio is None else percent(ratio)
    return (
        f"{label(row.name)}: {pair[0]} {format_bytes(before, units)}, "
        f"{pair[1]} {format_bytes(after, units)} ({change})"
    )


def _sizes(row: Difference, pair: Pair) -> tuple[int | None, int | None]:
    first, second = pair
    return getattr(row, f"{first}_bytes"), getattr(row, f"{second}_bytes")


def _ratio(row: Difference, pair: Pair) -> float | None:
    first, second = pair
    ratio: float | None = getattr(row, f"{first}_vs_{second}")
    return ratio


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


def checkpointing_table(result: Result, units: str) -> Table | None:
    """One row a policy, as `--checkpoint` takes it; None where the trade-off was not asked for."""
    if not result.checkpointing:
        return None
    measured = [c for c in result.checkpointing if c.measured_allocated_peak_bytes is not None]
    extra = _MEASURED if measured else ()
    return Table(
        caption=f"Checkpointing trade-off, simulated{' and measured' if measured else ''}",
        columns=(
            Column(label="Policy", numeric=False),
            Column(label="Allocated"),
            Column(label="Reserved", wide=True),
            Column(label="Activations"),
            Column(label="Recomputed", wide=True),
            Column(label="Work"),
            *extra,
            Column(label="Pareto front", numeric=False),
        ),
        rows=[
            _checkpointing_row(case, _own(result) == (case.policy, case.n), bool(extra), units)
            for case in result.checkpointing
        ],
    )


_MEASURED = (
    Column(label="Measured"),
    Column(label="Measured reserved", wide=True),
    Column(label="Seconds"),
)


def _measured_cells(case: CheckpointCase, units: str) -> tuple[Cell, ...]:
    """Peaks and seconds; out of memory leaves the seconds out."""
    seconds = case.measured_seconds
    return (
        bytes_cell(case.measured_allocated_peak_bytes, units),
        bytes_cell(case.measured_reserved_peak_bytes, units),
        UNKNOWN if seconds is None else Cell(text=number(seconds), value=seconds),
    )


def _checkpointing_row(case: CheckpointCase, own: bool, measured: bool, units: str) -> Row:
    name = f"{printable(case.policy, 40)}{f':{case.n}' if case.n > 1 else ''}"
    work = Cell(text=f"+{case.overhead:.1%}", value=case.overhead)
    return Row(
        cells=(
            Cell(text=f"{name} (this profile)" if own else name),
            bytes_cell(case.allocated_peak_bytes, units),
            bytes_cell(case.reserved_peak_bytes, units),
            bytes_cell(case.activations_peak_bytes, units),
            Cell(text=_operations(case.recomputed_flops), value=case.recomputed_flops),
            work,
            *(_measured_cells(case, units) if measured else ()),
            Cell(text="yes", tone="good") if case.on_front else BLANK,
        )
    )


def _operations(flops: int) -> str:
    """In the largest unit that leaves a figure before the point: `124 TFLOP`."""
    for prefix, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if flops >= size:
            return f"{number(flops / size)} {prefix}FLOP"
    return f"{flops} FLOP"


def _own(result: Result) -> tuple[object, object]:
    """The profile's policy; its number counts where the policy takes one."""
    policy = setting(result.profile, "training.checkpointing.policy")
    n = setting(result.profile, "training.checkpointing.n")
    return policy, n if policy in ("every-nth", "segments") else 1


ROWS = 12
OUTSIDE = "outside of any module"


def holdings_table(result: Result, units: str) -> Table | None:
    """What held most of the peak; None where no kind of number knows modules."""
    kind = _kind_with_holdings(result)
    if kind is None:
        return None
    held = held_by_same(result.estimates()[kind].held_at_peak)
    rows = [_holding_row(one, units) for one in held[:ROWS]]
    if rest := held[ROWS:]:
        rows.append(_rest_row(rest, units))
    return Table(
        caption=f"Alive at the allocated peak ({kind})",
        columns=(
            Column(label="Module", numeric=False),
            Column(label="Component", numeric=False),
            Column(label="Modules", wide=True),
            Column(label="Size"),
        ),
        rows=rows,
        bars=Bars(label="Share", full_bytes=max(sum(one.allocated_bytes for one in held), 1)),
    )


def _kind_with_holdings(result: Result) -> Kind | None:
    found = [kind for kind, estimate in result.estimates().items() if estimate.held_at_peak]
    return found[-1] if found else None


def _holding_row(held: HeldBySame, units: str) -> Row:
    return Row(
        cells=(
            Cell(text=printable(held.module, NAME_LIMIT) or OUTSIDE),
            Cell(text=label(held.component)),
            Cell(text=format_count(held.count), value=held.count),
            bytes_cell(held.allocated_bytes, units),
        ),
        bar_bytes=held.allocated_bytes,
    )


def _rest_row(rest: list[HeldBySame], units: str) -> Row:
    size = sum(held.allocated_bytes for held in rest)
    count = sum(held.count for held in rest)
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


_TONES: dict[LadderEnd, Tone] = {
    "fits": "good",
    "out of memory": "bad",
    "does not fit": "bad",
    "refused": "warn",
}


def ladder_tables(result: Result, units: str) -> list[Table]:
    """One table a ladder, one row a rung, to the first that fits; none where none was asked for."""
    return [_table(ladder, units) for ladder in result.ladders]


def _table(ladder: Ladder, units: str) -> Table:
    return Table(
        caption=f"Out-of-memory ladder, {ladder.kind}",
        columns=(
            Column(label="Rung", numeric=False),
            Column(label="Needs"),
            Column(label="Headroom"),
            Column(label="Allocated", wide=True),
            Column(label="Ended", numeric=False),
        ),
        rows=[_ladder_row(step, ladder.budget_bytes, units) for step in ladder.steps],
    )


def _ladder_row(step: LadderStep, budget_bytes: int, units: str) -> Row:
    needs = step.needs_bytes
    left = UNKNOWN if needs is None else headroom_cell(budget_bytes - needs, units, words=False)
    return Row(
        cells=(
            Cell(text=_name(step)),
            bytes_cell(needs, units),
            left,
            bytes_cell(step.allocated_bytes, units),
            Cell(text=_ended(step), tone=_TONES.get(step.ended, "")),
        )
    )


def _name(step: LadderStep) -> str:
    shown = printable(step.rung, TEXT_LIMIT)
    return f"{shown} (another result)" if step.changes_result else shown


def _ended(step: LadderStep) -> str:
    ended = "refused in training" if step.ended == "refused" else step.ended
    return printable(f"{ended} {step.detail}".strip(), TEXT_LIMIT)


def ladders_compared(results: Sequence[Result]) -> Table | None:
    """The rung on which each profile ends; None where no ladder was asked for."""
    kinds = [
        k for k in KIND_LABELS if any(ladder.kind == k for r in results for ladder in r.ladders)
    ]
    if not kinds:
        return None
    return Table(
        caption="Where the out-of-memory ladder ends",
        columns=(
            Column(label="Profile", numeric=False),
            *(Column(label=KIND_LABELS[kind], numeric=False) for kind in kinds),
        ),
        rows=[
            Row(cells=(Cell(text=name_of(result)), *(_end(result, kind) for kind in kinds)))
            for result in results
        ],
    )


def _end(result: Result, kind: str) -> Cell:
    ladder = next((ladder for ladder in result.ladders if ladder.kind == kind), None)
    if ladder is None:
        return BLANK
    step = ladder.ended_on
    return Cell(text="no rung fits", tone="bad") if step is None else Cell(
        text=_name(step), tone="good"
    )  # fmt: skip


Line = tuple[str, Cell]


def measured_table(result: Result, units: str) -> Table | None:
    """One row a figure; what was not read is left out. None where there is nothing to say."""
    kind: Kind = "measured" if result.measured else "rehearsed"
    estimate = result.estimates().get(kind)
    if estimate is None:
        return None
    lines = [*_run_lines(estimate, units), *_spread_lines(estimate.spread, units)]
    if not lines:
        return None
    return Table(
        caption=f"{KIND_LABELS[kind]} on {printable(estimate.device, 40)}",
        columns=(Column(label="Figure", numeric=False), Column(label="Value")),
        rows=[Row(cells=(Cell(text=name), cell)) for name, cell in lines],
    )


def _run_lines(estimate: Estimate, units: str) -> Iterator[Line]:
    run = estimate.run
    if run is None:
        return
    for name, count in _measured_sizes(run, estimate.context_bytes):
        if count is not None:
            yield name, bytes_cell(count, units)
    counts = {
        "Segments taken from the driver": run.allocator.segment_allocations,
        "Segments given back": run.allocator.segment_releases,
        "Requests served after a retry": run.allocator.retries,
    }
    for name, calls in counts.items():
        yield name, Cell(text=f"{calls:,}", value=calls)


def _measured_sizes(run: DeviceRun, context_bytes: int | None) -> Iterator[tuple[str, int | None]]:
    yield "Requested peak, before rounding", run.allocator.requested_peak_bytes
    yield "Active peak", run.allocator.active_peak_bytes
    yield "Peak of free parts of segments", run.allocator.inactive_split_peak_bytes
    yield "Cap on what PyTorch may reserve", run.allocator_limit_bytes
    yield "CUDA context as it was made", run.context_created_bytes
    yield "CUDA context after the first kernel", run.context_first_kernel_bytes
    read = run.context_first_kernel_bytes is not None  # else it is what is assumed for the card
    yield "CUDA context at the end", context_bytes if read else None
    yield "This process at the end, by the driver", run.process_bytes
    yield "All processes at the end, by the driver", run.device_used_bytes
    yield "Other processes before, not counted", run.other_processes_bytes


def _spread_lines(spread: Spread | None, units: str) -> Iterator[Line]:
    """`Allocated peak over 5 runs`: the least, the median, the most."""
    if spread is None:
        return
    three = (spread.minimum, spread.median, spread.maximum)
    runs = f"over {spread.runs} runs (least, median, most)"
    yield f"Allocated peak {runs}", _bytes(three, "allocated_peak_bytes", units)
    if spread.median.reserved_peak_bytes is not None:
        yield f"Reserved peak {runs}", _bytes(three, "reserved_peak_bytes", units)
    seconds = ", ".join(number(figures.seconds) for figures in three)
    yield f"Seconds {runs}", Cell(text=seconds, value=spread.median.seconds)


def _bytes(three: tuple[RunFigures, ...], figure: str, units: str) -> Cell:
    sizes = [getattr(figures, figure) or 0 for figures in three]
    if len(set(sizes)) == 1:
        return Cell(text=f"{format_bytes(sizes[0], units)} each", value=sizes[0])
    return Cell(text=", ".join(format_bytes(s, units) for s in sizes), value=sizes[1])
