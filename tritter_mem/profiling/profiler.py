"""A profile's answers side by side: planned, simulated, measured, and the verdict that follows.

`profile` answers for a profile of the bundled model, `profile_module` for third-party code.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.devices.environment import collect_environment
from tritter_mem.errors import InputError, MeasureError, SimulationError, UsageError
from tritter_mem.measure import runs
from tritter_mem.measure.child import ChildJob, EndedError, ReportedError, answer_of
from tritter_mem.measure.target import (
    DEFAULT_TIME_LIMIT_SECONDS,
    STANDIN,
    MeasureOptions,
    Target,
    find_target,
)
from tritter_mem.measure.workload import Work
from tritter_mem.models.bundled import run_settings
from tritter_mem.models.transformers_run import transformers_run
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.planner.compose import budget_of, plan
from tritter_mem.planner.result import content_hash, model_facts
from tritter_mem.planner.solve import context_curves
from tritter_mem.planner.suggest import judge_with_advice
from tritter_mem.profiling.checkpointing import checkpointing_trade_off, measured_trade_off
from tritter_mem.profiling.ladder_profile import profile_ladders
from tritter_mem.results.header import header
from tritter_mem.results.run import KINDS, RUN_KINDS, Kind, MemoryUse, Result
from tritter_mem.results.verdict import compare, judge
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import simulate
from tritter_mem.simulation.transformers_model import simulate_transformers

DEFAULT_GPU = "rtx-5080"
_NOT_PLANNED = "the formulas know models, not code: your own code is simulated, not planned"
_NAMED_NOT_MEASURED = "a named model is planned and simulated; run your own script to measure it"
INTERRUPTED = "interrupted"


class MeasurementFailedError(MeasureError):
    """A measurement failed; `result` is the record with all that is there, and the reason."""

    def __init__(self, *problems: str, result: Result) -> None:
        super().__init__(*problems)
        self.result = result


class ProfileInterrupted(KeyboardInterrupt):
    """Ctrl-C; `result` is the record with what was finished before."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


def profile(  # noqa: PLR0913  (one keyword an option of the command)
    profile: AnyProfile,
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
    target: Target | None = None,
) -> Result:
    """Plan a profile, simulate it and, where there is a device for it, measure it.

    A named model is simulated as transformers runs it, and not measured.

    On a CUDA device, plan and simulation are for the card that measures, and the verdict compares
    them with the budget of the profile's card: so like is compared with like. A budget that the
    profile names caps the run.

    Args:
        profile: a resolved profile.
        device: where to measure, in a child process: `cpu`, `cuda`, `cuda:1`; `none`: nowhere;
            `auto`: on CUDA where it can be, else nowhere.
        time_limit_seconds: for each run; the child is ended when it takes longer.
        repeat: runs, each in a separate process; figures of the median one, and the spread.
        snapshot: where to write PyTorch's memory snapshot of one more run, on CUDA.
        checkpointing: simulate every checkpointing policy too, and measure each where the profile
            is measured; for training.
        ladder: where the profile does not fit, go down the out-of-memory ladder to the first rung
            that does: simulated, and measured where the profile is measured on a GPU.
        fast: simulate without the chunks and tokens that take the memory of those before them.
        progress: shows how far the work is.
        save_trace: where to write the simulated run's memory events.
        target: the device, where it was looked for already.

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
    options = MeasureOptions(
        device=device, time_limit_seconds=time_limit_seconds, repeat=repeat, snapshot=snapshot
    )
    progress, gpu = progress or Progress(), profile.gpu
    target = target or find_target(options, gpu.name, profile.allocator.conf, gpu.budget)
    card = target.simulated
    record = RecordBuilder(_planned(profile, target), partial(_with_verdict, profile, target))
    if isinstance(profile, NamedProfile):
        _refuse_for_named(checkpointing=checkpointing, ladder=ladder, fast=fast)
        return _profile_named(record, profile, target, progress, save_trace)
    with record.kept():
        if checkpointing:
            record.add(checkpointing=checkpointing_trade_off(profile, progress, card))
        progress.begin(profile.name)
        simulated = simulate(
            profile,
            fast=fast,
            progress=progress,
            save_trace=save_trace,
            card=card,
            budget_bytes=budget_of(profile, target.fitted),
        )
        record.add(simulated=simulated)
        progress.begin(f"{profile.name}: measuring")
        record.measure(run_settings(profile, card), target)
        simulated_cases = record.result.checkpointing
        for cases, problems in measured_trade_off(profile, simulated_cases, target, progress):
            record.add(checkpointing=cases)
            record.fail(problems)
        if ladder:
            for ladders, problems in profile_ladders(profile, target, record.result, progress):
                record.add(ladders=ladders)
                record.fail(problems)
    return record.finished()


def _refuse_for_named(**asked: bool) -> None:
    options = {"checkpointing": "--checkpoint all", "ladder": "--ladder", "fast": "--fast"}
    if given := [options[name] for name, value in asked.items() if value]:
        raise UsageError(f"{', '.join(given)}: only for profiles of the bundled model")


def _profile_named(
    record: RecordBuilder,
    profile: NamedProfile,
    target: Target,
    progress: Progress,
    save_trace: Path | None,
) -> Result:
    """Simulate a named model; what cannot be simulated has its reason in the record."""
    with record.kept():
        progress.begin(profile.name)
        run, conf = transformers_run(profile), profile.allocator.conf
        try:
            use = simulate_transformers(
                run,
                target.simulated,
                conf,
                progress=progress,
                save_trace=save_trace,
                budget_bytes=budget_of(profile, target.fitted),
            )
            record.add(simulated=use)
        except SimulationError as error:
            record.add(simulated_reason=str(error))
        record.add(measured_reason=_NAMED_NOT_MEASURED)
        if target.required:
            record.fail([f"device {target.device}: {_NAMED_NOT_MEASURED}"])
    return record.finished()


def _planned(profile: AnyProfile, target: Target) -> Result:
    return Result(
        **header(),
        environment=collect_environment(profile.allocator.conf, target.index),
        profile=profile.model_dump(),
        profile_hash=content_hash(profile),
        model=model_facts(profile),
        planned=plan(profile, target.simulated),
    )


def _with_verdict(profile: AnyProfile, target: Target, result: Result) -> Result:
    """The record with its verdict, the differences between its kinds of answer, and its curves."""
    budget, found = budget_of(profile, target.fitted), result.by_kind()
    verdict = judge_with_advice(profile, target.simulated, of_the_card(found), budget)
    return replace(
        result,
        verdict=verdict,
        differences=compare(found),
        context_curves=context_curves(profile),
    )


def of_the_card(uses: dict[Kind, MemoryUse]) -> dict[Kind, MemoryUse]:
    """The kinds of answer that tell whether a card holds it: not those of the CPU."""
    return {kind: found for kind, found in uses.items() if found.device != "cpu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleProfile:
    """Third-party code, and the card to fit.

    Attributes:
        case: the code and what to run of it.
        gpu: the card's name; `auto`: the one present.
        budget_bytes: memory that may be used; default: the card's less a margin.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
    """

    case: ModuleCase
    gpu: str = DEFAULT_GPU
    budget_bytes: int | None = None
    allocator_conf: str = ""

    def resolved(self) -> dict[str, Any]:
        """What the record holds as its profile."""
        return {
            "name": self.case.name,
            "module": asdict(self.case),
            "gpu": {"name": self.gpu, "budget": self.budget_bytes},
            "allocator": {"conf": self.allocator_conf},
        }


def profile_module(  # noqa: PLR0913  (one keyword an option of the command)
    profile: ModuleProfile,
    *,
    device: str = "auto",
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    repeat: int = 1,
    snapshot: Path | None = None,
    progress: Progress | None = None,
    save_trace: Path | None = None,
) -> Result:
    """Simulate third-party code and, where there is a device for it, measure it.

    On a CUDA device the simulation is for the card that measures, as in `profile`.

    Args:
        profile: the code and the card to fit.
        device: where to measure, in a child process: `cpu`, `cuda`, `cuda:1`; `none`: nowhere;
            `auto`: on CUDA where it can be, else nowhere.
        time_limit_seconds: for each run.
        repeat: runs, each in a separate process; figures of the median one, and the spread.
        snapshot: where to write PyTorch's memory snapshot of one more run, on CUDA.
        progress: shows what runs.
        save_trace: where to write the simulated run's memory events.

    Returns:
        The record; what is missing in it has its reason there.

    Raises:
        InputError: the code failed; the message names its line.
        MeasurementFailedError: nothing could be simulated, or not measured where it was asked for;
            the record without it is there.
        ProfileInterrupted: Ctrl-C; what was finished is there.
        UsageError: wrong arguments of the code, or a wrong device.
    """
    options = MeasureOptions(
        device=device, time_limit_seconds=time_limit_seconds, repeat=repeat, snapshot=snapshot
    )
    progress, name = progress or Progress(), profile.case.name
    target = find_target(options, profile.gpu, profile.allocator_conf, profile.budget_bytes)
    record = RecordBuilder(_unplanned(profile, target), partial(_module_verdict, profile, target))
    with record.kept():
        progress.begin(f"{name}: simulating")
        problems = _simulate(record, profile, target.simulated, save_trace)
        progress.begin(f"{name}: measuring")
        record.measure(profile.case, target)
    if not record.result.by_kind().keys() & set(RUN_KINDS):  # nobody could say anything
        record.problems[:0] = problems
    return record.finished()


def _unplanned(profile: ModuleProfile, target: Target) -> Result:
    resolved = profile.resolved()
    return Result(
        **header(),
        environment=collect_environment(profile.allocator_conf, target.index),
        profile=resolved,
        profile_hash=_content_hash(resolved),
        planned_reason=_NOT_PLANNED,
    )


def _simulate(
    record: RecordBuilder, profile: ModuleProfile, card: GpuCard, save_trace: Path | None
) -> Sequence[str]:
    """Add what is simulated, or the reason why it cannot be, which is returned too."""
    try:
        found = _simulated_apart(profile, card, save_trace)
    except SimulationError as error:
        record.add(simulated_reason=str(error))
        return error.problems
    record.add(simulated=found)
    return ()


def _simulated_apart(profile: ModuleProfile, card: GpuCard, save_trace: Path | None) -> MemoryUse:
    """Simulate third-party code in a process of its own, which it may end, crash or change.

    Raises:
        InputError: the code failed, or ended its process.
        SimulationError: it needs what a simulation does not have, or more memory than there is.
        UsageError: it does not take the arguments.
    """
    job = ChildJob(
        function="tritter_mem.simulation.user_module:simulated_apart",
        arguments={
            "case": asdict(profile.case),
            "card": asdict(card),
            "allocator_conf": profile.allocator_conf,
            "save_trace": None if save_trace is None else str(save_trace.absolute()),
            "budget_bytes": profile.budget_bytes or card.default_budget_bytes,
        },
        time_limit_seconds=math.inf,
        shows_output=True,
    )
    try:
        return answer_of(job, MemoryUse)
    except ReportedError as error:
        raise error.original from None
    except EndedError as error:
        by_the_code = error.code != -signal.SIGKILL  # which is for lack of memory, as a rule
        kind = InputError if by_the_code else SimulationError
        raise kind(*(f"{profile.case.name}: {problem}" for problem in error.problems)) from error
    except MeasureError as error:
        raise SimulationError(*error.problems) from error


def _module_verdict(profile: ModuleProfile, target: Target, result: Result) -> Result:
    found = result.by_kind()
    budget = profile.budget_bytes or target.fitted.default_budget_bytes
    return replace(result, verdict=judge(of_the_card(found), budget), differences=compare(found))


def _content_hash(resolved: dict[str, Any]) -> str:
    """16 hex digits of SHA-256, as profiles have; the name is not content."""
    content = {key: value for key, value in resolved.items() if key != "name"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class RecordBuilder:
    """A record that grows.

    Args:
        result: the record so far.
        with_verdict: adds verdict and differences to a record.

    Attributes:
        result: the record so far.
        problems: what ends the command with an error, though the record stands.
    """

    def __init__(self, result: Result, with_verdict: Callable[[Result], Result]) -> None:
        self.result = result
        self.problems: list[str] = []
        self._with_verdict = with_verdict

    def add(self, **found: Any) -> None:
        """Replace fields of the record."""
        self.result = replace(self.result, **found)

    def fail(self, problems: Iterable[str]) -> None:
        """Note what went wrong."""
        self.problems += problems

    def measure(self, work: Work, target: Target) -> None:
        """Add what is measured or, over stand-ins, rehearsed; or why nothing is."""
        if target.reason is not None:
            self.add(measured_reason=target.reason)
            if target.required:
                self.fail([_not_here(target.device, target.reason)])
            return
        if target.standin:
            self.add(measured_reason=STANDIN)
        try:
            self.add(**{target.kind: runs.measure(work, target)})
        except runs.PartlyMeasuredError as error:
            self.add(**{target.kind: error.use})
            self.fail(error.problems)
        except MeasureError as error:
            self.add(**{f"{target.kind}_reason": str(error)})
            self.fail(error.problems)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Hand what is finished over to whoever catches an interruption.

        Raises:
            ProfileInterrupted: in place of KeyboardInterrupt.
        """
        try:
            yield
        except KeyboardInterrupt:
            missing = {
                f"{kind}_reason": INTERRUPTED
                for kind in KINDS
                if kind != "rehearsed"
                and getattr(self.result, kind) is None
                and getattr(self.result, f"{kind}_reason") is None
            }
            self.add(**missing)
            raise ProfileInterrupted(self._with_verdict(self.result)) from None

    def finished(self) -> Result:
        """The record with its verdict.

        Raises:
            MeasurementFailedError: something went wrong on the way.
        """
        result = self._with_verdict(self.result)
        if self.problems:
            raise MeasurementFailedError(*self.problems, result=result)
        return result


def _not_here(device: str, reason: str) -> str:
    if device == "auto":
        return f"snapshot: {reason}"
    return f"device {device}: {reason}; use --device cpu, or none to plan only"
