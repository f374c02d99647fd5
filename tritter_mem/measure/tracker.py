"""Memory of a part of a program: now, and at its peak, compared with a budget.

Sizes here are decimal gigabytes (1 GB is 10^9 bytes), as in the memory specification.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from tritter_mem.devices.cuda import cuda_device
from tritter_mem.devices.device import AllocatedPeak
from tritter_mem.errors import MemoryBudgetExceeded, UsageError
from tritter_mem.units import GB

if TYPE_CHECKING:
    import torch

    from tritter_mem.simulation.recorder import Recorder

_DEVICES = re.compile(r"cuda(:\d{1,3})?|(cpu|meta)(:0)?")


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Memory at one moment, in decimal GB.

    Attributes:
        allocated: live tensors.
        reserved: what PyTorch's allocator holds of the device; on the CPU, which has no such
            allocator, the same as `allocated`.
        peak: largest `allocated` since the last reset.
        timestamp: seconds since the epoch.
    """

    allocated: float
    reserved: float
    peak: float
    timestamp: float


class MemoryTracker:
    """Tracks the memory of one device, from `reset` on.

    On CUDA it reads PyTorch's own statistics, which see all tensors of the process; what was before
    a reset of them by other code (`torch.cuda.reset_peak_memory_stats`) is hidden. On the CPU and
    on `meta` it records operators, so it sees the tensors made since the tracker was entered or
    first reset, on this thread, and no others.

        with MemoryTracker(device="cpu") as tracker:
            model(input_ids)
        print(f"Peak: {tracker.snapshot().peak:.2f} GB")

    Args:
        device: `cuda`, `cuda:1`, `cpu` or `meta`; default: the current CUDA device.

    Raises:
        MeasureError: the device is CUDA's, and there is none, or none of that number.
        UsageError: it is no such device.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        name = "cuda" if device is None else str(device)
        if not _DEVICES.fullmatch(name):
            raise UsageError(f"device: got {name!r}, expected cuda, cuda:1, cpu, meta")
        of = _CudaStatistics if name.startswith("cuda") else _Recording
        self._source: _Source = of(name)

    def __enter__(self) -> Self:
        self.reset()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the tracking: snapshots then show how it stood, until `reset` begins anew."""
        self._source.close()

    def reset(self) -> None:
        """Begin a new peak at what is allocated now; on the CPU, begin to record.

        Other trackers keep their peaks, also those of the same device.
        """
        self._source.reset()

    def snapshot(self) -> MemorySnapshot:
        """Read the memory now.

        Raises:
            UsageError: on the CPU, before the first reset.
        """
        found = self._source.read()
        return MemorySnapshot(
            allocated=found.allocated_bytes / GB,
            reserved=found.reserved_bytes / GB,
            peak=found.peak_bytes / GB,
            timestamp=time.time(),
        )

    def check_budget(self, budget_gb: float = 15.0) -> bool:
        """Compare the peak of allocated memory with a budget.

        Args:
            budget_gb: most allowed, in decimal GB; the default leaves headroom on a 16 GB card.

        Returns:
            True: the peak is within the budget.

        Raises:
            MemoryBudgetExceeded: it is not.
            UsageError: the budget is no size.
        """
        if not (math.isfinite(budget_gb) and budget_gb > 0):
            raise UsageError(f"budget_gb: got {budget_gb}, expected a size in GB above 0")
        peak = self.snapshot().peak
        if peak > budget_gb:
            raise MemoryBudgetExceeded(
                f"peak memory is {peak:.2f} GB, {peak - budget_gb:.2f} GB over the budget of "
                f"{budget_gb:g} GB: reduce context or batch, quantise the KV cache, or checkpoint "
                "activations"
            )
        return True


class _Tracked(NamedTuple):
    allocated_bytes: int
    reserved_bytes: int
    peak_bytes: int


class _Source(Protocol):
    """Where a tracker's figures come from."""

    def reset(self) -> None: ...
    def read(self) -> _Tracked: ...
    def close(self) -> None: ...


class _CudaStatistics:
    """PyTorch's statistics of a CUDA device."""

    def __init__(self, name: str) -> None:
        self._device = cuda_device(
            name, 'use MemoryTracker(device="cpu") to track tensors on the CPU'
        )
        self._peak = AllocatedPeak(self._device)
        self._end: _Tracked | None = None

    def reset(self) -> None:
        self._end = None
        self._peak.reset()

    def read(self) -> _Tracked:
        if self._end is not None:
            return self._end
        now = self._device.memory()
        return _Tracked(now.allocated_bytes, now.reserved_bytes, self._peak.read_bytes())

    def close(self) -> None:
        self._end = self.read()


class _Recording:
    """A recorder that runs from a reset to the next close."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._recorder: Recorder | None = None
        self._running = False

    def reset(self) -> None:
        if self._recorder is None or not self._running:
            self._recorder, self._running = self._entered(), True
        self._recorder.reset_peak()

    def read(self) -> _Tracked:
        if self._recorder is None:
            raise UsageError("the tracker was not started: call reset() first, or use it in `with`")
        live = self._recorder.allocated_bytes
        return _Tracked(live, live, self._recorder.peak_bytes)

    def close(self) -> None:
        if self._recorder is not None and self._running:
            self._running = False
            self._recorder.__exit__(None, None, None)

    def _entered(self) -> Recorder:
        from tritter_mem.simulation.recorder import Recorder

        return Recorder(self._name).__enter__()
