"""Memory of a stretch of a program: now, and at its peak, held against a budget.

Sizes here are decimal gigabytes (1 GB is 10^9 bytes), as in the memory specification.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from tritter_mem.errors import MeasureError, MemoryBudgetExceeded, UsageError
from tritter_mem.units import GB

if TYPE_CHECKING:
    import torch


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

    On CUDA it reads PyTorch's own statistics, which see all tensors of the process. On the CPU and
    on `meta` it records operators, so it sees the tensors made since the tracker was entered or
    first reset, on this thread, and no others.

        with MemoryTracker(device="cpu") as tracker:
            model(input_ids)
        print(f"Peak: {tracker.snapshot().peak:.2f} GB")

    Args:
        device: `cuda`, `cuda:1`, `cpu` or `meta`; default: the current CUDA device.

    Raises:
        MeasureError: the device is CUDA's, and there is none.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        import torch

        chosen = torch.device("cuda" if device is None else device)
        self._source: _Source = _Cuda(chosen) if chosen.type == "cuda" else _Recording(chosen)

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
        """Stop recording, on the CPU; snapshots then show the end. On CUDA there is no need to."""
        self._source.close()

    def reset(self) -> None:
        """Begin a new peak at what is allocated now; on the CPU, begin to record."""
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
        """Hold the peak of allocated memory against a budget.

        Args:
            budget_gb: most allowed, in decimal GB; the default leaves headroom on a 16 GB card.

        Returns:
            True: the peak is within the budget.

        Raises:
            MemoryBudgetExceeded: it is not.
            UsageError: the budget is no size.
        """
        if not (math.isfinite(budget_gb) and budget_gb > 0):
            raise UsageError(f"budget_gb: found {budget_gb}; allowed: a size in GB above 0")
        peak = self.snapshot().peak
        if peak > budget_gb:
            raise MemoryBudgetExceeded(
                f"peak memory is {peak:.2f} GB, {peak - budget_gb:.2f} GB over the budget of "
                f"{budget_gb:g} GB: reduce context or batch, quantise the KV cache, or checkpoint "
                "activations"
            )
        return True


class _Reading(NamedTuple):
    allocated_bytes: int
    reserved_bytes: int
    peak_bytes: int


class _Source(Protocol):
    """Where a tracker's figures come from."""

    def reset(self) -> None: ...
    def read(self) -> _Reading: ...
    def close(self) -> None: ...


class _Cuda:
    """PyTorch's statistics of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        import torch

        if not torch.cuda.is_available():
            raise MeasureError(
                'no CUDA device was found: use MemoryTracker(device="cpu") to track tensors on '
                "the CPU"
            )
        self._device = device

    def reset(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> _Reading:
        from torch import cuda

        return _Reading(
            cuda.memory_allocated(self._device),
            cuda.memory_reserved(self._device),
            cuda.max_memory_allocated(self._device),
        )

    def close(self) -> None:
        """There is nothing to stop: PyTorch keeps these statistics always."""


class _Recording:
    """A recorder that runs from the first reset on."""

    def __init__(self, device: torch.device) -> None:
        from tritter_mem.trace.recorder import Recorder

        self._recorder = Recorder(device)
        self._state = "new"

    def reset(self) -> None:
        if self._state == "new":
            self._recorder.__enter__()
            self._state = "running"
        self._recorder.reset_peak()

    def read(self) -> _Reading:
        if self._state == "new":
            raise UsageError("the tracker has not begun: call reset() first, or use it in `with`")
        live = self._recorder.allocated_bytes
        return _Reading(live, live, self._recorder.peak_bytes)

    def close(self) -> None:
        if self._state == "running":
            self._recorder.__exit__(None, None, None)
            self._state = "closed"
