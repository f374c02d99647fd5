"""Result to bar charts: what the card must hold, by kind, by profile, and step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tritter_mem.report.charts.axes import (
    Chart,
    Json,
    Scale,
    budget_note,
    color,
    limit_line,
    name_axis,
)
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell, on_scale
from tritter_mem.report.words import KIND_LABELS, label, name_of, signed_bytes, verdict_of
from tritter_mem.results.run import COMPONENTS, MemoryUse, Result
from tritter_mem.results.verdict import basis_of, on_the_card
from tritter_mem.units import format_bytes

PARTS = (*COMPONENTS, "cached", "context", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One stacked bar: its name, its parts, and the budget that it is compared with."""

    name: str
    parts: Mapping[str, int]
    budget_bytes: int | None


def parts_of(use: MemoryUse) -> dict[str, int]:
    """What the card must hold, by part: the components, then what is outside live tensors.

    The parts sum to `footprint_bytes` where the components sum to the allocated peak.
    """
    allocated, context = use.allocated_peak_bytes, use.context_bytes or 0
    cached = max((use.reserved_peak_bytes or allocated) - allocated, 0)
    other = max(use.footprint_bytes - allocated - cached - context, 0)
    parts = {**use.components.items(), "cached": cached, "context": context, "other": other}
    return {name: size for name, size in parts.items() if size}


def budget_chart(result: Result, units: str) -> Chart:
    """One stacked bar for each kind of number, against the budget."""
    bars = [
        Bar(name=KIND_LABELS[kind], parts=parts_of(use), budget_bytes=_budget(result))
        for kind, use in on_the_card(result).items()
    ]
    says = f"Stacked bars by component. {_verdict(result, units)}"
    return _stacked(bars, title="What the card must hold", description=says, units=units)


def comparison_chart(results: Sequence[Result], units: str) -> Chart:
    """One stacked bar for each profile, by the kind of number that its verdict stands on."""
    bars = [
        Bar(name=name_of(r), parts=parts_of(r.by_kind()[kind]), budget_bytes=_budget(r))
        for r in results
        if (kind := basis_of(r)) is not None
    ]
    fitting = sum(r.verdict is not None and r.verdict.fits for r in results)
    says = f"Stacked bars by component; {fitting} of {len(results)} profiles fit."
    return _stacked(bars, title="What each card must hold", description=says, units=units)


def _verdict(result: Result, units: str) -> str:
    return f"{name_of(result)} {verdict_of(result, units)}."


def _budget(result: Result) -> int | None:
    return result.verdict.budget_bytes if result.verdict else None


def _stacked(bars: Sequence[Bar], *, title: str, description: str, units: str) -> Chart:
    used = [part for part in PARTS if any(part in bar.parts for bar in bars)]
    budgets = [bar.budget_bytes for bar in bars]
    scale = _scale([sum(bar.parts.values()) for bar in bars], budgets, units)
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": scale.axis(),
        "yaxis": name_axis([bar.name for bar in bars]),
        **_limit(budgets, scale, units),
    }
    return Chart(
        title=title,
        description=description,
        figure={"data": [_stack(part, bars, scale, units) for part in used], "layout": layout},
        table=_parts_table(bars, used, title, units),
        height=100 + 34 * len(bars),
        legend=[(color(part), label(part)) for part in used],
    )


def _scale(sizes: Sequence[int], budgets: Sequence[int | None], units: str) -> Scale:
    """An axis for all bars, and for those budgets that do not dwarf them."""
    most = max(sizes, default=0)
    near = [budget for budget in budgets if budget is not None and on_scale(budget, most)]
    return Scale.of(max([most, *near]), units)


def _limit(budgets: Sequence[int | None], scale: Scale, units: str) -> Json:
    """A line where the budget is: one with a label where all bars share it, else one a bar."""
    shared = budgets[0] if len(set(budgets)) == 1 else None
    if shared is not None:
        spans = [(shared, 0, len(budgets) - 1)]
    else:
        spans = [(b, row, row) for row, b in enumerate(budgets) if b is not None]
    lines = [
        limit_line((scale.of_bytes(budget), first - 0.5), (scale.of_bytes(budget), last + 0.5))
        for budget, first, last in spans
        if budget <= scale.most_bytes
    ]
    return {
        "shapes": lines,
        "annotations": [] if shared is None else [budget_note(shared, scale, units)],
    }


def _stack(part: str, bars: Sequence[Bar], scale: Scale, units: str) -> Json:
    sizes = [bar.parts.get(part, 0) for bar in bars]
    return {
        "type": "bar",
        "orientation": "h",
        "name": label(part),
        "x": [scale.of_bytes(size) for size in sizes],
        "y": list(range(len(bars))),
        "marker": {"color": color(part), "line": {"color": "--paper", "width": 1}},
        "customdata": [format_bytes(size, units) for size in sizes],
        "hovertemplate": "%{y}<br>%{fullData.name}: %{customdata}<extra></extra>",
    }


def _parts_table(bars: Sequence[Bar], used: Sequence[str], title: str, units: str) -> Table:
    rows = [
        Row(
            cells=(
                Cell(text=bar.name),
                *(bytes_cell(bar.parts.get(part, 0), units) for part in used),
            )
        )
        for bar in bars
    ]
    columns = (Column(label="Bar", numeric=False), *(Column(label=label(part)) for part in used))
    return Table(caption=title, columns=columns, rows=rows)


def waterfall_chart(result: Result, units: str) -> Chart | None:
    """Each part beginning where the one before ends, up to what the card must hold."""
    kind = basis_of(result)
    if kind is None:
        return None
    parts = parts_of(result.by_kind()[kind])
    ends = list(accumulate(parts.values()))
    total, budget = sum(parts.values()), _budget(result)
    scale = _scale([total], [budget], units)
    title = f"How it adds up ({kind})"
    layout = {
        "bargap": 0.25,
        "xaxis": scale.axis(),
        "yaxis": name_axis([label(part) for part in parts]),
        **_limit([budget] * len(parts), scale, units),
    }
    says = f"{len(parts)} parts add up to {format_bytes(total, units)}. {_verdict(result, units)}"
    return Chart(
        title=title,
        description=says,
        figure={"data": [_steps(parts, ends, scale, units)], "layout": layout},
        table=_steps_table(parts, ends, title, units),
        height=90 + 26 * len(parts),
    )


def _steps(parts: Mapping[str, int], ends: Sequence[int], scale: Scale, units: str) -> Json:
    return {
        "type": "bar",
        "orientation": "h",
        "base": [scale.of_bytes(start) for start in (0, *ends[:-1])],
        "x": [scale.of_bytes(size) for size in parts.values()],
        "y": list(range(len(parts))),
        "marker": {"color": [color(part) for part in parts]},
        "customdata": [signed_bytes(size, units) for size in parts.values()],
        "hovertemplate": "%{y}: %{customdata}<extra></extra>",
    }


def _steps_table(parts: Mapping[str, int], ends: Sequence[int], title: str, units: str) -> Table:
    rows = [
        Row(cells=(Cell(text=label(part)), bytes_cell(size, units), bytes_cell(end, units)))
        for (part, size), end in zip(parts.items(), ends, strict=True)
    ]
    columns = (Column(label="Part", numeric=False), Column(label="Size"), Column(label="Total"))
    return Table(caption=title, columns=columns, rows=rows)
