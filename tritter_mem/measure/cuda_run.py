"""In the child process: one case on one CUDA device, measured, recorded, or with its history kept.

The order of a measured run: read the device, make the context, launch a first kernel, read again,
set the cap; then build the model, warm up, set the cap anew (kernels have been loaded), and run the
phases, each with its own peaks; then read. Nothing is recorded meanwhile.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritter_mem.allocator.snapshot import save_snapshot
from tritter_mem.devices.cuda import open_cuda
from tritter_mem.devices.device import Device, Refused
from tritter_mem.devices.nvml import read_usage
from tritter_mem.errors import OutputError
from tritter_mem.measure.out_of_memory import describe, find_out_of_memory
from tritter_mem.measure.phases import BETWEEN, PhaseMeter, Stopwatch, memory_use_of, with_speed
from tritter_mem.measure.session import DeviceSession
from tritter_mem.measure.workload import Work, perform, read_work
from tritter_mem.results.run import AllocatorStats, DeviceRun, MemoryUse, OutOfMemory

if TYPE_CHECKING:
    from tritter_mem.simulation.user_module import Watch

HISTORY_ENTRIES = 600_000
"""Events that a snapshot keeps, the last ones; PyTorch's viewer shows no more."""


def measure_case(work: dict[str, Any], index: int, **memory: Any) -> dict[str, Any]:
    """The job that measures: its `MemoryUse` as plain data, without components.

    Args:
        work: of `workload.to_plain`.
        index: of the CUDA device.
        memory: `budget_bytes` and `assumed_context_bytes` of `DeviceSession`.
    """
    return asdict(measure(read_work(work), session_on(index, **memory)))


def record_case(work: dict[str, Any], index: int, **memory: Any) -> dict[str, Any]:
    """The job that tells where the bytes are: an `MemoryUse` of the recorded tensors."""
    return asdict(record(read_work(work), session_on(index, **memory)))


def snapshot_case(work: dict[str, Any], index: int, path: str, **memory: Any) -> None:
    """The job that runs a case with the allocator's history on, and writes PyTorch's snapshot.

    Where memory runs out, the snapshot shows why.
    """
    import torch

    session = session_on(index, **memory)
    torch.cuda.memory._record_memory_history(
        enabled="all", context="alloc", stacks="python", max_entries=HISTORY_ENTRIES
    )
    _as_far_as_memory_goes(read_work(work), session.device, Stopwatch())
    session.device.synchronize()
    write_snapshot(torch.cuda.memory._snapshot(), Path(path))


def describe_device(index: int) -> dict[str, Any]:
    """The job that looks whether a device can be used: `DeviceProperties` as plain data."""
    return asdict(open_cuda(index).properties())


def session_on(index: int, **memory: Any) -> DeviceSession:
    """This process on a CUDA device; `memory` is as in `DeviceSession`."""
    return DeviceSession(partial(open_cuda, index), partial(read_usage, index), **memory)


def measure(work: Work, session: DeviceSession) -> MemoryUse:
    """Run a case and read its peaks, seconds and speed; running out of memory is an answer."""
    device = session.device
    refused: list[Refused] = []
    device.on_refusal(refused.append)
    watch = PhaseMeter(device, session.set_limit)
    failure = _run(work, watch, refused, device)
    watch.end(BETWEEN)
    use = memory_use_of(watch.readings, device.name, _device_run(session))
    use = with_speed(use, {p.name: p.seconds or 0.0 for p in use.phases}, work)
    context = session.counted_context_bytes()
    return replace(
        use,
        context_bytes=context,
        device_peak_bytes=(use.reserved_peak_bytes or 0) + context,
        out_of_memory=failure,
    )


def _run(
    work: Work, watch: PhaseMeter, refused: list[Refused], device: Device
) -> OutOfMemory | None:
    try:
        perform(work, device.name, watch)
    except Exception as error:
        cause = find_out_of_memory(error)
        if cause is None:
            raise
        return describe(cause, watch.failed_in, refused, device)
    return None


def _device_run(session: DeviceSession) -> DeviceRun:
    usage = session.usage()
    return DeviceRun(
        allocator=AllocatorStats(
            requested_peak_bytes=0, active_peak_bytes=0, inactive_split_peak_bytes=0, retries=0,
            segment_allocations=0, segment_releases=0,
        ),
        total_bytes=session.device.total_bytes,
        allocator_limit_bytes=session.limit_bytes,
        other_processes_bytes=session.before.device_bytes,
        context_created_bytes=session.context.created_bytes,
        context_first_kernel_bytes=session.context.first_kernel_bytes,
        process_bytes=usage.process_bytes,
        device_used_bytes=usage.device_bytes,
        unread=session.unread(),
    )  # fmt: skip


def record(work: Work, session: DeviceSession) -> MemoryUse:
    """Run a case under the recorder, with the allocator's history on; nothing is measured.

    Together they tell where the bytes are, and how memory was fragmented at the peak.

    Raises:
        MeasureError: the run has more events than are kept.
    """
    from tritter_mem.measure.recorded_run import HistoryRecorder
    from tritter_mem.measure.recorded_run import memory_use_of as memory_use_of_recorded

    device = session.device
    device.keep_history()
    with HistoryRecorder(device) as recorder:
        _as_far_as_memory_goes(work, device, recorder)
    return memory_use_of_recorded(recorder, device.history(), device.name, _device_run(session))


def _as_far_as_memory_goes(work: Work, device: Device, watch: Watch) -> None:
    try:
        perform(work, device.name, watch)
    except Exception as error:
        if find_out_of_memory(error) is None:
            raise


def write_snapshot(snapshot: Any, path: Path) -> None:
    """Write a snapshot, in a folder that is made where it is missing.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--snapshot: {path} cannot be written: {error.strerror}") from error
    save_snapshot(path, snapshot)
