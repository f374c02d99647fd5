"""Memory over time with fewer points, its peaks kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from tritter_mem.results.run import Timeline

PEAKS = ("allocated_bytes", "reserved_bytes")


def thinned(points: range, most: int, picks: Sequence[Callable[[range], int]]) -> Collection[int]:
    """At most `most` of `points`: all, or what each of `picks` takes of many equal parts."""
    if len(points) <= most:
        return points
    parts = max(most // len(picks), 1)
    edges = [points.start + len(points) * i // parts for i in range(parts + 1)]
    ranges = [range(start, end) for start, end in pairwise(edges)]
    return {pick(part) for part in ranges for pick in picks}


def thin(timeline: Timeline, most: int) -> Timeline:
    """At most `most` rows: the first, the last, and of each part between the peaks.

    Args:
        timeline: memory over time.
        most: how many rows to keep at most, four or more.

    Returns:
        Rows of `timeline` in their order, among them the highest allocated and the highest
        reserved one.
    """
    rows = timeline.rows
    if len(rows) <= most:
        return timeline
    peaks = [timeline.columns.index(name) for name in PEAKS if name in timeline.columns] or [0]
    highest = [partial(max, key=lambda at, column=column: rows[at][column]) for column in peaks]
    kept = {0, len(rows) - 1, *thinned(range(1, len(rows) - 1), most - 2, highest)}
    return replace(timeline, rows=tuple(rows[at] for at in sorted(kept)))
