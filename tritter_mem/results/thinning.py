"""Memory over time with fewer points, its peaks kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from tritter_mem.results.run import Timeline

PEAKS = ("allocated_bytes", "reserved_bytes")


def thinned(
    points: range, most: int, picks: Sequence[Callable[[range], int]], bounds: Iterable[int] = ()
) -> Collection[int]:
    """At most `most` of `points`: all, or what each of `picks` takes of many parts.

    Args:
        points: what there is.
        most: how many to keep at most.
        picks: what is kept of a part.
        bounds: where something else begins, such as a phase. What lies between two of them shares
            half of `most` alike, however short it is, and the other half by its length.
    """
    if len(points) <= most:
        return points
    inside = {at for at in bounds if points.start < at < points.stop}
    if 4 * len(picks) * (len(inside) + 1) > most:
        inside = set()
    edges = [points.start, *sorted(inside), points.stop]
    alike, rest = most // 2 // (len(edges) - 1), most - most // 2
    return {
        point
        for piece in map(range, edges, edges[1:])
        for point in _of_parts(piece, alike + rest * len(piece) // len(points), picks)
    }


def _of_parts(points: range, most: int, picks: Sequence[Callable[[range], int]]) -> Collection[int]:
    """All, or what each of `picks` takes of equal parts."""
    if len(points) <= most:
        return points
    parts = max(most // len(picks), 1)
    edges = [points.start + len(points) * i // parts for i in range(parts + 1)]
    return {pick(range(start, end)) for start, end in pairwise(edges) for pick in picks}


def thin(timeline: Timeline, most: int) -> Timeline:
    """At most `most` rows: the first, the last, and of each part between the peaks.

    Args:
        timeline: memory over time.
        most: how many rows to keep at most, four or more.

    Returns:
        Rows of `timeline` in their order, among them the highest allocated and the highest
        reserved one. A short phase keeps as many as a long one keeps at least.
    """
    rows = timeline.rows
    if len(rows) <= most:
        return timeline
    peaks = [timeline.columns.index(name) for name in PEAKS if name in timeline.columns] or [0]
    highest = [partial(max, key=lambda at, column=column: rows[at][column]) for column in peaks]
    kept = {
        0,
        len(rows) - 1,
        *thinned(range(1, len(rows) - 1), most - 2, highest, _phase_starts(timeline)),
    }
    return replace(timeline, rows=tuple(rows[at] for at in sorted(kept)))


def _phase_starts(timeline: Timeline) -> list[int]:
    """Rows with another phase than the one before."""
    if "phase" not in timeline.columns:
        return []
    column = timeline.columns.index("phase")
    phases = [row[column] for row in timeline.rows]
    return [at for at, (before, now) in enumerate(pairwise(phases), 1) if before != now]
