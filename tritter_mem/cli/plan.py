"""`tritter-mem plan`: memory by formula, against a card's budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritter_mem.cli.options import Json, ProfileOptions, Units, with_options
from tritter_mem.cli.outputs import print_records, show_results
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, UsageError

if TYPE_CHECKING:
    from tritter_mem.models.named_model import NamedModel
    from tritter_mem.planner.solve import Largest

Unknown = Literal["context", "batch"]
Max = Annotated[
    Unknown | None,
    typer.Option("--max", help="Solve for the largest context or batch that fits."),
]


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder or config.json of Hugging Face, org/name on the Hub, a GGUF file; or what "
        "--config takes.",
        show_default=False,
    ),
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

    Nothing is run and no GPU is needed. Several --config are compared. The exit code is 0 where
    everything fits and 1 where something does not.

    Of a model of Hugging Face or GGUF, weights and KV cache are known, which is the least that it
    takes: the exit code is 1 where that is over the budget, and 0 says no more than that it is not.

    Example: tritter-mem plan --config 7b --context 64k --gpu rtx-4090
    """
    options, named = _find(options, models or [])
    if maximise is not None and named:
        raise UsageError(f"--max: not for {named[0].name}, whose activations are not planned")
    if named:
        _least(named, options, units, as_json)
    elif maximise is not None:
        _solve(options, maximise, units, as_json)
    else:
        _plan(options, units, as_json)


def _find(options: ProfileOptions, names: list[str]) -> tuple[ProfileOptions, list[NamedModel]]:
    """Models of Hugging Face and GGUF by name; other names are profiles, as `--config` takes them.

    Raises:
        UsageError: there are models and `--config`, or models of both sorts.
    """
    if not names:
        return options, []
    from tritter_mem.models.named_model import find_model

    if list(options.config) != list(ProfileOptions().config):
        raise UsageError("found MODEL and --config; give one")
    found = {name: find_model(name) for name in names if not _is_profile(name)}
    named = [model for model in found.values() if model is not None]
    profiles = [name for name in names if found.get(name) is None]
    if named and profiles:
        raise UsageError(f"{profiles[0]} is a profile, and {named[0].name} is not: plan them apart")
    return replace(options, config=profiles), named


def _is_profile(name: str) -> bool:
    from tritter_mem.config.bundled_files import bundled_profiles

    return name in bundled_profiles() or name.endswith((".yaml", ".yml"))


def _least(named: list[NamedModel], options: ProfileOptions, units: str, as_json: bool) -> None:
    from tritter_mem.planner.least import least_memory
    from tritter_mem.report.model_report import render_least
    from tritter_mem.report.terminal import make_console

    found = [least_memory(model, options.overrides(), options.labels()) for model in named]
    if as_json:
        print_records(found)
    else:
        console = make_console()
        for least in found:
            render_least(least, console, units)
    fits = not any(least.exceeds_budget for least in found)
    raise typer.Exit(EXIT_OK if fits else EXIT_DOES_NOT_FIT)


def _plan(options: ProfileOptions, units: str, as_json: bool) -> None:
    from tritter_mem.planner.result import planned_result

    results = [planned_result(profile) for profile in options.profiles()]
    if as_json:
        print_records(results)
    else:
        show_results(results, units)
    fits = all(result.verdict and result.verdict.fits for result in results)
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
