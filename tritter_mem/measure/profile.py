"""A profile's answers side by side: planned, simulated, measured, and the verdict that follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tritter_mem import __version__
from tritter_mem.config.loading import profile_hash
from tritter_mem.config.schema import Profile
from tritter_mem.differences import compare, judge
from tritter_mem.measure.answer import Answer, MeasurementFailedError, Where, find_where
from tritter_mem.measure.checkpointing import measured_trade_off
from tritter_mem.measure.environment import collect_environment
from tritter_mem.measure.profile_ladder import profile_ladders
from tritter_mem.measure.target import DEFAULT_TIME_LIMIT_SECONDS, Asked
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import suggest
from tritter_mem.planner.verdict import budget_of
from tritter_mem.results import Estimate, Kind, Result
from tritter_mem.trace.bundled import run_settings
from tritter_mem.trace.checkpointing import checkpointing_trade_off
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.simulate import simulate

__all__ = ["MeasurementFailedError", "of_the_card", "profile"]


def profile(  # noqa: PLR0913  (one keyword an option of the command)
    profile: Profile,
    *,
    device: str = "auto",
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    repeat: int = 1,
    snapshot: Path | None = None,
    checkpointing: bool = False,
    ladder: bool = False,
    fast: bool = False,
    progress: Progress | None = None,
    save_trace: Path | None = None,
    where: Where | None = None,
) -> Result:
    """Plan a profile, simulate it and, where there is a device for it, measure it.

    On a CUDA device, plan and simulation are for the card that measures, and the verdict holds them
    against the budget of the profile's card: so like is compared with like. A budget that the
    profile names caps the run.

    Args:
        profile: a resolved profile.
        device: where to measure, in a child process: `cpu`, `cuda`, `cuda:1`; `none`: nowhere;
            `auto`: on CUDA where it can be, else nowhere.
        time_limit_seconds: for each run; the child is ended when it takes longer.
        repeat: runs, each in a process of its own; figures of the median one, and the spread.
        snapshot: where to write PyTorch's memory snapshot of one more run, on CUDA.
        checkpointing: simulate every checkpointing policy too, and measure each where the profile
            is measured; for training.
        ladder: where the profile does not fit, go down the out-of-memory ladder to the first rung
            that does: simulated, and measured where the profile is measured on a GPU.
        fast: simulate without the chunks and tokens that take the memory of those before them.
        progress: told how far the work is.
        save_trace: where to write the simulated run's memory events.
        where: the device, where it was looked for already.

    Returns:
        The record. What is missing in it has its reason there. The verdict follows what was
        measured on a GPU, else what was simulated: a run on the CPU has neither a GPU's context nor
        its libraries' workspaces, so it tells whether the plan is right, not whether it fits. Out
        of memory on a GPU is an answer: what was measured up to there, and that it does not fit.

    Raises:
        MeasurementFailedError: a device was named, and the measurement failed; the rest is there.
        OutputError: the trace cannot be written.
        ProfileInterrupted: Ctrl-C; what was finished is there.
        UsageError: there is no such kind of device, the time limit is no time, or the checkpointing
            of inference was asked for.
    """
    asked = Asked(
        device=device, time_limit_seconds=time_limit_seconds, repeat=repeat, snapshot=snapshot
    )
    told, gpu = progress or Progress(), profile.gpu
    where = where or find_where(asked, gpu.name, profile.allocator.conf, gpu.budget)
    card = where.simulated
    answer = Answer(_planned(profile, where, asked), partial(_judged, profile, where))
    with answer.kept():
        if checkpointing:
            answer.add(checkpointing=checkpointing_trade_off(profile, told, card))
        told.begin(profile.name)
        simulated = simulate(profile, fast=fast, progress=told, save_trace=save_trace, card=card)
        answer.add(simulated=simulated)
        told.begin(f"{profile.name}: measuring")
        answer.measure(run_settings(profile, card), where, asked)
        simulated_cases = answer.result.checkpointing
        for cases, problems in measured_trade_off(profile, simulated_cases, where, told):
            answer.add(checkpointing=cases)
            answer.fail(problems)
        if ladder:
            for ladders, problems in profile_ladders(profile, where, answer.result, told):
                answer.add(ladders=ladders)
                answer.fail(problems)
    return answer.finished()


def _planned(profile: Profile, where: Where, asked: Asked) -> Result:
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=collect_environment(profile.allocator.conf, asked.index),
        profile=profile.model_dump(),
        profile_hash=profile_hash(profile),
        planned=plan(profile, where.simulated),
    )


def _judged(profile: Profile, where: Where, result: Result) -> Result:
    """The record with its verdict and the differences between its kinds of answer."""
    budget, found = budget_of(profile, where.fitted), result.estimates()
    verdict = judge(of_the_card(found), budget, suggest(profile, where.simulated, budget))
    return replace(result, verdict=verdict, differences=compare(found))


def of_the_card(estimates: dict[Kind, Estimate]) -> dict[Kind, Estimate]:
    """The estimates that tell whether a card holds it: not those of the CPU."""
    return {kind: found for kind, found in estimates.items() if found.device != "cpu"}
