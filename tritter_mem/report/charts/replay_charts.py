"""Charts of a replay: the peaks side by side, memory over time, and where it lay at the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tritter_mem.report.charts.axes import (
    TABLE_ROWS,
    Chart,
    Json,
    Scale,
    budget_note,
    limit_line,
    name_axis,
    plotly_text,
)
from tritter_mem.report.charts.timeline_chart import timeline_table
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell, on_scale
from tritter_mem.results.replay import DeviceReplay, Scenario
from tritter_mem.results.segments import FREE, SegmentState
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

UNITS = "GiB"
MAP_ROWS, MAP_COLUMNS = 24, 200
NAME_LIMIT = 36
LIVE, UNUSED = "--accent", "--c-cached"


def peaks_chart(device: DeviceReplay) -> Chart:
    """A bar for each scenario: live at its reserved peak, and reserved without use."""
    scenarios, capacity = device.scenarios, device.capacity_bytes
    most = max(scenario.reserved_peak_bytes for scenario in scenarios)
    near = capacity if capacity is not None and on_scale(capacity, most) else 0
    scale = Scale.of(max(most, near), UNITS)
    live = [s.reserved_peak_bytes - s.fragmentation.reserved_not_allocated_bytes for s in scenarios]
    unused = [s.fragmentation.reserved_not_allocated_bytes for s in scenarios]
    names = [printable(s.name, NAME_LIMIT) for s in scenarios]
    axis = name_axis(names) | {"ticktext": [plotly_text(name, NAME_LIMIT) for name in names]}
    at = scale.of_bytes(near)
    limit = [limit_line((at, -0.5), (at, len(scenarios) - 0.5))] if near else []
    title = "At the reserved peak"
    return Chart(
        title=title,
        description=f"Bars of {len(scenarios)} scenarios: memory that is live and memory that is "
        f"reserved without use, at the fullest moment of the reserved peak.",
        figure={
            "data": [
                _bars("Live", live, LIVE, scale),
                _bars("Reserved, unused", unused, UNUSED, scale),
            ],
            "layout": {
                "barmode": "stack",
                "bargap": 0.35,
                "xaxis": scale.axis(),
                "yaxis": axis,
                "shapes": limit,
                "annotations": [] if capacity is None else [_capacity_note(capacity, scale)],
            },
        },
        table=_peaks_table(names, live, unused, title),
        height=80 + 34 * len(scenarios),
        legend=[(LIVE, "Live"), (UNUSED, "Reserved, unused")],
    )


def _capacity_note(capacity: int, scale: Scale) -> Json:
    note = budget_note(capacity, scale, UNITS)
    return note | {"text": note["text"].replace("budget", "capacity")}


def _bars(name: str, sizes: Sequence[int], color: str, scale: Scale) -> Json:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": [scale.of_bytes(size) for size in sizes],
        "y": list(range(len(sizes))),
        "marker": {"color": color},
        "customdata": [format_bytes(size, UNITS) for size in sizes],
        "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
    }


def _peaks_table(
    names: Sequence[str], live: Sequence[int], unused: Sequence[int], caption: str
) -> Table:
    rows = [
        Row(cells=(Cell(text=name), *(bytes_cell(size, UNITS) for size in (a, b, a + b))))
        for name, a, b in zip(names, live, unused, strict=True)
    ]
    columns = [Column(label="Settings", numeric=False)]
    columns += [Column(label=label) for label in ("Live", "Unused", "Reserved")]
    return Table(caption=caption, columns=columns, rows=rows)


def timeline_chart(scenario: Scenario, capacity_bytes: int | None) -> Chart:
    """Reserved and allocated over the recorded events, and the capacity where it is near."""
    rows = scenario.timeline.rows
    most = scenario.reserved_peak_bytes
    near = capacity_bytes if capacity_bytes is not None and on_scale(capacity_bytes, most) else 0
    scale = Scale.of(max(most, near), UNITS)
    at = scale.of_bytes(near)
    title = "Memory over time"
    return Chart(
        title=title,
        description=f"Reserved and allocated memory under {printable(scenario.name)}; "
        f"allocated peaks at {format_bytes(scenario.allocated_peak_bytes)}, "
        f"reserved at {format_bytes(most)}.",
        figure={
            "data": [
                _line(rows, 1, "Allocated", LIVE, scale) | {"fill": "tozeroy"},
                _line(rows, 2, "Reserved", "--ink", scale),
            ],
            "layout": {
                "xaxis": {"title": {"text": "event"}, "fixedrange": True},
                "yaxis": scale.axis(),
                "hovermode": "x unified",
                "shapes": [limit_line((rows[0][0], at), (rows[-1][0], at))] if near else [],
            },
        },
        table=timeline_table(scenario.timeline, title, UNITS),
        height=300,
        legend=[(LIVE, "Allocated"), ("--ink", "Reserved")]
        + ([("--limit", "Capacity")] if near else []),
    )


def _line(
    rows: Sequence[tuple[float, ...]], column: int, name: str, color: str, scale: Scale
) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [row[0] for row in rows],
        "y": [scale.of_bytes(row[column]) for row in rows],
        "line": {"width": 1.5, "shape": "hv", "color": color},
        "hovertemplate": f"%{{fullData.name}}: %{{y:,.2f}} {scale.unit}<extra></extra>",
    }


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
