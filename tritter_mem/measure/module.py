"""Third-party code's answers: simulated and measured, in the record of any profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tritter_mem import __version__
from tritter_mem.config.card import GpuCard
from tritter_mem.differences import compare, judge
from tritter_mem.errors import SimulationError
from tritter_mem.measure.answer import Answer, Where, find_where
from tritter_mem.measure.environment import collect_environment
from tritter_mem.measure.profile import of_the_card
from tritter_mem.measure.target import DEFAULT_TIME_LIMIT_SECONDS, Asked
from tritter_mem.results import Result
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.third_party import simulate_module
from tritter_mem.trace.user_code import ModuleCase

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

    On a CUDA device the simulation is for the card that measures, as in `profile.profile`.

    Args:
        profile: the code and the card to fit.
        device: where to measure, in a child process: `cpu`, `cuda`, `cuda:1`; `none`: nowhere;
            `auto`: on CUDA where it can be, else nowhere.
        time_limit_seconds: for each run.
        repeat: runs, each in a process of its own; figures of the median one, and the spread.
        snapshot: where to write PyTorch's memory snapshot of one more run, on CUDA.
        progress: told what runs.
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
    asked = Asked(
        device=device, time_limit_seconds=time_limit_seconds, repeat=repeat, snapshot=snapshot
    )
    told, name = progress or Progress(), profile.case.name
    where = find_where(asked, profile.gpu, profile.allocator_conf, profile.budget_bytes)
    answer = Answer(_empty(profile, asked), partial(_judged, profile, where))
    with answer.kept():
        told.begin(f"{name}: simulating")
        problems = _simulate(answer, profile, where.simulated, save_trace)
        told.begin(f"{name}: measuring")
        answer.measure(profile.case, where, asked)
    if answer.result.measured is None:  # nobody could say anything
        answer.problems[:0] = problems
    return answer.finished()


def _empty(profile: ModuleProfile, asked: Asked) -> Result:
    resolved = profile.resolved()
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=collect_environment(profile.allocator_conf, asked.index),
        profile=resolved,
        profile_hash=_content_hash(resolved),
        planned_reason=_NOT_PLANNED,
    )


def _simulate(
    answer: Answer, profile: ModuleProfile, card: GpuCard, save_trace: Path | None
) -> Sequence[str]:
    """Add what is simulated, or the reason why it cannot be, which is returned too."""
    try:
        found = simulate_module(profile.case, card, profile.allocator_conf, save_trace)
    except SimulationError as error:
        answer.add(simulated_reason=str(error))
        return error.problems
    answer.add(simulated=found)
    return ()


def _judged(profile: ModuleProfile, where: Where, result: Result) -> Result:
    found = result.estimates()
    budget = profile.budget_bytes or where.fitted.default_budget_bytes
    return replace(result, verdict=judge(of_the_card(found), budget), differences=compare(found))


def _content_hash(resolved: dict[str, Any]) -> str:
    """16 hex digits of SHA-256, as profiles have; the name is not content."""
    content = {key: value for key, value in resolved.items() if key != "name"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
