"""`tritter-mem profile`: planned, simulated and measured side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritter_mem.cli.listing import print_json
from tritter_mem.cli.options import Json, ProfileOptions, with_options
from tritter_mem.errors import EXIT_DOES_NOT_FIT, MeasureError, UsageError

if TYPE_CHECKING:
    from tritter_mem.config.schema import Profile
    from tritter_mem.results import Result

Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to measure: cpu, cuda, cuda:1, none; auto: on CUDA where it can be.",
        autocompletion=lambda: ["auto", "cpu", "cuda", "none"],
    ),
]
TimeLimit = Annotated[
    float, typer.Option("--time-limit", metavar="SECONDS", help="End a measurement after this.")
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Write the results as JSON.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a report as one HTML page.")
]


@with_options
def command(
    options: ProfileOptions,
    device: Device = "auto",
    time_limit: TimeLimit = 300.0,
    as_json: Json = False,
    output: Output = None,
    html: Html = None,
) -> None:
    """Plan, simulate and measure side by side; write JSON and HTML.

    Exit code: 0 fits, 1 does not fit, 2 wrong usage, 3 could not measure on the --device named.

    Example: tritter-mem profile --config tiny --device cpu --html tiny.html
    """
    _check_outputs(output, html)
    answers = [_answer(profile, device, time_limit) for profile in options.profiles()]
    results = [result for result, _ in answers]
    try:
        _write(results, output, html)
    finally:
        _show(results, as_json)
    problems = [problem for _, problem in answers if problem is not None]
    if problems:
        raise MeasureError(*problems)
    if not all(result.verdict and result.verdict.fits for result in results):
        raise typer.Exit(EXIT_DOES_NOT_FIT)


def _check_outputs(output: Path | None, html: Path | None) -> None:
    """Find what cannot be written before the run rather than after it."""
    from tritter_mem.report.files import check_writable

    if output is not None and html is not None and output.resolve() == html.resolve():
        raise UsageError(f"--output and --html: found one file for both, {output}; name two")
    for path in (output, html):
        if path is not None:
            check_writable(path)


def _answer(profile: Profile, device: str, time_limit: float) -> tuple[Result, str | None]:
    """A profile's result, and why the measurement failed if it did: the plan holds all the same."""
    from tritter_mem.measure.profile import profile as answer
    from tritter_mem.report.terminal import make_console

    with make_console(sys.stderr).status(f"{profile.name}: planning and measuring"):
        try:
            return answer(profile, device=device, time_limit_seconds=time_limit), None
        except MeasureError as error:
            planned = answer(profile, device="none")
            return replace(planned, measured_reason=str(error)), f"{profile.name}: {error}"


def _write(results: Sequence[Result], output: Path | None, html: Path | None) -> None:
    import json

    from tritter_mem.report.files import write_text_atomically

    if output is not None:
        write_text_atomically(output, json.dumps(_document(results), ensure_ascii=False) + "\n")
    if html is not None:
        from tritter_mem.report.html import render_html

        write_text_atomically(html, render_html(results))


def _show(results: Sequence[Result], as_json: bool) -> None:
    from tritter_mem.report.terminal import make_console, render_results

    if as_json:
        print_json(_document(results))
    else:
        render_results(results, make_console())


def _document(results: Sequence[Result]) -> object:
    """One record, or a list of them where several profiles were asked for."""
    records = [result.to_dict() for result in results]
    return records[0] if len(records) == 1 else records
