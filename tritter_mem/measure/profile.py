"""A profile's answers side by side: planned, simulated, measured, and the verdict that follows."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

from tritter_mem import __version__
from tritter_mem.config.gpus import find_gpu
from tritter_mem.config.loading import profile_hash
from tritter_mem.config.schema import Profile
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure import cpu
from tritter_mem.measure.environment import collect_environment
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import suggest
from tritter_mem.planner.verdict import budget_of
from tritter_mem.results import Environment, Estimate, Kind, Result, compare, judge
from tritter_mem.trace.bundled import run_settings
from tritter_mem.trace.simulate import simulate

DEFAULT_TIME_LIMIT_SECONDS = 300.0
_DEVICES = re.compile(r"auto|none|cpu|cuda(:\d{1,3})?")
_NO_CUDA = "no CUDA device: nothing was measured"
_CPU_ONLY = "this version measures on the CPU only (--device cpu)"
_NONE = "nothing was to be measured (--device none)"


def profile(
    profile: Profile,
    *,
    device: str = "auto",
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
) -> Result:
    """Plan a profile, simulate it and, where there is a device for it, measure it.

    Args:
        profile: a resolved profile.
        device: where to measure, in a child process: `cpu`, `cuda`, `cuda:1`; `none`: nowhere;
            `auto`: on CUDA where it can be, else nowhere.
        time_limit_seconds: for the measurement; the child is ended when it takes longer.

    Returns:
        The record. What is missing in it has its reason there. The verdict follows what was
        measured on a GPU, else what was simulated: a run on the CPU has neither a GPU's context nor
        its libraries' workspaces, so it tells whether the plan is right, not whether it fits.

    Raises:
        MeasureError: a device was named, and the measurement failed.
        UsageError: there is no such kind of device, or the time limit is no time.
    """
    _check(device, time_limit_seconds)
    card = find_gpu(profile.gpu.name)
    environment = collect_environment(profile.allocator.conf)
    reason = _why_not_measured(device, environment)
    planned, simulated, measured = plan(profile, card), simulate(profile), None
    if reason is None:
        measured = cpu.measure(run_settings(profile, card), time_limit_seconds)
    result = Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=environment,
        profile=profile.model_dump(),
        profile_hash=profile_hash(profile),
        planned=planned,
        simulated=simulated,
        measured=measured,
        measured_reason=reason,
    )
    found = result.estimates()
    budget = budget_of(profile, card)
    verdict = judge(_of_the_card(found), budget, suggest(profile, card, budget))
    return replace(result, verdict=verdict, differences=compare(found))


def _check(device: str, time_limit_seconds: float) -> None:
    if not _DEVICES.fullmatch(device):
        raise UsageError(f"device: found {device!r}; allowed: auto, cuda, cuda:1, cpu, none")
    if not 0 < time_limit_seconds <= 1e6:
        raise UsageError(
            f"time limit: found {time_limit_seconds:g} s; allowed: above 0, up to 1,000,000 s"
        )


def _why_not_measured(device: str, environment: Environment) -> str | None:
    """The reason to measure nothing; None where the CPU is to measure.

    Raises:
        MeasureError: the device that was asked for cannot measure.
    """
    if device in ("cpu", "none"):
        return None if device == "cpu" else _NONE
    reason = _NO_CUDA if environment.gpu is None else _CPU_ONLY
    if device == "auto":
        return reason
    raise MeasureError(f"device {device}: {reason}; use --device cpu, or none to plan only")


def _of_the_card(estimates: dict[Kind, Estimate]) -> dict[Kind, Estimate]:
    return {kind: found for kind, found in estimates.items() if found.device != "cpu"}
