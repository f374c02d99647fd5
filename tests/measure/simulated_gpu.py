"""A GPU for tests: PyTorch's allocator, simulated, under a run on the CPU.

The work really runs; every storage it allocates is requested of the simulated allocator, whose
statistics have the shape of `torch.cuda.memory_stats`. A run on it goes the whole way that a run on
CUDA goes, the driver's count (NVML) included.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tritter_mem.allocator.simulator import CachingAllocator, OutOfMemoryError
from tritter_mem.measure.driver import Usage
from tritter_mem.measure.meter import Refused
from tritter_mem.trace.recorder import Recorder
from tritter_mem.units import MiB

CREATED, FIRST_KERNEL, LOADED = 300 * MiB, 310 * MiB, 400 * MiB
"""What the context takes when it is made, after the first kernel, and after the warm-up."""
OTHERS = 100 * MiB


class SimulatedGpu(Recorder):
    """A meter whose allocator is fed by what runs on the CPU while it is entered."""

    name = "cpu"

    def __init__(self, total_bytes: int) -> None:
        super().__init__("cpu")
        self.total_bytes = total_bytes
        self.context_bytes = CREATED
        self.limits: list[int] = []
        self._allocator = CachingAllocator(capacity_bytes=total_bytes)
        self._blocks: dict[int, Any] = {}
        self._calls = {"num_device_alloc": 0, "num_device_free": 0}
        self._told: Callable[[Refused], None] = lambda refused: None

    def first_kernel(self) -> None:
        self.context_bytes = FIRST_KERNEL

    def synchronize(self) -> None:
        """The CPU has always done all."""

    def stats(self) -> Mapping[str, int]:
        named = self._allocator.counters.named()
        return named | {name: named[name] + before for name, before in self._calls.items()}

    def reset_peaks(self) -> None:
        self._calls = {name: self.stats()[name] for name in self._calls}  # it forgets them
        self._allocator.counters.start_peaks()

    def largest_free_block_bytes(self) -> int:
        return self._allocator.peak_moment.largest_free_block_bytes

    def limit(self, limit_bytes: int) -> None:
        self.limits.append(limit_bytes)
        self._allocator.driver_limit_bytes = limit_bytes
        if self._allocator.reserved_bytes > limit_bytes:
            self._allocator.empty_cache()

    def on_refusal(self, told: Callable[[Refused], None]) -> None:
        self._told = told

    def usage(self) -> Usage:
        """What the driver would count."""
        used = self.context_bytes + self._allocator.reserved_bytes
        return Usage(device_bytes=OTHERS + used, process_bytes=used)

    def _came(self, nbytes: int, operator: str) -> int:
        try:
            block = self._allocator.malloc(nbytes)
        except OutOfMemoryError as error:
            self._told(
                Refused(
                    requested_bytes=error.segment_bytes,
                    allocated_bytes=error.allocated_bytes,
                    reserved_bytes=error.reserved_bytes,
                    limit_bytes=error.limit_bytes,
                )
            )
            raise torch.OutOfMemoryError(f"CUDA out of memory. {error}") from None
        number = super()._came(nbytes, operator)
        self._blocks[number] = block
        return number

    def _freed(self, number: int, nbytes: int) -> None:
        self._allocator.free(self._blocks.pop(number))
        super()._freed(number, nbytes)


class SimulatedDriver:
    """NVML's count of the simulated GPU; before there is one, what others hold."""

    def __init__(self) -> None:
        self.gpu: SimulatedGpu | None = None

    def usage(self) -> Usage:
        return Usage(device_bytes=OTHERS) if self.gpu is None else self.gpu.usage()
