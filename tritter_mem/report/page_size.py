"""Results cut to what a page can hold: at most 6 MB with 20 profiles, chart library included.

What is cut, in the charts and in the data to download, is whole in the files of `--output`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from tritter_mem.report.segment_map import largest_first
from tritter_mem.report.timeline import thin
from tritter_mem.results import Estimate, Result, Segment

TIMELINE_NUMBERS = 10_000
BLOCKS = 6_000
HOLDINGS = 6_000
"""What a page holds at most of each, in all its results together."""


def fit_page(results: Sequence[Result]) -> list[Result]:
    """Cut timelines, segments and holdings so that the page stays small; peaks are kept."""
    estimates = [e for result in results for e in result.estimates().values()]
    columns = sum(len(e.timeline.columns) for e in estimates if e.timeline is not None)
    rows = max(TIMELINE_NUMBERS // max(columns, 1), 20)
    blocks = BLOCKS // max(sum(bool(e.segments) for e in estimates), 1)
    holdings = HOLDINGS // max(sum(bool(e.held_at_peak) for e in estimates), 1)
    return [cut_result(result, rows, blocks, holdings) for result in results]


def cut_result(result: Result, rows: int, blocks: int, holdings: int) -> Result:
    """The result with no estimate above so many timeline rows, blocks and holdings."""

    def cut(estimate: Estimate | None) -> Estimate | None:
        if estimate is None:
            return None
        return replace(
            estimate,
            timeline=estimate.timeline and thin(estimate.timeline, rows),
            segments=_with_blocks(estimate.segments, blocks),
            held_at_peak=estimate.held_at_peak[:holdings],
        )

    kinds = (result.planned, result.simulated, result.measured)
    planned, simulated, measured = map(cut, kinds)
    return replace(result, planned=planned, simulated=simulated, measured=measured)


def _with_blocks(segments: tuple[Segment, ...], most: int) -> tuple[Segment, ...]:
    """All segments, or the largest: as many as have `most` blocks together, one in any case."""
    if sum(len(segment.blocks) for segment in segments) <= most:
        return segments
    ordered = largest_first(segments)
    blocks = accumulate(len(segment.blocks) for segment in ordered)
    return tuple(ordered[: max(sum(count <= most for count in blocks), 1)])
