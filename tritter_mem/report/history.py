"""Peaks over time: a table for each profile, kind of number and card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tritter_mem.history import Remembered
from tritter_mem.report.table import BLANK, Bars, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.terminal import render_table
from tritter_mem.report.words import MISSING, NAME_LIMIT, printable, signed_bytes

if TYPE_CHECKING:
    from rich.console import Console

Series = tuple[str, str, str, str]
"""Profile, hash of its content, kind of number, card."""
COLUMNS = (
    Column(label="when", numeric=False),
    Column(label="commit", numeric=False),
    Column(label="torch", numeric=False, wide=True),
    Column(label="allocated"),
    Column(label="change"),
    Column(label="reserved", wide=True),
)


def series_of(history: Iterable[Remembered]) -> dict[Series, list[Remembered]]:
    """What can be held against each other, oldest first; a run that changed nothing is left out.

    A profile whose content changed is another series.
    """
    found: defaultdict[Series, list[Remembered]] = defaultdict(list)
    for one in history:
        runs = found[one.profile, one.profile_hash, one.kind, one.gpu]
        if not runs or _shown(runs[-1]) != _shown(one):
            runs.append(one)
    return dict(sorted(found.items()))


def _shown(one: Remembered) -> tuple[object, ...]:
    return one.commit, one.torch, one.allocated_peak_bytes, one.reserved_peak_bytes


def history_tables(history: Iterable[Remembered], units: str) -> list[Table]:
    """A table for each series, one row a run that changed something."""
    found = series_of(history)
    names = [(profile, kind, gpu) for profile, _, kind, gpu in found]
    return [
        _table(key, runs, names.count((key[0], *key[2:])) > 1, units) for key, runs in found.items()
    ]


def _table(key: Series, runs: Sequence[Remembered], ambiguous: bool, units: str) -> Table:
    profile, content, kind, gpu = (printable(part, NAME_LIMIT) for part in key)
    told = f", content {content[:8]}" if ambiguous else ""
    most = max(run.allocated_peak_bytes for run in runs)
    befores = [None, *runs][: len(runs)]
    return Table(
        caption=f"{profile} ({kind}, {gpu}{told})",
        columns=COLUMNS,
        rows=[_row(run, before, units) for run, before in zip(runs, befores, strict=True)],
        bars=Bars(label="allocated peak", full_bytes=max(most, 1)),
    )


def _row(run: Remembered, before: Remembered | None, units: str) -> Row:
    grown = run.allocated_peak_bytes - before.allocated_peak_bytes if before else None
    change = BLANK if grown is None else Cell(text=signed_bytes(grown, units), value=grown)
    return Row(
        cells=(
            Cell(text=printable(run.created[:16].replace("T", " "))),
            Cell(text=_commit(run.commit)),
            Cell(text=printable(run.torch or MISSING, NAME_LIMIT)),
            bytes_cell(run.allocated_peak_bytes, units),
            change if grown else BLANK,
            bytes_cell(run.reserved_peak_bytes, units),
        ),
        bar_bytes=run.allocated_peak_bytes,
    )


def _commit(commit: str | None) -> str:
    """Ten digits, and `+` where files differed from it."""
    if commit is None:
        return MISSING
    shown, dirty, _ = commit.partition("-dirty")
    return printable(shown[:10] + ("+" if dirty else ""))


def render_history(history: Iterable[Remembered], console: Console, units: str = "GiB") -> None:
    """Draw every series."""
    for table in history_tables(history, units):
        render_table(table, console)
