"""The checkpointing trade-off as a chart: memory against work or time, the Pareto front marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritter_mem.report.charts.axes import Chart, Json, Scale, plotly_text
from tritter_mem.report.table import Table
from tritter_mem.report.words import name_of
from tritter_mem.results.run import CheckpointCase, Result
from tritter_mem.units import format_bytes

OFF_FRONT, ON_FRONT = "--soft", "--accent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One policy: what it costs, what it needs, and the words for both."""

    name: str
    cost: float
    allocated_bytes: int
    cost_words: str
    on_front: bool


def checkpointing_chart(result: Result, table: Table, units: str) -> Chart:
    """Draw each policy's memory against its seconds where all are measured, else its work.

    Args:
        result: a result with a trade-off.
        table: the trade-off's table, which is the numbers behind the chart.
        units: `GiB` or `GB`.
    """
    cases = result.checkpointing
    timed = all(case.measured_seconds is not None for case in cases)
    points = [_timed(case) if timed else _counted(case) for case in cases]
    scale = Scale.of(max(point.allocated_bytes for point in points), units)
    front = sorted((p for p in points if p.on_front), key=lambda point: point.cost)
    beaten = [point for point in points if not point.on_front]
    most = max(point.cost for point in points) or 1
    what = "seconds of a step (measured)" if timed else "recomputed work, % (counted)"
    return Chart(
        title=f"Allocated peak against {what}",
        description=_says(name_of(result), points, front),
        figure={
            "data": [
                _trace("Pareto front", front, scale, units) | _look(front, most, "bottom"),
                _trace("beaten", beaten, scale, units) | _look(beaten, most, "top"),
            ],
            "layout": {
                "xaxis": {
                    "title": {"text": what},
                    "range": [-0.04 * most, 1.04 * most],
                    "fixedrange": True,
                },
                "yaxis": scale.axis(),
                "hovermode": "closest",
            },
        },
        table=table,
        height=340,
        legend=[(ON_FRONT, "Pareto front"), (OFF_FRONT, "beaten by another")],
    )


def _counted(case: CheckpointCase) -> Point:
    return Point(
        name=plotly_text(case.name, 40),
        cost=round(100 * case.overhead, 3),
        allocated_bytes=case.allocated_peak_bytes,
        cost_words=f"+{case.overhead:.1%}",
        on_front=case.on_front,
    )


def _timed(case: CheckpointCase) -> Point:
    seconds = case.measured_seconds or 0.0
    return Point(
        name=plotly_text(case.name, 40),
        cost=seconds,
        allocated_bytes=case.measured_allocated_peak_bytes or case.allocated_peak_bytes,
        cost_words=f"{seconds:.3g} s",
        on_front=case.on_front,
    )


def _says(name: str, points: Sequence[Point], front: Sequence[Point]) -> str:
    names = ", ".join(point.name for point in front)
    return f"{len(points)} checkpointing policies of {name}; none beats {names}."


def _trace(name: str, points: Sequence[Point], scale: Scale, units: str) -> Json:
    return {
        "type": "scatter",
        "name": name,
        "x": [point.cost for point in points],
        "y": [scale.of_bytes(point.allocated_bytes) for point in points],
        "text": [point.name for point in points],
        "customdata": [
            f"{format_bytes(point.allocated_bytes, units)}, {point.cost_words}" for point in points
        ],
        "hovertemplate": "%{text}: %{customdata}<extra></extra>",
    }


def _look(points: Sequence[Point], most: float, side: str) -> Json:
    """The front as a line with its labels under it, what is beaten above, all inside the chart."""
    front = side == "bottom"
    color = ON_FRONT if front else OFF_FRONT
    return {
        "mode": "lines+markers+text" if front else "markers+text",
        "marker": {"color": color, "size": 9},
        "line": {"color": color, "width": 1, "dash": "dot"},
        "textposition": [f"{side} {'left' if p.cost > most / 2 else 'right'}" for p in points],
        "cliponaxis": False,
    }
