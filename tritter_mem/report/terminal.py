"""Results as tables in a terminal: 80 columns suffice, wider ones are used, plain when piped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, TextIO

from tritter_mem.report.differences import notable_differences
from tritter_mem.report.table import Bars, Column, Table, Tone, verdict_tone
from tritter_mem.report.tables import (
    budget_table,
    comparison_table,
    environment_facts,
    holdings_table,
    measured_table,
    phase_table,
)
from tritter_mem.report.trade_offs import checkpointing_table, ladder_tables, ladders_compared
from tritter_mem.report.words import (
    MINUS,
    MISSING,
    cards_sentence,
    fragmentation_sentence,
    missing_kinds,
    name_of,
    notes,
    setup_facts,
    suggestion_options,
    suggestion_sentence,
    verdict_of,
)
from tritter_mem.results.run import Result
from tritter_mem.results.verdict import basis_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

WIDE = 100
GAP = 2
MIN_NAME = 12
MIN_BAR, MAX_BAR = 18, 40
STYLES: dict[Tone, str] = {
    "": "",
    "good": "green",
    "warn": "yellow",
    "bad": "red",
    "muted": "dim",
}
BULLET = "•"
EIGHTHS = " ▏▎▍▌▋▊▉"
# For an output that cannot show more than ASCII; what has no likeness becomes `?`.
ASCII = str.maketrans(f"{MISSING}{MINUS}·…→•│█{EIGHTHS}", "--*.>*|#        ") | {ord("─"): "-"}
# Rules under the heading and between sections, and no other line.
RULES = "    \n    \n ── \n    \n ── \n ── \n    \n    \n"


def make_console(file: TextIO | None = None) -> Console:
    """A console that shows text as it is: no markup, no emoji, no highlighting.

    An output that cannot encode a character shows `?` in its place.
    """
    from rich.console import Console

    output = file or sys.stdout
    if hasattr(output, "reconfigure"):
        output.reconfigure(errors="replace")

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """Let the error through: rich would end the process with the code 1 of a verdict."""
            raise  # noqa: PLE0704

    console = PlainConsole(file=output, markup=False, emoji=False, highlight=False)
    console.size = console.size  # once: else every piece of a line asks the terminal again
    return console


def render_results(results: Sequence[Result], console: Console, units: str = "GiB") -> None:
    """Draw one result whole, several as one comparison.

    Args:
        results: finished results, in the order to show.
        console: where to draw; its width decides which columns there are.
        units: `GiB` for binary, `GB` for decimal units.
    """
    if len(results) == 1:
        _render_one(results[0], console, units)
    else:
        _render_compared(results, console, units)


def _render_compared(results: Sequence[Result], console: Console, units: str) -> None:
    render_table(comparison_table(results, units), console)
    for line in missing_kinds(results[0]) if results else []:
        if all(line in missing_kinds(result) for result in results):
            render_line(console, line, "dim")
    if (ends := ladders_compared(results)) is not None:
        render_table(ends, console)
    for result in results:
        if tables := _trade_offs(result, units):
            render_line(console, "")
            render_line(console, name_of(result), "bold")
            for table in tables:
                render_table(table, console)


def _render_one(result: Result, console: Console, units: str) -> None:
    render_line(console, " · ".join([name_of(result), *setup_facts(result)]), "bold")
    style = STYLES[verdict_tone(result.verdict)]
    render_line(console, verdict_of(result, units), style)
    if basis_of(result) is not None:
        render_table(budget_table(result, units), console)
    for line in notes(result):
        render_line(console, line, "dim")
    render_list(console, "What to change", _suggestions(result, units))
    render_list(console, "Differences over 2%", notable_differences(result, units))
    tables = (phase_table(result, units), measured_table(result, units))
    for table in (*tables, holdings_table(result, units)):
        if table is not None:
            render_table(table, console)
    fragmentation = fragmentation_sentence(result, units)
    render_list(console, "Fragmentation", [fragmentation] if fragmentation else [])
    for table in _trade_offs(result, units):
        render_table(table, console)
    facts = environment_facts(result.environment, units)
    render_line(console, "")
    render_line(console, ", ".join(f"{name} {text}" for name, text in facts), "dim")


def _trade_offs(result: Result, units: str) -> list[Table]:
    policies = checkpointing_table(result, units)
    return [*([policies] if policies else []), *ladder_tables(result, units)]


def _suggestions(result: Result, units: str) -> list[str]:
    suggestions = result.verdict.suggestions if result.verdict else ()
    changes = [f"{suggestion_sentence(s, units)}\n{suggestion_options(s)}" for s in suggestions]
    larger = cards_sentence(result.verdict)
    return [*changes, larger] if larger else changes


def render_list(console: Console, heading: str, lines: Sequence[str]) -> None:
    """Draw a heading and a point for each line; nothing where there are none."""
    from rich.table import Table as RichTable

    if not lines:
        return
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    for line in lines:
        grid.add_row(_text(console, BULLET), _text(console, line))
    _heading(console, heading)
    console.print(grid)


def _heading(console: Console, text: str) -> None:
    render_line(console, "")
    render_line(console, text, "bold")


def render_line(console: Console, text: str, style: str = "") -> None:
    """Draw one line of text as it is."""
    console.print(_text(console, text, style))


def _text(console: Console, text: str, style: str = "") -> Text:
    from rich.text import Text

    plain = text.translate(ASCII) if console.options.ascii_only else text
    return Text(plain, style=style, overflow="fold")


def render_table(table: Table, console: Console) -> None:
    """Draw a caption and a table; wide columns are left out where the console is narrow."""
    wide = console.width >= WIDE
    shown = [i for i, column in enumerate(table.columns) if wide or not column.wide]
    widths = _widths(table, shown, console.width)
    bar_width = min(console.width - sum(widths) - GAP * len(widths), MAX_BAR)
    drawn = _grid(console, [table.columns[i] for i in shown], widths)
    bars = table.bars if bar_width >= MIN_BAR else None
    if bars is not None:
        drawn.add_column(bars.label, width=bar_width)
    for row, after in zip_longest(table.rows, table.rows[1:]):
        cells = [_text(console, row.cells[i].text, STYLES[row.cells[i].tone]) for i in shown]
        bar = [] if bars is None else [_bar(console, row.bar_bytes or 0, bars, bar_width)]
        drawn.add_row(*cells, *bar, end_section=after is not None and after.total != row.total)
    _heading(console, table.caption)
    console.print(drawn)


def _widths(table: Table, shown: Sequence[int], available: int) -> list[int]:
    """What each column needs; where that is too much, names take less, and numbers never do."""
    from rich.cells import cell_len

    widths = [
        max(
            cell_len(text)
            for text in (table.columns[i].label, *(r.cells[i].text for r in table.rows))
        )
        for i in shown
    ]
    widths[0] = max(widths[0], MIN_NAME)
    excess = sum(widths) + GAP * (len(widths) - 1) - available
    for at, i in enumerate(shown):
        if not table.columns[i].numeric and excess > 0:
            taken = min(excess, max(widths[at] - MIN_NAME, 0))
            widths[at] -= taken
            excess -= taken
    return widths


def _grid(console: Console, columns: Sequence[Column], widths: Sequence[int]) -> RichTable:
    from rich.box import Box
    from rich.table import Table as RichTable

    grid = RichTable(
        box=Box(RULES.translate(ASCII), ascii=True) if console.options.ascii_only else Box(RULES),
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
        header_style="dim",
    )
    for column, width in zip(columns, widths, strict=True):
        grid.add_column(column.label, justify="right" if column.numeric else "left", width=width)
    return grid


def _bar(console: Console, count: int, bars: Bars, width: int) -> Text:
    over = bars.limit_bytes is not None and count > bars.limit_bytes
    return _text(console, bar_text(count, bars, width), STYLES["bad" if over else ""])


def bar_text(count: int, bars: Bars, width: int) -> str:
    """A bar of `width` columns in eighths of a column, with a stroke where the limit stands."""
    eighths = min(round(8 * width * count / bars.full_bytes), 8 * width)
    drawn = ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).strip().ljust(width)
    if bars.limit_bytes is None:
        return drawn
    at = max(min(round(width * bars.limit_bytes / bars.full_bytes), width) - 1, 0)
    return f"{drawn[:at]}│{drawn[at + 1 :]}"
