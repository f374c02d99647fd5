"""`tritter-mem report`: results as tables, or as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritter_mem.cli.listing import print_json
from tritter_mem.cli.options import Json
from tritter_mem.errors import InputError, UsageError

if TYPE_CHECKING:
    from tritter_mem.results import Result

Results = Annotated[
    list[Path], typer.Argument(metavar="RESULT...", help="Files that --json or --output wrote.")
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write one HTML page instead of printing tables."),
]
PlotlyJs = Annotated[
    Literal["inline", "cdn", "directory"],
    typer.Option(
        "--plotlyjs",
        help="The chart library: inline, in the page (4.8 MB); cdn, from the network; directory, "
        "in plotly.min.js beside the page.",
    ),
]
Units = Annotated[
    Literal["GiB", "GB"], typer.Option("--units", help="Binary (1024) or decimal (1000) units.")
]


def command(
    files: Results,
    html: Html = None,
    plotlyjs: PlotlyJs = "inline",
    units: Units = "GiB",
    as_json: Json = False,
) -> None:
    """Show results: one whole, several compared; as tables, or as one HTML page.

    Example: tritter-mem report tiny.json 7b.json --html report.html
    """
    if html is not None and as_json:
        raise UsageError("--html and --json: found both; give one")
    if html is not None:
        _check_page(html, files)
    results = _read(files)
    if as_json:
        print_json([result.to_dict() for result in results])
    elif html is None:
        _print_tables(results, units)
    else:
        from tritter_mem.report.html import render_html
        from tritter_mem.report.page import write_page

        write_page(html, render_html(results, plotlyjs=plotlyjs, units=units), plotlyjs)


def _check_page(html: Path, files: Sequence[Path]) -> None:
    from tritter_mem.report.files import check_writable

    if html.resolve() in {file.resolve() for file in files}:
        raise UsageError(f"--html: found {html}, which is also a result to read; name another file")
    check_writable(html)


def _read(files: Sequence[Path]) -> list[Result]:
    """The results of all files, or the problems of all files."""
    from tritter_mem.report.files import read_results

    results: list[Result] = []
    problems: list[str] = []
    for file in files:
        try:
            results += read_results(file)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return results


def _print_tables(results: Sequence[Result], units: str) -> None:
    from tritter_mem.report.terminal import make_console, render_results

    render_results(results, make_console(), units)
