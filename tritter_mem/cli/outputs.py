"""Where a command's results go: the terminal or JSON on standard output, a file, a page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from tritter_mem.errors import OutputError, UsageError

if TYPE_CHECKING:
    from tritter_mem.results.check import CheckReport
    from tritter_mem.results.run import Result


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


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
            if [other.resolve() for other in paths].count(path.resolve()) > 1:
                raise UsageError(f"found one file for both of two outputs, {path}; name two")
            check_writable(path)

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
        import json

        from tritter_mem.results.writing import write_text_atomically

        if self.output is not None:
            text = json.dumps(_document(results), ensure_ascii=False)
            write_text_atomically(self.output, f"{text}\n")
        if self.html is not None:
            from tritter_mem.report.html import render_html
            from tritter_mem.report.page import write_page

            page = render_html(results, plotlyjs=self.plotlyjs, units=self.units)
            write_page(self.html, page, self.plotlyjs)

    def _show(self, results: Sequence[Result]) -> None:
        from tritter_mem.report.terminal import make_console, render_results

        if self.as_json:
            print_json(_document(results))
        else:
            render_results(results, make_console(), self.units)


def _document(results: Sequence[Result]) -> object:
    """One record, or a list of them where several profiles were asked for."""
    records = [result.to_dict() for result in results]
    return records[0] if len(records) == 1 else records


Format = Literal["text", "json", "markdown", "junit", "github"]


def show_check(report: CheckReport, form: Format) -> None:
    """Print a check as one of the formats; for GitHub its step summary is added to as well."""
    if form == "json":
        print_json(report.to_dict())
    elif form == "text":
        from tritter_mem.report.check_report import render_check
        from tritter_mem.report.terminal import make_console

        render_check(report, make_console())
    elif form == "junit":
        from tritter_mem.report.check_report import render_junit

        typer.echo(render_junit(report), nl=False)
    else:
        _show_markdown(report, annotations=form == "github")


def _show_markdown(report: CheckReport, annotations: bool) -> None:
    from tritter_mem.report.check_report import counts, render_annotations, render_markdown

    text = render_markdown(report)
    if not annotations:
        typer.echo(text, nl=False)
        return
    typer.echo(render_annotations(report), nl=False)
    typer.echo(f"memory: {counts(report)}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _add_to_summary(Path(summary), text)


def _add_to_summary(path: Path, text: str) -> None:
    from tritter_mem.report.check_report import fitting_summary

    try:
        written = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(fitting_summary(text, written))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
