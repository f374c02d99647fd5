"""`tritter-mem plan`: memory by formula, against a card's budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritter_mem.cli.options import Json, Models, ProfileOptions, Units, with_options
from tritter_mem.cli.outputs import print_records, show_results
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK

if TYPE_CHECKING:
    from tritter_mem.planner.solve import Largest

Unknown = Literal["context", "batch"]
Max = Annotated[
    Unknown | None,
    typer.Option("--max", help="Solve for the largest context or batch that fits."),
]


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
    if as_json:
        print_records(found)
    else:
        for largest in found:
            typer.echo(_sentence(largest, units))
    fits = all(largest.value is not None for largest in found)
    raise typer.Exit(EXIT_OK if fits else EXIT_DOES_NOT_FIT)


def _sentence(largest: Largest, units: str) -> str:
    from tritter_mem.units import format_bytes

    budget = format_bytes(largest.budget_bytes, units)
    where = f"{largest.name} on {largest.gpu}, budget {budget}"
    if largest.value is None:
        need = format_bytes(largest.footprint_bytes, units)
        return f"{where}: no {largest.unknown} fits; the smallest needs {need}"
    used = format_bytes(largest.footprint_bytes, units)
    if largest.next_footprint_bytes is None:
        return f"{where}: largest {largest.unknown} {largest.value:,}, all that a profile may hold"
    return (
        f"{where}: largest {largest.unknown} {largest.value:,}, needs {used}; one more does not fit"
    )
