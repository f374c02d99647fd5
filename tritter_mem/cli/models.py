"""`tritter-mem models`: the bundled models and profiles, one of them, and the profiles' schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritter_mem.cli.options import Json
from tritter_mem.cli.outputs import print_json, print_table

if TYPE_CHECKING:
    from tritter_mem.config.profile import Profile
    from tritter_mem.models.released import ReleasedModel


def complete_names(incomplete: str) -> list[str]:
    """Names of bundled models and profiles that begin so."""
    from tritter_mem.config.bundled_files import bundled_profiles, released_names

    names = (*bundled_profiles(), *released_names())
    return [name for name in names if name.startswith(incomplete.lower())]


Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="The same as --show NAME.",
        autocompletion=complete_names,
        show_default=False,
    ),
]
Show = Annotated[
    str | None,
    typer.Option(
        "--show",
        metavar="NAME|FILE",
        help="Print one model, or one profile with all defaults, as YAML.",
        autocompletion=complete_names,
    ),
]
Schema = Annotated[
    bool, typer.Option("--schema", help="Print the JSON Schema of profiles, for editors.")
]


def command(
    name: Name = None, show: Show = None, schema: Schema = False, as_json: Json = False
) -> None:
    """List the bundled models and profiles, show one, or print the JSON Schema of profiles.

    The listed models are released ones, and `tritter-mem plan NAME` plans them without a network.
    Weights have the size of the checkpoint; the KV cache is for 32K tokens in bfloat16. NAME shows
    the configuration of one and the source of each figure.

    Example: tritter-mem models qwen3-32b
    """
    show = show or name
    if schema:
        from tritter_mem.config.json_schema import profile_json_schema

        print_json(profile_json_schema())
    elif show is not None:
        _show(show, as_json)
    else:
        _list(as_json)


def _show(name: str, as_json: bool) -> None:
    from tritter_mem.config.bundled_files import find_released
    from tritter_mem.config.loading import load_profile, profile_yaml
    from tritter_mem.models.released import read_released

    path, released = find_released(name), read_released(name)
    if path is not None and released is not None:
        if as_json:
            print_json(_released_summary(released))
        else:
            typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    profile = load_profile(name)
    if as_json:
        print_json(profile.model_dump())
    else:
        typer.echo(profile_yaml(profile), nl=False)


def _list(as_json: bool) -> None:
    from tritter_mem.config.bundled_files import bundled_profiles, released_names
    from tritter_mem.config.loading import load_profile
    from tritter_mem.models.released import read_released

    profiles = {name: load_profile(name) for name in bundled_profiles()}
    released = [model for name in released_names() if (model := read_released(name)) is not None]
    if as_json:
        found = [_summary(name, profile) for name, profile in profiles.items()]
        print_json([*found, *map(_released_summary, released)])
    else:
        rows = (_row(name, profile) for name, profile in profiles.items())
        print_table(("profile", "workload", "description"), rows)
        typer.echo()
        print_table(("model", "weights", "KV 32K", "description"), map(_released_row, released), 2)


def _summary(name: str, profile: Profile) -> dict[str, Any]:
    from tritter_mem.config.loading import profile_hash

    return {
        "name": name,
        "description": profile.description,
        "profile_hash": profile_hash(profile),
        "profile": profile.model_dump(),
    }


def _released_summary(released: ReleasedModel) -> dict[str, Any]:
    model = released.model
    return {
        "name": released.name,
        "description": released.description,
        "hub": released.hub,
        "source": dict(released.source),
        "stated_parameters": dict(released.parameters),
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "bfloat16_weight_bytes": released.bfloat16_bytes,
        "kv_bytes_per_token": released.kv_bytes_per_token,
        "model": dict(released.config),
    }


def _row(name: str, profile: Profile) -> tuple[str, ...]:
    from tritter_mem.units import format_count

    work = profile.workload
    return name, f"{work.mode} {format_count(work.context)} x {work.batch}", profile.description


def _released_row(released: ReleasedModel) -> tuple[str, ...]:
    from tritter_mem.models.released import BFLOAT16
    from tritter_mem.units import format_bytes, parse_count

    model = released.model
    cache = model.cache_bytes(parse_count("32k"), 1, BFLOAT16)
    weights = format_bytes(model.weight_bytes)
    return released.name, weights, format_bytes(cache), released.description
