"""`tritter-mem plan`: memory by formula, against a card's budget."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from tritter_mem.cli.options import (
    Html,
    Json,
    Max,
    Models,
    PlotlyJs,
    ProfileOptions,
    Units,
    with_options,
)
from tritter_mem.cli.outputs import (
    print_records,
    show_largest,
    show_results,
    write_result_page,
)
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, UsageError

if TYPE_CHECKING:
    from tritter_mem.results.largest import Unknown


DEFAULT = "7b"
"""What is planned where no model is named."""


@partial(with_options, config=())
def command(  # noqa: PLR0913, PLR0917  (one parameter an option)
    options: ProfileOptions,
    models: Models = None,
    maximise: Max = None,
    html: Html = None,
    plotlyjs: PlotlyJs = "inline",
    units: Units = "GiB",
    as_json: Json = False,
) -> None:
    """Say whether a model fits a GPU, where the memory goes, and what to change if it does not.

    The plan is computed by formula in a fraction of a second. It runs no model and needs no GPU.

    Exit code: 0 everything fits, 1 something does not fit, 2 wrong usage.

    Example: tritter-mem plan qwen3-8b --context 32k --gpu rtx-4090
    """
    from tritter_mem.planner.result import planned_result

    chosen = options.naming(models)
    if not chosen.config:
        words = f"no MODEL: planning the bundled {DEFAULT}; name one, such as qwen3-8b"
        typer.echo(words, err=True)
        chosen = replace(chosen, config=[DEFAULT])
    if maximise is not None:
        if html is not None:
            raise UsageError("--max prints one number for each model; --html needs a plan")
        _solve(chosen, maximise, units, as_json)
        return
    profiles = chosen.profiles()
    if html is not None:
        from tritter_mem.results.writing import check_writable

        check_writable(html)
    results = [planned_result(profile) for profile in profiles]
    if html is not None:
        write_result_page(html, results, plotlyjs, units)
    if as_json:
        print_records(results)
    else:
        show_results(results, units)
    fits = all(result.verdict is None or result.verdict.fits for result in results)
    raise typer.Exit(EXIT_OK if fits else EXIT_DOES_NOT_FIT)


def _solve(options: ProfileOptions, unknown: Unknown, units: str, as_json: bool) -> None:
    from tritter_mem.planner.solve import find_largest

    found = [find_largest(profile, unknown) for profile in options.profiles()]
    show_largest(found, units, as_json=as_json)
