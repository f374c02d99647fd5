"""A table as data: what a reader sees, in which order, in which tone. Renderers only draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tritter_mem.report.words import MINUS, MISSING, headroom_words
from tritter_mem.results.run import Verdict
from tritter_mem.units import format_bytes

Tone = Literal["", "good", "warn", "bad", "muted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a reader sees, the number behind it (to sort by), and how it is coloured."""

    text: str
    value: float | None = None
    tone: Tone = ""


BLANK = Cell(text="")
UNKNOWN = Cell(text=MISSING, tone="muted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading; `wide` columns are left out where a terminal is narrow."""

    label: str
    numeric: bool = True
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a bar: the CSS variable of its colour, what it is, and how long."""

    color: str
    words: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Cells in the order of the table's columns, and a bar.

    Attributes:
        bar_bytes: the length of the row's bar; None: it has none.
        total: whether it stands apart from the rows above it.
        best: whether it is the one to choose.
        pieces: what the bar is made of on a page; empty: one piece.
        start_bytes: where the pieces begin on a page.
        limit_bytes: where the limit of this row is, if each row has another one.
    """

    cells: tuple[Cell, ...]
    bar_bytes: int | None = None
    total: bool = False
    best: bool = False
    pieces: tuple[Piece, ...] = ()
    start_bytes: int = 0
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A column of bars: its heading, the length of a full bar, and where the limit stands.

    Attributes:
        legend: colour and name of each kind of piece, where the rows do not say it.
        widest_limit_bytes: of limits that rows have, the largest that a page leaves room for.
    """

    label: str
    full_bytes: int
    limit_bytes: int | None = None
    legend: Sequence[tuple[str, str]] = ()
    widest_limit_bytes: int = 0

    @property
    def page_bytes(self) -> int:
        """The length of the column on a page."""
        return max(self.full_bytes, self.widest_limit_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A caption, columns and rows; `bars` where the rows carry one.

    Attributes:
        search: what a page's search field is called; empty: it has none.
        first_rows: how many rows a page shows until somebody asks for all; 0: all of them.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    bars: Bars | None = None
    search: str = ""
    first_rows: int = 0


def without_empty_columns(table: Table) -> Table:
    """The table without columns that are blank in every row."""
    kept = [
        at
        for at in range(len(table.columns))
        if any(row.cells[at].text not in ("", MISSING) for row in table.rows)
    ]
    return replace(
        table,
        columns=[table.columns[at] for at in kept],
        rows=[replace(row, cells=tuple(row.cells[at] for at in kept)) for row in table.rows],
    )


def verdict_tone(verdict: Verdict | None) -> Tone:
    """Good where it fits, bad where it does not."""
    if verdict is None:
        return ""
    return "good" if verdict.fits else "bad"


def bytes_cell(count: int | None, units: str) -> Cell:
    """A memory size; a dash where it is not known."""
    return UNKNOWN if count is None else Cell(text=format_bytes(count, units), value=count)


def headroom_cell(headroom_bytes: int, units: str, *, words: bool) -> Cell:
    """What is left of the budget: in words, or as a signed number for a column of numbers."""
    number = format_bytes(headroom_bytes, units).replace("-", MINUS)
    return Cell(
        text=headroom_words(headroom_bytes, units) if words else number,
        value=headroom_bytes,
        tone="good" if headroom_bytes >= 0 else "bad",
    )


def on_scale(budget_bytes: int, most_bytes: int) -> bool:
    """Whether a budget can share an axis with what is compared with it, without dwarfing it."""
    return budget_bytes <= 8 * most_bytes
