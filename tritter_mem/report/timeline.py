"""Timelines cut to what a page can hold, with their peaks kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from tritter_mem.results import Timeline

PEAKS = ("allocated_bytes", "reserved_bytes")


def thin(timeline: Timeline, most: int) -> Timeline:
    """At most `most` rows: the first, the last, and of each stretch between the peaks.

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
    peaks = [timeline.columns.index(name) for name in PEAKS if name in timeline.columns]
    stretches = (most - 2) // max(len(peaks), 1)
    edges = [1 + (len(rows) - 2) * i // stretches for i in range(stretches + 1)]
    kept = {0, len(rows) - 1}
    for start, end in pairwise(edges):
        kept |= {_highest(timeline, range(start, end), column) for column in peaks or [0]}
    return replace(timeline, rows=tuple(rows[at] for at in sorted(kept)))


def _highest(timeline: Timeline, stretch: range, column: int) -> int:
    return max(stretch, key=lambda at: timeline.rows[at][column])
