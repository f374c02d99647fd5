"""How far two kinds of number are apart, in words and tones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tritter_mem.differences import tolerance_of
from tritter_mem.report.table import BLANK, Cell, Column, Tone
from tritter_mem.report.words import KIND_LABELS, label, percent, signed_bytes
from tritter_mem.results import Difference, Kind, Result
from tritter_mem.units import format_bytes

Pair = tuple[Kind, Kind]

NOTABLE = 0.02
# A plan does not know it, so that there is some is no difference.
UNPLANNED = "rounding"


def compared_pairs(kinds: Sequence[Kind]) -> list[Pair]:
    """Each kind of number beside the next better one that is there."""
    return list(pairwise(kinds))


def difference_column(pair: Pair, *, alone: bool) -> Column:
    """The heading of a column of differences; one of several says which two it compares."""
    first, second = pair
    text = "Difference" if alone else f"{KIND_LABELS[first]} → {second}"
    return Column(label=text, wide=not alone)


def difference_cell(row: Difference | None, pair: Pair) -> Cell:
    """How far the second kind is from the first, coloured by the pair's tolerance."""
    if row is None or None in (sizes := _sizes(row, pair)) or _is_unplanned(row, pair):
        return BLANK
    ratio = _ratio(row, pair)
    if ratio is None:
        return _cell_from_nothing(*sizes)
    return Cell(text=percent(ratio), value=ratio, tone=tone_of(ratio, tolerance_of(row.name, pair)))


def _cell_from_nothing(before: int | None, after: int | None) -> Cell:
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
        _sentence(row, pair, units)
        for pair in compared_pairs(list(result.estimates()))
        for row in result.differences
        if _is_notable(row, pair)
    ]


def _is_notable(row: Difference, pair: Pair) -> bool:
    before, after = _sizes(row, pair)
    if before is None or after is None or _is_unplanned(row, pair):
        return False
    ratio = _ratio(row, pair)
    return before == 0 != after if ratio is None else abs(ratio) > NOTABLE


def _is_unplanned(row: Difference, pair: Pair) -> bool:
    return row.name == UNPLANNED and pair[0] == "planned"


def _sentence(row: Difference, pair: Pair, units: str) -> str:
    """`Activations: planned 1.0 MiB, measured 1.2 MiB (+20.0%)`."""
    before, after = (size or 0 for size in _sizes(row, pair))
    ratio = _ratio(row, pair)
    change = signed_bytes(after - before, units) if ratio is None else percent(ratio)
    return (
        f"{label(row.name)}: {pair[0]} {format_bytes(before, units)}, "
        f"{pair[1]} {format_bytes(after, units)} ({change})"
    )


def _sizes(row: Difference, pair: Pair) -> tuple[int | None, int | None]:
    first, second = pair
    return getattr(row, f"{first}_bytes"), getattr(row, f"{second}_bytes")


def _ratio(row: Difference, pair: Pair) -> float | None:
    first, second = pair
    ratio: float | None = getattr(row, f"{first}_vs_{second}")
    return ratio
