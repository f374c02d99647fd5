"""Where a command's results go: the terminal or JSON on standard output, a file, a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import typer

from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, TritterMemError, UsageError

if TYPE_CHECKING:
    from tritter_mem.report.page import PlotlyJs
    from tritter_mem.results.largest import Largest
    from tritter_mem.results.run import Record, Result


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_records(records: Sequence[Record]) -> None:
    """Print one record, or a list of them where several profiles were asked for."""
    from tritter_mem.results.run import document

    print_json(document(records))


def show_results(results: Sequence[Result], units: str) -> None:
    """Print one result whole, several compared."""
    from tritter_mem.report.terminal import make_console, render_results

    render_results(results, make_console(), units)


def show_largest(found: Sequence[Largest], units: str, *, as_json: bool) -> NoReturn:
    """Print what was solved for, and end: 0 where something fits, else 1."""
    from tritter_mem.report.words import largest_sentence

    if as_json:
        print_records(found)
    else:
        for largest in found:
            typer.echo(largest_sentence(largest, units))
    fits = all(largest.value is not None for largest in found)
    raise typer.Exit(EXIT_OK if fits else EXIT_DOES_NOT_FIT)


def write_result_page(
    path: Path, results: Sequence[Result], plotlyjs: PlotlyJs = "inline", units: str = "GiB"
) -> None:
    """Write results as one HTML page.

    Raises:
        OutputError: it cannot be written.
    """
    from tritter_mem.report.html import render_html
    from tritter_mem.report.page import write_page

    drawn = [_with_context_curves(result) for result in results]
    write_page(path, render_html(drawn, plotlyjs=plotlyjs, units=units), plotlyjs)


def _with_context_curves(result: Result) -> Result:
    """Plan the curves of a record that `plan`, or an earlier version, made without them."""
    from tritter_mem.config.named_profile import NamedProfile, is_named
    from tritter_mem.config.profile import Profile
    from tritter_mem.planner.solve import context_curves

    if result.context_curves:
        return result
    try:
        kind = NamedProfile if is_named(result.profile.get("model")) else Profile
        curves = context_curves(kind.model_validate(result.profile))
    except TritterMemError:  # the record holds no whole profile, or its card is unknown here
        return result
    return replace(result, context_curves=curves)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: int = 0) -> None:
    """Print a table.

    Args:
        headings: one for each column; the last column wraps.
        rows: cells in the order of the headings.
        numeric: how many columns after the first hold numbers, which are aligned to the right.
    """
    from rich import box
    from rich.table import Table

    from tritter_mem.report.terminal import make_console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        right, last = 1 <= index <= numeric, index == len(headings) - 1
        table.add_column(heading, justify="right" if right else "left", no_wrap=not last)
    for row in rows:
        table.add_row(*row)
    make_console().print(table)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What was asked for, as the options of the same names say."""

    as_json: bool
    output: Path | None
    html: Path | None
    plotlyjs: Literal["inline", "cdn", "directory"]
    units: str

    def check(self, *others: Path | None) -> None:
        """Find what cannot be written before the run rather than after it.

        Raises:
            UsageError: two outputs, `others` among them, are one file.
            OutputError: one cannot be written.
        """
        from tritter_mem.results.writing import check_writable

        paths = [path for path in (self.output, self.html, *others) if path is not None]
        for path in paths:
            check_writable(path)
        for path in paths:
            if [other.resolve() for other in paths].count(path.resolve()) > 1:
                raise UsageError(f"two outputs would write {path}; name two files")

    def finish(self, results: Sequence[Result]) -> None:
        """Remember, write and show what there is."""
        if not results:
            return
        from tritter_mem.results.history import remember

        remember(results)
        try:
            self._write(results)
        finally:
            self._show(results)

    def _write(self, results: Sequence[Result]) -> None:
        from tritter_mem.results.run import document
        from tritter_mem.results.writing import write_text_atomically

        if self.output is not None:
            text = json.dumps(document(results), ensure_ascii=False)
            write_text_atomically(self.output, f"{text}\n")
        if self.html is not None:
            write_result_page(self.html, results, self.plotlyjs, self.units)

    def _show(self, results: Sequence[Result]) -> None:
        if self.as_json:
            print_records(results)
        else:
            show_results(results, self.units)
