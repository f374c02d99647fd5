"""Third-party code's answers: simulated, and on the CPU measured, in the record of any profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritter_mem import __version__
from tritter_mem.config.gpus import GpuCard, find_gpu
from tritter_mem.differences import compare, judge
from tritter_mem.errors import MeasureError, SimulationError
from tritter_mem.measure.child import Job, run_in_child
from tritter_mem.measure.cpu import estimate_of, read_estimate, resident_peak_bytes
from tritter_mem.measure.environment import collect_environment
from tritter_mem.measure.profile import (
    DEFAULT_TIME_LIMIT_SECONDS,
    MeasurementFailedError,
    check_request,
    of_the_card,
    why_not_measured,
)
from tritter_mem.measure.speed import Stopwatch
from tritter_mem.results import Estimate, Result
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.third_party import run_module, simulate_module
from tritter_mem.trace.user_code import ModuleCase

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_GPU = "rtx-5080"
_NOT_PLANNED = "the formulas are the bundled model's: third-party code is simulated, not planned"


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


def profile_module(
    profile: ModuleProfile,
    *,
    device: str = "auto",
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    progress: Progress | None = None,
    save_trace: Path | None = None,
) -> Result:
    """Simulate third-party code and, with `device="cpu"`, measure it on the CPU.

    Args:
        profile: the code and the card.
        device: where to measure, in a child process: `cpu`; `auto`, `none`: nowhere.
        time_limit_seconds: for the measurement.
        progress: told what runs.
        save_trace: where to write the simulated run's memory events.

    Returns:
        The record; what is missing in it has its reason there.

    Raises:
        InputError: the code failed; the message names its line.
        MeasurementFailedError: nothing could be simulated, or not measured where it was asked for;
            the record without it is there.
        UsageError: wrong arguments of the code, or a wrong device.
    """
    check_request(device, time_limit_seconds)
    card, told = find_gpu(profile.gpu), progress or Progress()
    told.begin(f"{profile.case.name}: simulating")
    result, problems = _simulated(profile, card, save_trace)
    told.begin(f"{profile.case.name}: measuring")
    try:
        reason = why_not_measured(device, result.environment)
        measured = None if reason else measure_on_cpu(profile.case, time_limit_seconds)
        result = replace(result, measured=measured, measured_reason=reason)
    except MeasureError as error:
        result = replace(result, measured_reason=str(error))
        problems += error.problems
    result = _judged(profile, card, result)
    if problems and result.measured is None:
        raise MeasurementFailedError(*problems, result=result)
    return result


def measure_on_cpu(case: ModuleCase, time_limit_seconds: float) -> Estimate:
    """Run third-party code on the CPU in a child process.

    Raises:
        MeasureError: the run failed; says how.
    """
    job = Job(
        function="tritter_mem.measure.module:run_case",
        arguments={"case": asdict(case)},
        time_limit_seconds=time_limit_seconds,
    )
    return read_estimate(run_in_child(job))


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """In the child: run a case twice, recorded and timed, and return its `Estimate` as data."""
    from tritter_mem.trace.recorder import Recorder

    read = ModuleCase(**case)
    with Recorder("cpu") as recorder:
        run_module(read, "cpu", recorder)
    watch = _Timed()
    run_module(read, "cpu", watch)
    estimate = estimate_of(recorder.log)
    phases = (
        replace(phase, seconds=watch.stopwatch.seconds[phase.name]) for phase in estimate.phases
    )
    resident = resident_peak_bytes()
    return asdict(replace(estimate, phases=tuple(phases), resident_peak_bytes=resident))


class _Timed:
    """A watch that times phases and asks nothing of memory."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        with self.stopwatch.phase(name):
            yield

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Nothing: categories are the recorded run's."""


def _simulated(
    profile: ModuleProfile, card: GpuCard, save_trace: Path | None
) -> tuple[Result, list[str]]:
    """The record with what was simulated, and why it could not be."""
    resolved = profile.resolved()
    result = Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=collect_environment(profile.allocator_conf),
        profile=resolved,
        profile_hash=_content_hash(resolved),
        planned_reason=_NOT_PLANNED,
    )
    try:
        found = simulate_module(profile.case, card, profile.allocator_conf, save_trace)
    except SimulationError as error:
        return replace(result, simulated_reason=str(error)), list(error.problems)
    return replace(result, simulated=found), []


def _judged(profile: ModuleProfile, card: GpuCard, result: Result) -> Result:
    found = result.estimates()
    budget = profile.budget_bytes or card.default_budget_bytes
    return replace(result, verdict=judge(of_the_card(found), budget), differences=compare(found))


def _content_hash(resolved: dict[str, Any]) -> str:
    """16 hex digits of SHA-256, as profiles have; the name is not content."""
    content = {key: value for key, value in resolved.items() if key != "name"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
