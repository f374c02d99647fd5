"""The bundled model, run for real on the CPU: the bytes of its storages, and its seconds.

The run is made twice in one child process: under the recorder, which finds every storage, and once
more without it, for the seconds. Nothing is timed while it is recorded.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tritter_mem.errors import MeasureError
from tritter_mem.measure.child import Job, run_in_child
from tritter_mem.measure.speed import Stopwatch, with_speed
from tritter_mem.results import Estimate
from tritter_mem.trace.events import EventLog
from tritter_model.config import RunConfig


def measure(run: RunConfig, time_limit_seconds: float) -> Estimate:
    """Run a case on the CPU in a child process.

    Args:
        run: the case.
        time_limit_seconds: for all of it.

    Returns:
        Allocated peaks by component and phase, seconds, tokens per second, and the peak resident
        memory of the process, which holds Python and PyTorch besides.

    Raises:
        MeasureError: the run failed; says how.
    """
    job = Job(
        function="tritter_mem.measure.cpu:run_case",
        arguments={"settings": asdict(run)},
        time_limit_seconds=time_limit_seconds,
    )
    return read_estimate(run_in_child(job))


def read_estimate(answer: Any) -> Estimate:
    """Read what a child left.

    Raises:
        MeasureError: it is no `Estimate`.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Estimate).validate_python(answer)
    except ValidationError as error:
        raise MeasureError(f"the run left a result that is none: {error.errors()[0]}") from error


def run_case(settings: dict[str, Any]) -> dict[str, Any]:
    """In the child: run a case, given as plain data, and return its `Estimate` as plain data."""
    from pydantic import TypeAdapter

    from tritter_model.run import run as run_model

    run = TypeAdapter(RunConfig).validate_python(settings)
    recorded, stopwatch = _recorded(run), Stopwatch()
    run_model(run, "cpu", stopwatch.phase)
    timed = with_speed(recorded, stopwatch.seconds, run)
    return asdict(replace(timed, resident_peak_bytes=resident_peak_bytes()))


def _recorded(run: RunConfig) -> Estimate:
    from tritter_mem.trace.recorder import Recorder
    from tritter_model.run import run as run_model

    with Recorder("cpu") as recorder:
        run_model(run, "cpu", recorder.phase)
    return estimate_of(recorder.log)


def estimate_of(log: EventLog) -> Estimate:
    """What a run recorded on the CPU comes to."""
    from tritter_mem.trace.peaks import find_peaks

    peaks = find_peaks(log)
    return Estimate(
        device="cpu",
        components=peaks.components,
        phases=peaks.phases,
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        peak_at=peaks.peak_at,
        held_at_peak=peaks.held,
        timeline=peaks.timeline,
    )


def resident_peak_bytes() -> int | None:
    """Peak resident memory of this process.

    `VmHWM`, because `ru_maxrss` is inherited: a child's begins at its parent's peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
