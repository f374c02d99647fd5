"""A profile's answers side by side: planned, simulated, measured, and the verdict that follows."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tritter_mem import __version__
from tritter_mem.config.gpus import find_gpu
from tritter_mem.config.loading import profile_hash
from tritter_mem.config.schema import Profile
from tritter_mem.differences import compare, judge
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure import cpu
from tritter_mem.measure.environment import collect_environment
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import suggest
from tritter_mem.planner.verdict import budget_of
from tritter_mem.results import Environment, Estimate, Kind, Result
from tritter_mem.trace.bundled import run_settings
from tritter_mem.trace.checkpointing import checkpointing_trade_off
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.simulate import simulate

DEFAULT_TIME_LIMIT_SECONDS = 300.0
_DEVICES = re.compile(r"auto|none|cpu|cuda(:\d{1,3})?")
_NO_CUDA = "no CUDA device: nothing was measured"
_CPU_ONLY = "this version measures on the CPU only (--device cpu)"
_NONE = "nothing was to be measured (--device none)"


class MeasurementFailedError(MeasureError):
    """The measurement failed; `result` is the record without it, with the reason."""

    def __init__(self, *problems: str, result: Result) -> None:
        super().__init__(*problems)
        self.result = result


def profile(  # noqa: PLR0913  (one keyword an option of the command)
    profile: Profile,
    *,
    device: str = "auto",
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    checkpointing: bool = False,
    fast: bool = False,
    progress: Progress | None = None,
    save_trace: Path | None = None,
) -> Result:
    """Plan a profile, simulate it and, where there is a device for it, measure it.

    Args:
        profile: a resolved profile.
        device: where to measure, in a child process: `cpu`, `cuda`, `cuda:1`; `none`: nowhere;
            `auto`: on CUDA where it can be, else nowhere.
        time_limit_seconds: for the measurement; the child is ended when it takes longer.
        checkpointing: simulate every checkpointing policy too; for training.
        fast: simulate without the chunks and tokens that take the memory of those before them.
        progress: told how far the work is.
        save_trace: where to write the simulated run's memory events.

    Returns:
        The record. What is missing in it has its reason there. The verdict follows what was
        measured on a GPU, else what was simulated: a run on the CPU has neither a GPU's context nor
        its libraries' workspaces, so it tells whether the plan is right, not whether it fits.

    Raises:
        MeasurementFailedError: a device was named, and the measurement failed; the rest is there.
        OutputError: the trace cannot be written.
        UsageError: there is no such kind of device, the time limit is no time, or the checkpointing
            of inference was asked for.
    """
    check_request(device, time_limit_seconds)
    told = progress or Progress()
    policies = checkpointing_trade_off(profile, told) if checkpointing else ()
    told.begin(profile.name)
    simulated = simulate(profile, fast=fast, progress=told, save_trace=save_trace)
    result = replace(_planned(profile), simulated=simulated, checkpointing=policies)
    told.begin(f"{profile.name}: measuring")
    try:
        measured = _measured(profile, device, time_limit_seconds, result.environment)
    except MeasureError as error:
        partial = _judged(profile, replace(result, measured_reason=str(error)))
        raise MeasurementFailedError(*error.problems, result=partial) from error
    return _judged(profile, replace(result, **measured))


def _planned(profile: Profile) -> Result:
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=collect_environment(profile.allocator.conf),
        profile=profile.model_dump(),
        profile_hash=profile_hash(profile),
        planned=plan(profile, find_gpu(profile.gpu.name)),
    )


def _measured(
    profile: Profile, device: str, time_limit_seconds: float, environment: Environment
) -> dict[str, Any]:
    """What the measurement adds to the record: an estimate, or why there is none."""
    reason = why_not_measured(device, environment)
    if reason is not None:
        return {"measured_reason": reason}
    case = run_settings(profile, find_gpu(profile.gpu.name))
    return {"measured": cpu.measure(case, time_limit_seconds)}


def _judged(profile: Profile, result: Result) -> Result:
    """The record with its verdict and the differences between its kinds of answer."""
    card = find_gpu(profile.gpu.name)
    budget, found = budget_of(profile, card), result.estimates()
    verdict = judge(of_the_card(found), budget, suggest(profile, card, budget))
    return replace(result, verdict=verdict, differences=compare(found))


def check_request(device: str, time_limit_seconds: float) -> None:
    """Refuse what is no device, and a time limit that is no time.

    Raises:
        UsageError: says what is allowed.
    """
    if not _DEVICES.fullmatch(device):
        raise UsageError(f"device: found {device!r}; allowed: auto, cuda, cuda:1, cpu, none")
    if not 0 < time_limit_seconds <= 1e6:
        raise UsageError(
            f"time limit: found {time_limit_seconds:g} s; allowed: above 0, up to 1,000,000 s"
        )


def why_not_measured(device: str, environment: Environment) -> str | None:
    """Tell the reason to measure nothing; None where the CPU is to measure.

    Raises:
        MeasureError: the device that was asked for cannot measure.
    """
    if device in ("cpu", "none"):
        return None if device == "cpu" else _NONE
    reason = _NO_CUDA if environment.gpu is None else _CPU_ONLY
    if device == "auto":
        return reason
    raise MeasureError(f"device {device}: {reason}; use --device cpu, or none to plan only")


def of_the_card(estimates: dict[Kind, Estimate]) -> dict[Kind, Estimate]:
    """The estimates that tell whether a card holds it: not those of the CPU."""
    return {kind: found for kind, found in estimates.items() if found.device != "cpu"}
