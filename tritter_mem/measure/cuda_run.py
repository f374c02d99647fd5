"""In the child process: one case on one CUDA device, measured, recorded, or with its history kept.

The order of a measured run: read the device, make the context, launch a first kernel, read again,
set the cap; then build the model, warm up, set the cap anew (kernels have been loaded), and run the
phases, each with its own peaks; then read. Nothing is recorded meanwhile.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tritter_mem.devices.cuda import (
    ByFreeMemory,
    CudaMeter,
    Meter,
    Refused,
    allocator_limit_bytes,
    context_bytes,
)
from tritter_mem.devices.nvml import ASSUMED_CONTEXT_BYTES, Driver, Usage
from tritter_mem.errors import MeasureError
from tritter_mem.measure.failures import describe, explain_cuda, find_out_of_memory
from tritter_mem.measure.phases import BETWEEN, Stretches, estimate_of, with_speed
from tritter_mem.measure.workload import Timed, Work, perform, read_work
from tritter_mem.results.from_json import from_plain
from tritter_mem.results.run import AllocatorStats, DeviceRun, Estimate, OutOfMemory
from tritter_mem.results.writing import open_atomically

if TYPE_CHECKING:
    from tritter_mem.simulation.user_module import Watch

HISTORY_ENTRIES = 600_000
"""Events that a snapshot keeps, the last ones; PyTorch's viewer shows no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a case runs, and what it may use.

    Attributes:
        index: of the CUDA device.
        budget_bytes: for the whole process, context included; None: all that there is.
        assumed_context_bytes: what the context takes, where it cannot be read.
    """

    index: int
    budget_bytes: int | None = None
    assumed_context_bytes: int = ASSUMED_CONTEXT_BYTES


class Readings(NamedTuple):
    """What was read before a run: of the context as it was made, and after a kernel."""

    created_bytes: int | None
    first_kernel_bytes: int | None


class Session:
    """This process on a device: its context, and the cap on what PyTorch may reserve.

    Args:
        place: where, and the budget.
        driver: what the driver counts.
        open_meter: makes the context, and reads PyTorch's allocator.

    Attributes:
        meter: the device.
        limit_bytes: the cap now; None: there is none.
    """

    def __init__(self, place: Place, driver: Driver, open_meter: Callable[[int], Meter]) -> None:
        self._place, self._driver = place, driver
        self.before = driver.usage()
        self.meter = open_meter(place.index)
        self._by_free_memory = ByFreeMemory(
            created_bytes=self.meter.used_bytes(), assumed_bytes=place.assumed_context_bytes
        )
        created = self.context_bytes()
        self.meter.first_kernel()
        self.readings = Readings(created, self.context_bytes())
        self.limit_bytes: int | None = None
        self.set_limit()

    def usage(self) -> Usage:
        """What the driver counts now."""
        return self._driver.usage()

    def context_bytes(self) -> int | None:
        """What the process takes beside PyTorch's allocator; None where it cannot be read."""
        reserved = self.meter.stats()["reserved_bytes.all.current"]
        found = context_bytes(self.before, self.usage(), reserved)
        if found is not None:
            return found
        return self._by_free_memory.context_bytes(self.meter.used_bytes(), reserved)

    def counted_context_bytes(self) -> int:
        """What the process takes, or else what is assumed for the card."""
        found = self.context_bytes()
        return self._place.assumed_context_bytes if found is None else found

    def unread(self) -> tuple[str, ...]:
        """Why the driver's figures are missing, and how the context's was come by without them."""
        usage = self.usage()
        by_nvml = context_bytes(self.before, usage, 0) is not None
        return usage.unread if by_nvml else (*usage.unread, self._by_free_memory.note())

    def set_limit(self) -> None:
        """Cap what PyTorch may reserve at the budget less the context as it is now."""
        if self._place.budget_bytes is None:
            return
        context = self.counted_context_bytes()
        total = self.meter.total_bytes
        self.limit_bytes = allocator_limit_bytes(self._place.budget_bytes, context, total)
        self.meter.limit(self.limit_bytes)


def measure(work: Work, session: Session) -> Estimate:
    """Run a case and read its peaks, seconds and speed; running out of memory is an answer."""
    meter = session.meter
    refused: list[Refused] = []
    meter.on_refusal(refused.append)
    watch = Stretches(meter, session.set_limit)
    failure = _run(work, watch, refused, meter)
    watch.close(BETWEEN)
    estimate = estimate_of(watch.found, meter.name, _device_run(session))
    estimate = with_speed(estimate, {p.name: p.seconds or 0.0 for p in estimate.phases}, work)
    context = session.counted_context_bytes()
    return replace(
        estimate,
        context_bytes=context,
        device_peak_bytes=(estimate.reserved_peak_bytes or 0) + context,
        out_of_memory=failure,
    )


def _run(work: Work, watch: Stretches, refused: list[Refused], meter: Meter) -> OutOfMemory | None:
    try:
        perform(work, meter.name, watch)
    except Exception as error:
        cause = find_out_of_memory(error)
        if cause is None:
            raise
        return describe(cause, watch.failed_in, refused, meter)
    return None


def _device_run(session: Session) -> DeviceRun:
    usage = session.usage()
    return DeviceRun(
        allocator=AllocatorStats(
            requested_peak_bytes=0, active_peak_bytes=0, inactive_split_peak_bytes=0, retries=0,
            segment_allocations=0, segment_releases=0,
        ),
        total_bytes=session.meter.total_bytes,
        allocator_limit_bytes=session.limit_bytes,
        other_processes_bytes=session.before.device_bytes,
        context_created_bytes=session.readings.created_bytes,
        context_first_kernel_bytes=session.readings.first_kernel_bytes,
        process_bytes=usage.process_bytes,
        device_used_bytes=usage.device_bytes,
        unread=session.unread(),
    )  # fmt: skip


def record(work: Work, session: Session) -> Estimate:
    """Run a case under the recorder, with the allocator's history on; nothing is measured.

    Together they tell where the bytes are, and how memory was fragmented at the peak.

    Raises:
        MeasureError: the run has more events than are kept.
    """
    from tritter_mem.measure.recorded_run import MarkedRecorder
    from tritter_mem.measure.recorded_run import estimate_of as estimate_of_recorded

    meter = session.meter
    meter.keep_history()
    with MarkedRecorder(meter) as recorder:
        _as_far_as_memory_goes(work, session, recorder)
    return estimate_of_recorded(recorder, meter.history(), meter.name, _device_run(session))


def _as_far_as_memory_goes(work: Work, session: Session, watch: Watch) -> None:
    try:
        perform(work, session.meter.name, watch)
    except Exception as error:
        if find_out_of_memory(error) is None:
            raise


def _session(place: dict[str, Any]) -> Session:
    read = from_plain(Place, place)
    return Session(read, Driver(read.index), open_cuda)


def open_cuda(index: int) -> Meter:
    """Make a context on a CUDA device.

    Raises:
        MeasureError: CUDA cannot be used; says why, and what to do.
    """
    with _explained(index):
        return CudaMeter(index)


@contextmanager
def _explained(index: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise MeasureError(explain_cuda(str(error), index)) from error


def run_case(work: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """The job that measures: its `Estimate` as plain data, without components."""
    return asdict(measure(read_work(work), _session(place)))


def record_case(work: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """The job that tells where the bytes are: an `Estimate` of the recorded tensors."""
    return asdict(record(read_work(work), _session(place)))


def snapshot_case(work: dict[str, Any], place: dict[str, Any], path: str) -> None:
    """The job that runs a case with the allocator's history on, and writes PyTorch's snapshot.

    Where memory runs out, the snapshot shows why.
    """
    import torch

    session = _session(place)
    torch.cuda.memory._record_memory_history(
        enabled="all", context="alloc", stacks="python", max_entries=HISTORY_ENTRIES
    )
    _as_far_as_memory_goes(read_work(work), session, Timed())
    torch.cuda.synchronize()
    write_snapshot(torch.cuda.memory._snapshot(), Path(path))


def write_snapshot(snapshot: Any, path: Path) -> None:
    """Write a snapshot whole or not at all, in pickle's protocol 4: the viewer rejects the fifth.

    Raises:
        OutputError: the file cannot be written.
    """
    with open_atomically(path) as file:
        pickle.dump(snapshot, file, protocol=4)


def probe(index: int) -> dict[str, Any]:
    """The job that looks whether a device can be used: what PyTorch says of it."""
    import torch

    with _explained(index):
        CudaMeter(index)
        found = torch.cuda.get_device_properties(index)
    return {
        "title": found.name,
        "compute_capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "total_bytes": found.total_memory,
        "memory_kilohertz": found.memory_clock_rate,
        "memory_bus_lines": found.memory_bus_width,
    }
