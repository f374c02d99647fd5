"""Charts of a replay: memory over time, and where it lay at the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tritter_mem.report.charts.axes import TABLE_ROWS, Chart, Json
from tritter_mem.report.charts.timeline_chart import Limit, draw_timeline
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell
from tritter_mem.results.replay import Scenario
from tritter_mem.results.segments import FREE, SegmentState
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

UNITS = "GiB"
MAP_ROWS, MAP_COLUMNS = 24, 200
LIVE = "--accent"


def timeline_chart(scenario: Scenario, capacity_bytes: int | None) -> Chart:
    """Reserved and allocated over the recorded events, and the capacity."""
    return draw_timeline(
        scenario.timeline,
        title="Memory over time",
        name=f"the recorded requests under {printable(scenario.name)}",
        limit=None
        if capacity_bytes is None
        else Limit(words="capacity", size_bytes=capacity_bytes),
        units=UNITS,
    )


def segment_map(scenario: Scenario) -> Chart:
    """All segments at the peak, laid end to end and wrapped like text: how full each cell is."""
    segments = scenario.segments_at_peak
    total = sum(segment.size for segment in segments)
    cells = _fullness(segments, max(-(-total // (MAP_ROWS * MAP_COLUMNS)), 1))
    lines = [cells[at : at + MAP_COLUMNS] for at in range(0, len(cells), MAP_COLUMNS)]
    title = "Segments at the peak"
    line_size = format_bytes(max(-(-total // MAP_ROWS), 1))
    return Chart(
        title=f"{title}: by address, {line_size} a line",
        description=f"{len(segments):,} segments of {format_bytes(total)} under "
        f"{printable(scenario.name)}, laid end to end, by how full they are.",
        figure={
            "data": [_heatmap(lines)],
            "layout": {
                "xaxis": {"visible": False, "fixedrange": True},
                "yaxis": {"visible": False, "fixedrange": True, "autorange": "reversed"},
            },
        },
        table=_segments_table(segments, title),
        height=260,
        legend=[(LIVE, "In use"), ("--rule", "Free")],
    )


def _heatmap(lines: Sequence[Sequence[int]]) -> Json:
    return {
        "type": "heatmap",
        "z": lines,
        "zmin": 0,
        "zmax": 100,
        "showscale": False,
        "ygap": 2,
        "colorscale": [[0, "--rule"], [1, LIVE]],
        "hovertemplate": "%{z}% in use<extra></extra>",
    }


def _fullness(segments: Sequence[SegmentState], cell_bytes: int) -> list[int]:
    """Percent in use of each cell of `cell_bytes`, over all segments end to end."""
    total = sum(segment.size for segment in segments)
    used = [0] * -(-total // cell_bytes)
    for start, end in _live_ranges(segments):
        for cell in range(start // cell_bytes, -(-end // cell_bytes)):
            first, behind = cell * cell_bytes, (cell + 1) * cell_bytes
            used[cell] += min(end, behind) - max(start, first)
    last = total - (len(used) - 1) * cell_bytes
    sizes = [cell_bytes] * (len(used) - 1) + [last] * bool(used)
    return [round(100 * part / size) for part, size in zip(used, sizes, strict=True)]


def _live_ranges(segments: Sequence[SegmentState]) -> Iterator[tuple[int, int]]:
    position = 0
    for segment in segments:
        for block in segment.blocks:
            if block.state is not FREE:
                yield position, position + block.size
            position += block.size


def _segments_table(segments: Sequence[SegmentState], caption: str) -> Table:
    """The segments with most unused memory."""
    wasteful = sorted(segments, key=lambda s: s.allocated_bytes - s.size)[:TABLE_ROWS]
    rows = [
        Row(
            cells=(
                Cell(text=f"{segment.address:#x}"),
                Cell(text="small" if segment.small else "large"),
                bytes_cell(segment.size, UNITS),
                bytes_cell(segment.size - segment.allocated_bytes, UNITS),
                bytes_cell(_largest_gap(segment), UNITS),
                Cell(text=f"{len(segment.blocks):,}", value=len(segment.blocks)),
            )
        )
        for segment in wasteful
    ]
    columns = [
        Column(label="Segment", numeric=False),
        Column(label="Pool", numeric=False),
        *(Column(label=label) for label in ("Size", "Unused", "Largest gap", "Blocks")),
    ]
    return Table(caption=f"{caption}, most unused first", columns=columns, rows=rows)


def _largest_gap(segment: SegmentState) -> int:
    return max((b.size for b in segment.blocks if b.state is FREE), default=0)
