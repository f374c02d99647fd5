"""Options of `profile --module`, and how they become a third-party profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tritter_mem.cli.options import ProfileOptions
from tritter_mem.errors import UsageError

if TYPE_CHECKING:
    from tritter_mem.measure.module import ModuleProfile

Module = Annotated[
    str | None,
    typer.Option(
        "--module",
        metavar="FILE.py:FUNCTION",
        help="Third-party code: FUNCTION(device, **args) returns a function that runs one step.",
    ),
]
Arguments = Annotated[
    str | None,
    typer.Option("--args", metavar="JSON", help="Arguments of the function, a JSON object."),
]
Warmup = Annotated[
    int | None, typer.Option("--warmup", metavar="N", help="Steps before any counts; default 1.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Steps that count; default 1.")
]
_SHARED = {"gpu", "budget", "alloc_conf"}


def read_module(
    module: str | None,
    arguments: str | None,
    warmup: int | None,
    steps: int | None,
    options: ProfileOptions,
) -> ModuleProfile | None:
    """The third-party profile that was asked for; None where a bundled one was.

    Raises:
        UsageError: with every problem of the options.
    """
    given = {"--args": arguments, "--warmup": warmup, "--steps": steps}
    if module is None:
        _refuse_without_module(given)
        return None
    _refuse_profile_options(options)
    from tritter_mem.measure.module import DEFAULT_GPU, ModuleProfile
    from tritter_mem.trace.user_code import read_case

    case = read_case(
        module,
        "{}" if arguments is None else arguments,
        warmup=1 if warmup is None else warmup,
        steps=1 if steps is None else steps,
    )
    return ModuleProfile(
        case=case,
        gpu=options.gpu or DEFAULT_GPU,
        budget_bytes=_budget(options.budget),
        allocator_conf=options.alloc_conf or "",
    )


def _refuse_without_module(given: Mapping[str, object]) -> None:
    lone = [name for name, value in given.items() if value is not None]
    if lone:
        raise UsageError(f"{', '.join(lone)}: only with --module FILE.py:FUNCTION")


def _refuse_profile_options(options: ProfileOptions) -> None:
    names = [
        "--set" if name == "settings" else f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if value and name not in _SHARED
    ]
    if names:
        raise UsageError(
            f"{', '.join(names)}: not with --module, whose code has its own settings: hand them "
            "over by --args"
        )


def _budget(text: str | None) -> int | None:
    from tritter_mem.units import parse_bytes

    if text is None:
        return None
    try:
        found = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--budget: found {text!r}; {error}") from error
    if found < 1:
        raise UsageError(f"--budget: found {text!r}; allowed: a size above 0")
    return found
