"""`tritter-mem profiles`: the bundled profiles, one of them resolved, and their schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritter_mem.cli.options import Json, complete_profiles
from tritter_mem.cli.outputs import print_json, print_table

if TYPE_CHECKING:
    from tritter_mem.config.profile import Profile

Show = Annotated[
    str | None,
    typer.Option(
        "--show",
        metavar="NAME|FILE",
        help="Print one profile with every default filled in, as YAML.",
        autocompletion=complete_profiles,
    ),
]
Schema = Annotated[
    bool, typer.Option("--schema", help="Print the JSON Schema of profiles, for editors.")
]


def command(show: Show = None, schema: Schema = False, as_json: Json = False) -> None:
    """List the bundled profiles, print one of them, or print their JSON Schema.

    Example: tritter-mem profiles --show 7b-128k-gqa
    """
    if schema:
        from tritter_mem.config.json_schema import profile_json_schema

        print_json(profile_json_schema())
    elif show is not None:
        _show(show, as_json)
    else:
        _list(as_json)


def _show(name: str, as_json: bool) -> None:
    from tritter_mem.config.loading import load_profile, profile_yaml

    profile = load_profile(name)
    if as_json:
        print_json(profile.model_dump())
    else:
        typer.echo(profile_yaml(profile), nl=False)


def _list(as_json: bool) -> None:
    from tritter_mem.config.bundled_files import bundled_profiles
    from tritter_mem.config.loading import load_profile

    profiles = {name: load_profile(name) for name in bundled_profiles()}
    if as_json:
        print_json([_summary(name, profile) for name, profile in profiles.items()])
    else:
        rows = (_row(name, profile) for name, profile in profiles.items())
        print_table(("profile", "workload", "description"), rows)


def _summary(name: str, profile: Profile) -> dict[str, Any]:
    from tritter_mem.config.loading import profile_hash

    return {
        "name": name,
        "description": profile.description,
        "profile_hash": profile_hash(profile),
        "profile": profile.model_dump(),
    }


def _row(name: str, profile: Profile) -> tuple[str, ...]:
    from tritter_mem.units import format_count

    work = profile.workload
    return name, f"{work.mode} {format_count(work.context)} x {work.batch}", profile.description
