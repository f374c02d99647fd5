"""`tritter-mem plan`: memory by formula, against a card's budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tritter_mem.cli.options import Json, Max, Models, ProfileOptions, Units, with_options
from tritter_mem.cli.outputs import print_records, show_largest, show_results
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK

if TYPE_CHECKING:
    from tritter_mem.results.largest import Unknown


@with_options
def command(
    options: ProfileOptions,
    models: Models = None,
    maximise: Max = None,
    units: Units = "GiB",
    as_json: Json = False,
) -> None:
    """Plan memory by formula: a budget table, a verdict, and what to change so that it fits.

    MODEL is a folder or config.json of Hugging Face, org/name on the Hub, a GGUF file, a bundled
    name, or a YAML profile. Nothing is run and no GPU is needed. Several are compared. The exit
    code is 0 where everything fits and 1 where something does not.

    Example: tritter-mem plan meta-llama/Llama-3.1-8B --context 64k --gpu rtx-4090
    """
    chosen = options.naming(models)
    if maximise is not None:
        _solve(chosen, maximise, units, as_json)
    else:
        _plan(chosen, units, as_json)


def _plan(options: ProfileOptions, units: str, as_json: bool) -> None:
    from tritter_mem.planner.result import planned_result

    results = [planned_result(profile) for profile in options.profiles()]
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
