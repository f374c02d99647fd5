"""A case run for real on the CPU: the bytes of its storages, and its seconds.

The run is made twice in one child process: under the recorder, which finds every storage, and once
more without it, for the seconds. Nothing is timed while it is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tritter_mem.errors import MeasureError
from tritter_mem.measure.child import ChildJob, answer_of
from tritter_mem.measure.phases import Stopwatch, with_speed
from tritter_mem.measure.workload import Work, perform, read_work, to_plain
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.events import EventLog
from tritter_model.config import RunConfig


def measure(work: Work, time_limit_seconds: float) -> MemoryUse:
    """Run a case on the CPU in a child process.

    Args:
        work: the case, of the bundled model or of third-party code.
        time_limit_seconds: for all of it.

    Returns:
        Allocated peaks by component and phase, seconds, tokens per second, and the peak resident
        memory of the process, which holds Python and PyTorch besides.

    Raises:
        MeasureError: the run failed, or asks for a CUDA graph; says how.
    """
    if isinstance(work, RunConfig) and work.captures:
        raise MeasureError(
            "workload.cuda_graph: got true for a run on the CPU, which has no CUDA graphs;"
            " set it to false, or use --device none"
        )
    job = ChildJob(
        function="tritter_mem.measure.cpu_run:run_case",
        arguments={"work": to_plain(work)},
        time_limit_seconds=time_limit_seconds,
    )
    return answer_of(job, MemoryUse)


def run_case(work: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: run a case, given as plain data, and return its `MemoryUse` as plain data."""
    case, watch = read_work(work), Stopwatch()
    recorded = _recorded(case)
    perform(case, "cpu", watch)
    timed = with_speed(recorded, watch.seconds, case)
    return asdict(replace(timed, resident_peak_bytes=resident_peak_bytes()))


def _recorded(work: Work) -> MemoryUse:
    from tritter_mem.simulation.recorder import Recorder

    with Recorder("cpu") as recorder:
        perform(work, "cpu", recorder)
    return memory_use_of(recorder.log)


def memory_use_of(log: EventLog, device: str = "cpu") -> MemoryUse:
    """What a run comes to that was recorded on a device."""
    from tritter_mem.simulation.peaks import find_peaks

    peaks = find_peaks(log)
    return MemoryUse(
        device=device,
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
