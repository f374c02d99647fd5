"""Memory over time as a chart: by category, with what is reserved, the limit and the phases."""

from __future__ import annotations

from collections.abc import Sequence

from tritter_mem.report.charts.axes import (
    TABLE_ROWS,
    Chart,
    Json,
    Scale,
    color,
    limit_line,
    plotly_text,
)
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell, on_scale
from tritter_mem.report.words import NAME_LIMIT, label, name_of
from tritter_mem.results.run import COMPONENTS, Kind, Phase, Result, Timeline
from tritter_mem.results.thinning import thin
from tritter_mem.results.verdict import basis_of
from tritter_mem.units import format_bytes

PHASE = "phase"
LINES = {"allocated_bytes": "--ink", "reserved_bytes": "--soft"}


def timeline_chart(result: Result, units: str) -> Chart | None:
    """Allocated by category, reserved and limit over time; None where there is no timeline.

    The first column of a timeline is its axis, `<component>_bytes` are stacked areas,
    `allocated_bytes` and `reserved_bytes` are lines, and `phase` is a number of the answer's
    phases, from zero.
    """
    kind = _kind_with_timeline(result)
    use = result.by_kind()[kind] if kind else None
    if kind is None or use is None or use.timeline is None:
        return None
    timeline = use.timeline
    budget = result.verdict.budget_bytes if result.verdict else None
    most = max((round(max(row[1:], default=0)) for row in timeline.rows), default=0)
    near = budget if budget is not None and on_scale(budget, most) else 0
    scale = Scale.of(max(most, near), units)
    title = f"Memory over time ({kind})"
    return Chart(
        title=title,
        description=_says(timeline, name_of(result), units),
        figure={
            "data": _traces(timeline, scale),
            "layout": {
                "xaxis": {"title": {"text": plotly_text(timeline.columns[0], NAME_LIMIT)}},
                "yaxis": scale.axis(),
                "hovermode": "x unified",
                **_marks(timeline, use.phases, near, scale),
            },
        },
        table=timeline_table(timeline, title, units),
        height=380,
        legend=_legend(timeline),
    )


def _kind_with_timeline(result: Result) -> Kind | None:
    """The kind that the verdict stands on, else the best, if its timeline has something in it."""
    found = [k for k, e in result.by_kind().items() if e.timeline and e.timeline.rows]
    basis = basis_of(result)
    return basis if basis in found else found[-1] if found else None


def _categories(timeline: Timeline) -> list[str]:
    return [name for name in COMPONENTS if f"{name}_bytes" in timeline.columns]


def _column(timeline: Timeline, name: str) -> list[float]:
    at = timeline.columns.index(name)
    return [row[at] for row in timeline.rows]


def _says(timeline: Timeline, name: str, units: str) -> str:
    drawn = [column for column in LINES if column in timeline.columns]
    peaks = [
        f"{column.removesuffix('_bytes')} peaks at "
        f"{format_bytes(round(max(_column(timeline, column))), units)}"
        for column in drawn
    ]
    return f"Memory of {name} over {len(timeline.rows)} points in time; {', '.join(peaks)}."


def _traces(timeline: Timeline, scale: Scale) -> list[Json]:
    categories = _categories(timeline)
    areas = [_area(timeline, name, scale) for name in categories]
    lines = [name for name in LINES if name in timeline.columns]
    # Stacked areas already end at what is allocated.
    drawn = [name for name in lines if name != "allocated_bytes" or not categories]
    return areas + [_line(timeline, name, scale) for name in drawn]


def _area(timeline: Timeline, name: str, scale: Scale) -> Json:
    return {
        **_series(timeline, f"{name}_bytes", scale),
        "stackgroup": "allocated",
        "fillcolor": color(name),
        "line": {"width": 0, "shape": "hv", "color": color(name)},
    }


def _line(timeline: Timeline, name: str, scale: Scale) -> Json:
    return {
        **_series(timeline, name, scale),
        "line": {"width": 2, "shape": "hv", "color": LINES[name]},
    }


def _series(timeline: Timeline, column: str, scale: Scale) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(column.removesuffix("_bytes")),
        "x": [round(at, 6) for at in _column(timeline, timeline.columns[0])],
        "y": [scale.of_bytes(size) for size in _column(timeline, column)],
        "hovertemplate": f"%{{fullData.name}}: %{{y:,.2f}} {scale.unit}<extra></extra>",
    }


def _marks(timeline: Timeline, phases: Sequence[Phase], budget: int, scale: Scale) -> Json:
    """A line where the budget is, where it is on the axis, and one where each phase begins."""
    first, last = timeline.rows[0][0], timeline.rows[-1][0]
    at = scale.of_bytes(budget)
    limit = [limit_line((first, at), (last, at))] if budget else []
    starts = _phase_starts(timeline, phases)
    return {
        "shapes": [*limit, *(_phase_line(start) for start, _ in starts)],
        "annotations": [_phase_label(start, name) for start, name in starts],
    }


def _phase_starts(timeline: Timeline, phases: Sequence[Phase]) -> list[tuple[float, str]]:
    if PHASE not in timeline.columns:
        return []
    starts: dict[int, float] = {}
    for row, phase in zip(timeline.rows, _column(timeline, PHASE), strict=True):
        starts.setdefault(int(phase), row[0])
    return [(start, phases[i].name) for i, start in starts.items() if 0 <= i < len(phases)]


def _phase_line(start: float) -> Json:
    line = {"color": "--soft", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": start, "x1": start, "y0": 0, "y1": 1, "yref": "paper"} | {
        "line": line
    }


def _phase_label(start: float, name: str) -> Json:
    text = plotly_text(label(name), 16)
    place = {"x": start, "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
    return {"text": text, **place, "showarrow": False}


def _legend(timeline: Timeline) -> list[tuple[str, str]]:
    areas = [(color(name), label(name)) for name in _categories(timeline)]
    lines = [(LINES["reserved_bytes"], "Reserved")] if "reserved_bytes" in timeline.columns else []
    return areas + lines


def timeline_table(timeline: Timeline, caption: str, units: str) -> Table:
    """The rows behind a chart of memory over time, thinned."""
    shown = thin(timeline, TABLE_ROWS)
    columns = [Column(label=label(name.removesuffix("_bytes"))) for name in shown.columns]
    rows = [
        Row(
            cells=tuple(
                bytes_cell(round(value), units)
                if name.endswith("_bytes")
                else Cell(text=_plain(value), value=value)
                for name, value in zip(shown.columns, row, strict=True)
            )
        )
        for row in shown.rows
    ]
    return Table(caption=caption, columns=columns, rows=rows)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
