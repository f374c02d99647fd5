"""`tritter-mem profile`: planned, simulated and measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tritter_mem.cli.options import (
    Html,
    Json,
    Max,
    Models,
    PlotlyJs,
    ProfileOptions,
    Units,
    size_of,
    with_options,
)
from tritter_mem.cli.outputs import Outputs, show_largest
from tritter_mem.errors import EXIT_DOES_NOT_FIT, MeasureError, UsageError

if TYPE_CHECKING:
    from tritter_mem.config.named_profile import AnyProfile
    from tritter_mem.profiling.profiler import ModuleProfile
    from tritter_mem.results.largest import Unknown
    from tritter_mem.results.run import Result

    Ask = Callable[..., Result]

Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to measure: cpu, cuda, cuda:1 or none; auto measures on a GPU if there is one.",
        autocompletion=lambda: ["auto", "cpu", "cuda", "none"],
    ),
]
TimeLimit = Annotated[
    float,
    typer.Option("--time-limit", metavar="SECONDS", help="Stop a measured run after this time."),
]
Repeat = Annotated[
    int,
    typer.Option(
        "--repeat", metavar="N", help="Measure N times and show the median and the spread."
    ),
]
Snapshot = Annotated[
    Path | None,
    typer.Option(
        "--snapshot",
        metavar="FILE",
        help="Run once more on CUDA and write PyTorch's memory snapshot.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Also write the results as JSON.")
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", metavar="FILE", help="Write the memory events of the simulated run, gzipped."
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast", help="Skip chunks and tokens that repeat earlier ones in the simulation."
    ),
]
LadderOption = Annotated[
    bool,
    typer.Option(
        "--ladder",
        help="Try one change after the other until the profile fits: checkpoint more often, halve "
        "the batch, truncate the context.",
    ),
]
Module = Annotated[
    str | None,
    typer.Option(
        "--module",
        metavar="FILE.py:FUNCTION",
        help="Your own PyTorch code: FUNCTION(device, **args) returns a function that runs a step.",
    ),
]
Arguments = Annotated[
    str | None,
    typer.Option("--args", metavar="JSON", help="Arguments of FUNCTION, as a JSON object."),
]
Warmup = Annotated[
    int | None,
    typer.Option("--warmup", metavar="N", help="Steps to run before memory is counted; default 1."),
]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Steps to count; default 1.")
]
ALL = "all"
TRAINED = ("7b",)
ROUTES = (*TRAINED, "7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2", "7b-streaming-4k")
"""What is compared where no profile is named: the 7B model, and the routes by which it fits."""
OF_MODULE_TOO = {"gpu", "budget", "alloc_conf"}
"""The options of profiles that third-party code takes too."""


@partial(with_options, config=())
def command(  # noqa: PLR0913, PLR0917  (one parameter an option)
    options: ProfileOptions,
    models: Models = None,
    device: Device = "auto",
    time_limit: TimeLimit = 300.0,
    repeat: Repeat = 1,
    snapshot: Snapshot = None,
    as_json: Json = False,
    output: Output = None,
    html: Html = None,
    plotlyjs: PlotlyJs = "inline",
    units: Units = "GiB",
    trace: Trace = None,
    maximise: Max = None,
    fast: Fast = False,
    ladder: LadderOption = False,
    module: Module = None,
    arguments: Arguments = None,
    warmup: Warmup = None,
    steps: Steps = None,
) -> None:
    """Plan a model, simulate it and, on a GPU, measure it; show the figures side by side.

    The simulation runs the model's own code on PyTorch's meta device and plays its memory events
    through a model of PyTorch's caching allocator. It needs no GPU. Models from Hugging Face are
    simulated as transformers runs them.

    Without MODEL, the bundled 7B model is compared with four ways to fit it into 16 GB.

    --module simulates any PyTorch code. --max finds the largest context or batch that fits.
    --checkpoint all compares the checkpointing policies of the bundled model in training. On a GPU,
    --budget caps the run, so that a large card can stand in for a small one.

    Exit code: 0 fits, 1 does not fit or ran out of memory, 2 wrong usage or the code failed, 3
    could not measure on the named --device, or could not simulate.

    Example: tritter-mem profile --config tiny --device cpu --html tiny.html
    """
    from tritter_mem.cli.progress import showing

    outputs = Outputs(as_json=as_json, output=output, html=html, plotlyjs=plotlyjs, units=units)
    how = {
        "device": device,
        "time_limit_seconds": time_limit,
        "repeat": repeat,
        "snapshot": snapshot,
        "save_trace": trace,
    }
    options = options.naming(models)
    if maximise is not None:
        _solve(options, maximise, how | {"module": module}, outputs)
    third_party = _module_of(module, arguments, warmup, steps, options)
    if third_party is None:
        asks = _of_profiles(options, {**how, "fast": fast, "ladder": ladder})
    elif ladder:
        raise UsageError(
            "--ladder cannot be combined with --module; use MemoryManager in your code"
        )
    else:
        asks = [_of_module(third_party, how)]
    outputs.check(trace, snapshot)
    results: list[Result] = []
    problems: list[str] = []
    try:
        with showing(not as_json) as progress:
            for name, ask in asks:
                problems += _answer(name, partial(ask, progress=progress), results)
    finally:  # an interruption does not lose what is finished
        outputs.finish(results)
    if problems:
        raise MeasureError(*problems)
    if any(result.verdict and not result.verdict.fits for result in results):
        raise typer.Exit(EXIT_DOES_NOT_FIT)


def _solve(
    options: ProfileOptions, unknown: Unknown, how: Mapping[str, Any], outputs: Outputs
) -> NoReturn:
    """Print the largest context or batch that fits when simulated."""
    from tritter_mem.cli.progress import showing
    from tritter_mem.profiling.largest_simulated import find_largest_simulated

    beside = {
        "--module": how["module"],
        "--snapshot": how["snapshot"],
        "--trace": how["save_trace"],
    }
    beside |= {"--output": outputs.output, "--html": outputs.html}
    if given := [name for name, value in beside.items() if value is not None]:
        raise UsageError(f"--max cannot be combined with {', '.join(given)}")
    profiles = _asked_for(options).profiles()
    with showing(not outputs.as_json) as progress:
        found = [find_largest_simulated(profile, unknown, progress) for profile in profiles]
    show_largest(found, outputs.units, as_json=outputs.as_json)


def _asked_for(options: ProfileOptions) -> ProfileOptions:
    """The options with the profiles that stand for none, and without what no profile says."""
    names = list(options.config) or list(TRAINED if options.mode == "training" else ROUTES)
    every = options.checkpoint == ALL
    return replace(options, config=names, checkpoint=None if every else options.checkpoint)


def _check_one_file(how: Mapping[str, Any], profiles: Sequence[AnyProfile]) -> None:
    for what, key in (("trace", "save_trace"), ("snapshot", "snapshot")):
        if how[key] is not None and len(profiles) > 1:
            raise UsageError(
                f"--{what}: got {len(profiles)} profiles, but a file holds the {what} of one"
            )


def _of_profiles(options: ProfileOptions, how: Mapping[str, Any]) -> list[tuple[str, Ask]]:
    """For each profile its name and what gives its result."""
    profiles = _asked_for(options).profiles()
    _check_one_file(how, profiles)
    from tritter_mem.profiling.profiler import profile as answer

    ask = partial(answer, checkpointing=options.checkpoint == ALL, **how)
    return [(profile.name, partial(ask, profile)) for profile in profiles]


def _of_module(module: ModuleProfile, how: Mapping[str, Any]) -> tuple[str, Ask]:
    from tritter_mem.profiling.profiler import profile_module

    # What goes wrong names its own file and line.
    return "", partial(profile_module, module, **how)


def _answer(name: str, ask: Callable[[], Result], results: list[Result]) -> Sequence[str]:
    """Add a result, whole or as far as it came; what went wrong with a measurement is returned."""
    from tritter_mem.profiling.profiler import MeasurementFailedError, ProfileInterrupted

    try:
        results.append(ask())
    except ProfileInterrupted as interrupted:
        results.append(interrupted.result)
        raise
    except MeasurementFailedError as error:
        results.append(error.result)
        return [f"{name}: {problem}" if name else problem for problem in error.problems]
    return []


def _module_of(
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
    from tritter_mem.models.user_code import read_case
    from tritter_mem.profiling.profiler import DEFAULT_GPU, ModuleProfile

    case = read_case(
        module,
        "{}" if arguments is None else arguments,
        warmup=1 if warmup is None else warmup,
        steps=1 if steps is None else steps,
    )
    return ModuleProfile(
        case=case,
        gpu=options.gpu or DEFAULT_GPU,
        budget_bytes=_budget_bytes(options.budget),
        allocator_conf=options.alloc_conf or "",
    )


def _refuse_without_module(given: Mapping[str, object]) -> None:
    lone = [name for name, value in given.items() if value is not None]
    if lone:
        raise UsageError(f"{', '.join(lone)} needs --module FILE.py:FUNCTION")


def _refuse_profile_options(options: ProfileOptions) -> None:
    names = [
        "--set" if name == "settings" else f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if value and name not in OF_MODULE_TOO
    ]
    if names:
        raise UsageError(
            f"{', '.join(names)} cannot be combined with --module; pass settings of your code by "
            "--args"
        )


def _budget_bytes(text: str | None) -> int | None:
    found = size_of(text, "--budget")
    if found is not None and found < 1:
        raise UsageError(f"--budget: got {text!r}, expected a size above 0")
    return found
