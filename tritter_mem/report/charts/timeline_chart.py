"""Memory over time as a chart: by category, what is reserved, the peak, the limit, the phases."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from tritter_mem.report.charts.axes import (
    TABLE_ROWS,
    Chart,
    Json,
    Scale,
    color,
    limit_line,
    plotly_text,
)
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.words import NAME_LIMIT, label, name_of
from tritter_mem.results.run import (
    COMPONENTS,
    IN_WARM_UP,
    OUTSIDE_PHASES,
    Kind,
    Phase,
    Result,
    Timeline,
)
from tritter_mem.results.thinning import thin
from tritter_mem.results.verdict import basis_of
from tritter_mem.units import format_bytes

PHASE, ALLOCATED, RESERVED = "phase", "allocated_bytes", "reserved_bytes"
LINES = {ALLOCATED: "--accent", RESERVED: "--soft"}
AXES = {"event": "allocations and frees", "seconds": "seconds"}
HEADROOM = 1.08
"""How far the axis goes beyond the largest number."""
NEAR = 1.35
"""Up to so many times the largest number a limit is on the axis; beyond, an arrow points to it."""
MOST_OF_EVENTS, MOST_STRETCHES = 0.8, 8
"""Where one phase has more than this share of the events, the axis is stretched for the others, if
the run does not change its phase more often than this."""
PHONE_WIDTH, LETTER_WIDTH, LABEL_HEIGHT = 290, 7.5, 15
"""Of a plot on a phone and of its labels, in CSS pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Where memory ends, and what that is called."""

    words: str
    size_bytes: int


def timeline_chart(result: Result, units: str) -> Chart | None:
    """Allocated by category, reserved and limit over time; None where there is no timeline."""
    kind = _kind_with_timeline(result)
    use = result.by_kind()[kind] if kind else None
    if kind is None or use is None or use.timeline is None:
        return None
    budget = result.verdict.budget_bytes if result.verdict else None
    return draw_timeline(
        use.timeline,
        title=f"Memory over time ({kind})",
        name=name_of(result),
        phases=use.phases,
        limit=None if budget is None else Limit(words="budget", size_bytes=budget),
        units=units,
    )


def draw_timeline(
    timeline: Timeline,
    *,
    title: str,
    name: str,
    phases: Sequence[Phase] = (),
    limit: Limit | None = None,
    units: str = "GiB",
) -> Chart:
    """Draw memory over time on an axis that fits it.

    The first column of a timeline is its axis, `<component>_bytes` are stacked areas,
    `allocated_bytes` and `reserved_bytes` are lines, and `phase` is a number of `phases`.
    """
    sizes = [at for at, column in enumerate(timeline.columns) if column.endswith("_bytes")]
    most = max((round(row[at]) for row in timeline.rows for at in sizes), default=0)
    scale, axis = Scale.of(most, units), Axis.of(timeline)
    labels, rows = _labels(axis, [
        *(Label(at, label(name)) for at, name in _phase_starts(timeline, phases)),
        *_peak_label(timeline, units),
        *_far_limit_label(timeline, limit, most, units),
    ])  # fmt: skip
    return Chart(
        title=title,
        description=_says(timeline, name, units),
        figure={
            "data": [*_traces(timeline, axis, scale), *_peak_point(timeline, axis, scale)],
            "layout": {
                "xaxis": axis.layout(),
                "yaxis": {
                    **scale.axis(),
                    "range": [0, scale.of_bytes(_top(most, limit)) or 1],
                },
                "hovermode": "x unified",
                "margin": {"l": 12, "r": 12, "t": 16 + LABEL_HEIGHT * rows, "b": 28},
                "shapes": [
                    *_phase_lines(timeline, axis, phases),
                    *_peak_line(timeline, axis, scale, _top(most, limit)),
                    *_limit_shapes(axis, limit, most, scale),
                ],
                "annotations": labels,
            },
        },
        table=timeline_table(timeline, title, units),
        height=340 + LABEL_HEIGHT * rows,
        legend=[*_legend(timeline), *_limit_legend(limit, most, units)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Where a moment is drawn: linear between knots.

    Attributes:
        counted: what is counted along it.
        knots: moments, as in the first column of the timeline.
        drawn: where each is on the axis.
    """

    counted: str
    knots: Sequence[float]
    drawn: Sequence[float]

    @classmethod
    def of(cls, timeline: Timeline) -> Axis:
        """The axis of a timeline; a stretched one gives each phase half of an equal share."""
        first, last = timeline.rows[0][0], timeline.rows[-1][0]
        if last <= first:
            last = first + 1
        name = timeline.columns[0]
        counted = AXES.get(name) or plotly_text(name, NAME_LIMIT)
        ends = [*(start for start in _stretches(timeline) if start < last), last]
        shares = [(end - start) / (last - first) for start, end in pairwise(ends)]
        if len(shares) > MOST_STRETCHES or max(shares) <= MOST_OF_EVENTS or len(shares) == 1:
            return cls(counted=counted, knots=(first, last), drawn=(first, last))
        widths = ((share + 1 / len(shares)) / 2 for share in shares)
        drawn = [round(at, 6) for at in accumulate(widths, initial=0.0)]
        return cls(counted=counted, knots=ends, drawn=drawn)

    def at(self, moment: float) -> float:
        """Where a moment is drawn."""
        after = min(max(bisect_right(self.knots, moment), 1), len(self.knots) - 1)
        left, right = self.knots[after - 1], self.knots[after]
        start, end = self.drawn[after - 1], self.drawn[after]
        return round(start + (end - start) * (moment - left) / (right - left), 6)

    def along(self, moment: float) -> float:
        """Where a moment is drawn, from 0 to 1."""
        return (self.at(moment) - self.drawn[0]) / (self.drawn[-1] - self.drawn[0])

    def layout(self) -> Json:
        """For Plotly: a stretched axis has the moments at its knots written there."""
        ticks = {
            "tickvals": self.drawn[:-1],
            "ticktext": [_short(at) for at in self.knots[:-1]],
            "unifiedhovertitle": {"text": "Memory"},  # of x it knows where it is drawn
        }
        words = f"{_short(self.knots[-1])} {self.counted}, stretched"
        return {
            "title": {"text": words if self.is_stretched else self.counted},
            "range": [self.drawn[0], self.drawn[-1]],
            "fixedrange": True,
            **(ticks if self.is_stretched else {}),
        }

    @property
    def is_stretched(self) -> bool:
        """Whether a place on the axis is not the moment itself."""
        return self.drawn != self.knots


def _short(number: float) -> str:
    """A number as an axis has it: 4600 as 4.6k."""
    return f"{number / 1000:.3g}k" if number >= 1000 else f"{number:.3g}"


def _stretches(timeline: Timeline) -> list[float]:
    """The first moment, and each at which another phase begins, where events are counted."""
    rows = timeline.rows
    if PHASE not in timeline.columns or timeline.columns[0] != "event":
        return [rows[0][0]]
    at = timeline.columns.index(PHASE)
    phases = [row for row in rows if row[at] != OUTSIDE_PHASES]
    changes = [now[0] for before, now in pairwise(phases) if now[at] != before[at]]
    return [rows[0][0], *changes]


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


def _traces(timeline: Timeline, axis: Axis, scale: Scale) -> list[Json]:
    categories = _categories(timeline)
    areas = [_area(timeline, name, axis, scale) for name in categories]
    lines = [name for name in LINES if name in timeline.columns]
    # Stacked areas already end at what is allocated.
    drawn = [name for name in lines if name != ALLOCATED or not categories]
    return areas + [_line(timeline, name, axis, scale) for name in drawn]


def _area(timeline: Timeline, name: str, axis: Axis, scale: Scale) -> Json:
    return {
        **_series(timeline, f"{name}_bytes", axis, scale),
        "stackgroup": "allocated",
        "fillcolor": color(name),
        "line": {"width": 0, "shape": "hv", "color": color(name)},
    }


def _line(timeline: Timeline, name: str, axis: Axis, scale: Scale) -> Json:
    series = _series(timeline, name, axis, scale)
    if axis.is_stretched:
        series["customdata"] = [row[0] for row in timeline.rows]
        moment = f" at %{{customdata:,}} {axis.counted}<extra></extra>"
        series["hovertemplate"] = series["hovertemplate"].replace("<extra></extra>", moment)
    return {
        **series,
        **({"fill": "tozeroy"} if name == ALLOCATED else {}),
        "line": {"width": 1.5, "shape": "hv", "color": LINES[name]},
    }


def _series(timeline: Timeline, column: str, axis: Axis, scale: Scale) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(column.removesuffix("_bytes")),
        "x": [axis.at(row[0]) for row in timeline.rows],
        "y": [scale.of_bytes(size) for size in _column(timeline, column)],
        "hovertemplate": f"%{{fullData.name}}: %{{y:,.2f}} {scale.unit}<extra></extra>",
    }


# The peak


def _peak_row(timeline: Timeline) -> tuple[float, ...] | None:
    """The first row with most allocated; the warm-up's peak does not count."""
    if ALLOCATED not in timeline.columns:
        return None
    at = timeline.columns.index(ALLOCATED)
    phase = timeline.columns.index(PHASE) if PHASE in timeline.columns else None
    counted = [row for row in timeline.rows if phase is None or row[phase] != IN_WARM_UP]
    return max(counted, key=lambda row: row[at], default=None)


def _peak_point(timeline: Timeline, axis: Axis, scale: Scale) -> list[Json]:
    row = _peak_row(timeline)
    if row is None:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "Allocated peak",
            "x": [axis.at(row[0])],
            "y": [scale.of_bytes(row[timeline.columns.index(ALLOCATED)])],
            "marker": {"color": "--ink", "size": 9, "line": {"color": "--paper", "width": 1.5}},
            "cliponaxis": False,
            "hoverinfo": "skip",
        }
    ]


def _peak_label(timeline: Timeline, units: str) -> list[Label]:
    row = _peak_row(timeline)
    if row is None:
        return []
    size = format_bytes(round(row[timeline.columns.index(ALLOCATED)]), units)
    return [Label(row[0], f"allocated peak {size}", "--ink")]


def _peak_line(timeline: Timeline, axis: Axis, scale: Scale, top: float) -> list[Json]:
    """From the peak up to its label."""
    row = _peak_row(timeline)
    if row is None:
        return []
    at = axis.at(row[0])
    peak = scale.of_bytes(row[timeline.columns.index(ALLOCATED)])
    line = {"color": "--ink", "width": 1}
    return [
        {"type": "line", "x0": at, "x1": at, "y0": peak, "y1": scale.of_bytes(top), "line": line}
    ]


# The limit


def _is_near(limit: Limit, most: int) -> bool:
    return limit.size_bytes <= NEAR * most


def _top(most: int, limit: Limit | None) -> float:
    """Where the axis ends."""
    near = limit.size_bytes if limit and _is_near(limit, most) else 0
    return max(most * HEADROOM, near * 1.1)


def _limit_shapes(axis: Axis, limit: Limit | None, most: int, scale: Scale) -> list[Json]:
    if limit is None or not _is_near(limit, most):
        return []
    at = scale.of_bytes(limit.size_bytes)
    return [limit_line((axis.drawn[0], at), (axis.drawn[-1], at))]


def _limit_legend(limit: Limit | None, most: int, units: str) -> list[tuple[str, str]]:
    """What the line means; beside it there may be no room that is not coloured."""
    if limit is None or not _is_near(limit, most):
        return []
    return [("--limit", f"{label(limit.words)} {format_bytes(limit.size_bytes, units)}")]


def _far_limit_label(timeline: Timeline, limit: Limit | None, most: int, units: str) -> list[Label]:
    """Above an axis that ends before the limit."""
    if limit is None or _is_near(limit, most):
        return []
    text = f"{limit.words} {format_bytes(limit.size_bytes, units)} ↑"
    return [Label(timeline.rows[-1][0], text, "--limit")]


# Labels above the plot


class Label(NamedTuple):
    """A text above the plot, at a moment."""

    moment: float
    text: str
    color: str = "--soft"


def _labels(axis: Axis, wanted: Sequence[Label]) -> tuple[list[Json], int]:
    """Annotations, and in how many rows, so that none covers another on a phone."""
    rows: list[list[tuple[float, float]]] = []
    made = []
    for one in wanted:
        text = plotly_text(one.text, 40)
        width = (len(text) + 1) * LETTER_WIDTH / PHONE_WIDTH
        along = axis.along(one.moment)
        left = along if along + width <= 1 else max(along - width, 0.0)
        span = left, left + width
        row = next((at for at, taken in enumerate(rows) if _is_free(taken, span)), len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(span)
        made.append(
            {
                "text": text,
                "x": axis.at(one.moment),
                "xanchor": "left" if left == along else "right",
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "yshift": LABEL_HEIGHT * row,
                "showarrow": False,
                "font": {"color": one.color},
            }
        )
    return made, len(rows)


def _is_free(taken: Sequence[tuple[float, float]], span: tuple[float, float]) -> bool:
    return all(span[1] <= start or span[0] >= end for start, end in taken)


# Phases


def _phase_starts(timeline: Timeline, phases: Sequence[Phase]) -> list[tuple[float, str]]:
    if PHASE not in timeline.columns:
        return []
    names = {number: phase.name for number, phase in enumerate(phases)} | {IN_WARM_UP: "warm-up"}
    starts: dict[int, float] = {}
    for row, phase in zip(timeline.rows, _column(timeline, PHASE), strict=True):
        starts.setdefault(int(phase), row[0])
    return [(start, names[number]) for number, start in starts.items() if number in names]


def _phase_lines(timeline: Timeline, axis: Axis, phases: Sequence[Phase]) -> list[Json]:
    line = {"color": "--soft", "width": 1, "dash": "dot"}
    starts = [axis.at(start) for start, _ in _phase_starts(timeline, phases)]
    return [
        {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": line}
        for at in starts
    ]


def _legend(timeline: Timeline) -> list[tuple[str, str]]:
    areas = [(color(name), label(name)) for name in _categories(timeline)]
    lines = [
        (LINES[name], label(name.removesuffix("_bytes")))
        for name in LINES
        if name in timeline.columns and (name != ALLOCATED or not areas)
    ]
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
