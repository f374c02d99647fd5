"""How far kinds of number are from each other: in cells of a table, and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tritter_mem.report.table import BLANK, Cell, Column, Tone
from tritter_mem.report.words import KIND_LABELS, label, percent, signed_bytes
from tritter_mem.results.run import Difference, Kind, KindPair, Result
from tritter_mem.results.verdict import tolerance_of
from tritter_mem.units import format_bytes

NOTABLE = 0.02
"""What two kinds of number may differ by without a sentence."""
UNPLANNED = "rounding"
"""A plan does not know it, so that there is some is no difference."""


def compared_pairs(kinds: Sequence[Kind]) -> list[KindPair]:
    """Each kind of number beside the next better one that is there."""
    return list(pairwise(kinds))


def difference_column(pair: KindPair, *, alone: bool) -> Column:
    """The heading of a column of differences; one of several says which two it compares."""
    first, second = pair
    text = "Difference" if alone else f"{KIND_LABELS[first]} → {second}"
    return Column(label=text, wide=not alone)


def difference_cell(row: Difference | None, pair: KindPair) -> Cell:
    """How far the second kind is from the first, coloured by the pair's tolerance."""
    if row is None or _is_unplanned(row, pair):
        return BLANK
    before, after = (row.sizes()[kind] for kind in pair)
    if before is None or after is None:
        return BLANK
    ratio = row.ratio(pair)
    if ratio is None:
        return _cell_without_ratio(before, after)
    # Against a run on the CPU a ratio leaves out what only a GPU has.
    adjusted = "*" if ratio != after / before - 1 else ""
    tone = tone_of(ratio, tolerance_of(row.name, pair))
    return Cell(text=f"{percent(ratio)}{adjusted}", value=ratio, tone=tone)


def _cell_without_ratio(before: int, after: int) -> Cell:
    """Without a ratio: nothing in both, or in the first alone; else it was left out on purpose."""
    if before == after:
        return Cell(text="equal", tone="good")
    return Cell(text="new", tone="bad") if before == 0 else BLANK


def tone_of(ratio: float, tolerance: float) -> Tone:
    """Good within the tolerance, a warning up to five times it, bad beyond."""
    if abs(ratio) <= tolerance:
        return "good"
    return "warn" if abs(ratio) <= 5 * tolerance else "bad"


def notable_differences(result: Result, units: str) -> list[str]:
    """A sentence for each component or total that differs by more than 2% between two kinds."""
    return [
        _difference_sentence(row, pair, units)
        for pair in compared_pairs(list(result.by_kind()))
        for row in result.differences
        if _is_notable(row, pair)
    ]


def _is_notable(row: Difference, pair: KindPair) -> bool:
    before, after = (row.sizes()[kind] for kind in pair)
    if before is None or after is None or _is_unplanned(row, pair):
        return False
    ratio = row.ratio(pair)
    return before == 0 != after if ratio is None else abs(ratio) > NOTABLE


def _is_unplanned(row: Difference, pair: KindPair) -> bool:
    return row.name == UNPLANNED and pair[0] == "planned"


def _difference_sentence(row: Difference, pair: KindPair, units: str) -> str:
    """`Activations: planned 1.0 MiB, measured 1.2 MiB (+20.0%)`."""
    before, after = (row.sizes()[kind] or 0 for kind in pair)
    ratio = row.ratio(pair)
    change = signed_bytes(after - before, units) if ratio is None else percent(ratio)
    return (
        f"{label(row.name)}: {pair[0]} {format_bytes(before, units)}, "
        f"{pair[1]} {format_bytes(after, units)} ({change})"
    )
