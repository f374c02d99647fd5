"""Where memory lay at the peak: a row for each segment, blocks by component, gaps where free.

A segment that is far longer than most goes on in the next rows, so that the others stay readable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tritter_mem.report.charts.axes import TABLE_ROWS, Chart, Json, Scale, color
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.words import label
from tritter_mem.results.run import COMPONENTS, Result, Segment
from tritter_mem.results.verdict import best_kind_with
from tritter_mem.units import MiB, format_bytes, format_count

TALLEST_ROW = 18
TALLEST, TALLEST_FULL = 640, 96
"""In CSS pixels; a map of segments that are almost full has nothing to show but that."""
LINED_ROW = 4
"""Blocks of lower rows have no line around them, which would cover them."""
ALMOST_FULL = 0.03
"""Up to this share of the segments is free in such a map."""
FREE = "free"
SHORTEST_ROW = 16 * MiB
Piece = tuple[int, int, int]
"""Row, where in it a block begins, and its size."""


def segment_map(result: Result, units: str, full: Result) -> Chart | None:
    """Draw the segments, largest at the top; None where no kind of number has any.

    Args:
        result: one profile's answers.
        units: `GiB` or `GB`.
        full: the same, where `result` has only the largest segments.
    """
    kind = best_kind_with(result, "segments")
    if kind is None:
        return None
    segments = largest_first(result.by_kind()[kind].segments)
    row_bytes = _row_bytes(segments)
    scale = Scale.of(row_bytes, units)
    pieces = _pieces_by_component(segments, row_bytes)
    rows = 1 + max(row for row, _, _ in pieces[FREE])
    title = f"Segments at the allocated peak ({kind})"
    wrapped = "; a longer segment continues in the next row" if rows > len(segments) else ""
    height = _rows_height(segments, rows)
    return Chart(
        title=title + wrapped,
        description=_says(segments, len(full.by_kind()[kind].segments), units),
        figure={
            "data": [
                _trace(name, found, scale, units, 0 if height < rows * LINED_ROW else 0.5)
                for name, found in pieces.items()
            ],
            "layout": _layout(rows, scale),
        },
        table=_table(segments, title, units),
        height=80 + height,
        legend=[
            *((color(name), label(name)) for name in pieces if name != FREE),
            ("--rule", "Free"),
        ],
    )


def _rows_height(segments: Sequence[Segment], rows: int) -> int:
    free = sum(map(_free_bytes, segments))
    full = free <= ALMOST_FULL * sum(segment.size_bytes for segment in segments)
    return min(TALLEST_ROW * rows, TALLEST_FULL if full else TALLEST)


def _row_bytes(segments: Sequence[Segment]) -> int:
    """The largest segment, or four times the median one where that is less."""
    median = segments[len(segments) // 2].size_bytes
    return min(segments[0].size_bytes, max(4 * median, SHORTEST_ROW))


def largest_first(segments: Sequence[Segment]) -> list[Segment]:
    """Segments in the order of the map."""
    return sorted(segments, key=lambda segment: segment.size_bytes, reverse=True)


def _free_bytes(segment: Segment) -> int:
    return sum(block.size_bytes for block in segment.blocks if not block.component)


def _says(segments: Sequence[Segment], count: int, units: str) -> str:
    total = sum(segment.size_bytes for segment in segments)
    free = sum(map(_free_bytes, segments))
    which = f"The {len(segments)} largest of {count}" if count > len(segments) else f"{count}"
    return (
        f"{which} segments, {format_bytes(total, units)} together; "
        f"{format_bytes(free, units)} of it is free."
    )


def _layout(rows: int, scale: Scale) -> Json:
    return {
        "barmode": "overlay",
        "xaxis": scale.axis(),
        "yaxis": {
            "range": [rows - 0.5, -0.5],
            "showticklabels": False,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }


def _pieces_by_component(segments: Sequence[Segment], row_bytes: int) -> dict[str, list[Piece]]:
    """Where each component's blocks are drawn; first the segments, whose free space then shows."""
    found: dict[str, list[Piece]] = {name: [] for name in (FREE, *COMPONENTS)}
    row = 0
    for segment in segments:
        found[FREE] += _pieces(row, 0, segment.size_bytes, row_bytes)
        at = 0
        for block in segment.blocks:
            if block.component:
                found[block.component] += _pieces(row, at, block.size_bytes, row_bytes)
            at += block.size_bytes
        row += -(-segment.size_bytes // row_bytes)
    return {name: pieces for name, pieces in found.items() if pieces}


def _pieces(row: int, start: int, size: int, row_bytes: int) -> list[Piece]:
    """A part of a segment that begins in `row`, cut where rows end."""
    end, pieces = start + size, []
    while start < end:
        line, at = divmod(start, row_bytes)
        length = min(end - start, row_bytes - at)
        pieces.append((row + line, at, length))
        start += length
    return pieces


def _trace(name: str, pieces: Sequence[Piece], scale: Scale, units: str, line_width: float) -> Json:
    free = name == FREE
    shown = "segment of" if free else label(name)
    return {
        "type": "bar",
        "orientation": "h",
        "width": 0.85,
        "name": shown,
        "y": [row for row, _, _ in pieces],
        "base": [scale.of_bytes(at) for _, at, _ in pieces],
        "x": [scale.of_bytes(size) for _, _, size in pieces],
        "marker": {
            "color": "--rule" if free else color(name),
            "line": {"color": "--paper", "width": 0 if free else line_width},
        },
        "customdata": [format_bytes(size, units) for _, _, size in pieces],
        "hovertemplate": "%{fullData.name} %{customdata}<extra></extra>",
    }


def _table(segments: Sequence[Segment], caption: str, units: str) -> Table:
    """Segments of one size in a row."""
    sizes: defaultdict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        sizes[segment.size_bytes].append(segment)
    labels = ("Segment size", "Segments", "Blocks", "Allocated", "Free")
    return Table(
        caption=caption,
        columns=[Column(label=text) for text in labels],
        rows=[_row(size, same, units) for size, same in list(sizes.items())[:TABLE_ROWS]],
    )


def _row(size: int, segments: Sequence[Segment], units: str) -> Row:
    free = sum(map(_free_bytes, segments))
    blocks = sum(bool(block.component) for segment in segments for block in segment.blocks)
    return Row(
        cells=(
            bytes_cell(size, units),
            Cell(text=format_count(len(segments)), value=len(segments)),
            Cell(text=format_count(blocks), value=blocks),
            bytes_cell(size * len(segments) - free, units),
            bytes_cell(free, units),
        )
    )
