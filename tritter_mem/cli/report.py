"""`tritter-mem report`: results as tables, or as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritter_mem.cli.options import Html, Json, PlotlyJs, Units
from tritter_mem.cli.outputs import print_json, show_results, write_result_page
from tritter_mem.errors import InputError, UsageError
from tritter_mem.input_files import note_input

if TYPE_CHECKING:
    from tritter_mem.results.run import Result

Results = Annotated[
    list[Path], typer.Argument(metavar="RESULT...", help="Files that `--json` or `--output` wrote.")
]
Export = Annotated[
    Path | None,
    typer.Option("--export", metavar="FILE", help="Write the numbers to a .csv or .parquet file."),
]
History = Annotated[
    bool, typer.Option("--history", help="Show the peaks of earlier runs in this folder.")
]


def command(  # noqa: PLR0913, PLR0917  (one parameter an option)
    files: Results = [],  # noqa: B006  (typer copies it)
    html: Html = None,
    plotlyjs: PlotlyJs = "inline",
    units: Units = "GiB",
    export: Export = None,
    history: History = False,
    as_json: Json = False,
) -> None:
    """Show saved results as tables or as one HTML page. Several results are compared.

    --history shows the peaks of earlier `profile` and `check` runs in this folder, by commit.

    Example: tritter-mem report tiny.json 7b.json --html report.html
    """
    wanted = Wanted(html=html, plotlyjs=plotlyjs, units=units, export=export, as_json=as_json)
    _refuse_what_does_not_go_together(files, wanted, history)
    for file in files:
        note_input(file)
    for option, path in wanted.outputs():
        _check_output(option, path)
    if len({path.resolve() for _, path in wanted.outputs()}) < len(wanted.outputs()):
        raise UsageError(f"--html and --export both write {wanted.html}; name two files")
    if history:
        _show_history(wanted)
    else:
        _show_results(_read(files), wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be shown, and where it goes."""

    html: Path | None
    plotlyjs: Literal["inline", "cdn", "directory"]
    units: str
    export: Path | None
    as_json: bool

    def outputs(self) -> list[tuple[str, Path]]:
        """Options that name a file, with the file."""
        found = {"--html": self.html, "--export": self.export}
        return [(option, path) for option, path in found.items() if path is not None]


def _refuse_what_does_not_go_together(files: Sequence[Path], wanted: Wanted, history: bool) -> None:
    if wanted.html is not None and wanted.as_json:
        raise UsageError("--html and --json cannot be combined; choose one")
    if history and (files or wanted.export is not None):
        raise UsageError("--history cannot be combined with results or --export")
    if not history and not files:
        raise UsageError("missing RESULT: name files that --json or --output wrote, or --history")


def _check_output(option: str, path: Path) -> None:
    from tritter_mem.results.writing import check_writable

    if option == "--export":
        from tritter_mem.report.export import check_export

        check_export(path)
    check_writable(path)


def _show_history(wanted: Wanted) -> None:
    from tritter_mem.results.history import FILE, read_history

    try:
        found = read_history()
    except OSError as error:
        raise InputError(
            f"{FILE}: cannot be read: {error.strerror}; `tritter-mem profile` and `check` write it"
        ) from error
    if not found:
        raise InputError(f"{FILE}: holds no record of a run")
    if wanted.as_json:
        print_json([asdict(one) for one in found])
    elif wanted.html is not None:
        from tritter_mem.report.history_report import render_history_html
        from tritter_mem.report.page import write_page

        page = render_history_html(found, plotlyjs=wanted.plotlyjs, units=wanted.units)
        write_page(wanted.html, page, wanted.plotlyjs)
    else:
        from tritter_mem.report.history_report import render_history
        from tritter_mem.report.terminal import make_console

        render_history(found, make_console(), wanted.units)


def _show_results(results: Sequence[Result], wanted: Wanted) -> None:
    if wanted.export is not None:
        from tritter_mem.report.export import export

        export(wanted.export, results)
    if wanted.html is not None:
        write_result_page(wanted.html, results, wanted.plotlyjs, wanted.units)
    if wanted.as_json:
        print_json([result.to_dict() for result in results])
    elif not wanted.outputs():
        show_results(results, wanted.units)


def _read(files: Sequence[Path]) -> list[Result]:
    """The results of all files, or the problems of all files."""
    from tritter_mem.results.record_file import read_results

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
