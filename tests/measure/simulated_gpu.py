"""A GPU for tests: PyTorch's allocator, simulated, under a run on the CPU.

The work really runs; every storage it allocates is requested of the simulated allocator, whose
statistics have the shape of `torch.cuda.memory_stats`. A run on it goes the whole way that a run on
CUDA goes, the driver's count (NVML) included.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tritter_mem.allocator.caching_allocator import Action, CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.snapshot import (
    ACTIONS,
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    OOM,
    DeviceSnapshot,
    Trace,
)
from tritter_mem.devices.cuda import Calls, Refused
from tritter_mem.devices.nvml import Usage
from tritter_mem.results.segments import Stream
from tritter_mem.simulation.operators import Operator
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.units import MiB

CREATED, FIRST_KERNEL, LOADED = 300 * MiB, 310 * MiB, 400 * MiB
"""What the context takes when it is made, after the first kernel, and after the warm-up."""
OTHERS = 100 * MiB


class SimulatedGpu(Recorder):
    """A meter whose allocator is fed by what runs on the CPU while it is entered.

    `inside` is told of each operator, and may allocate as a library would.
    """

    name = "cpu"

    def __init__(
        self,
        total_bytes: int,
        inside: Callable[["SimulatedGpu", str], None] = lambda gpu, operator: None,
    ) -> None:
        super().__init__("cpu")
        self._inside = inside
        self.total_bytes = total_bytes
        self.context_bytes = CREATED
        self.others_bytes = OTHERS
        self.limits: list[int] = []
        self._allocator = CachingAllocator(capacity_bytes=total_bytes, observer=self._note)
        self._trace: Trace | None = None
        self._blocks: dict[int, Any] = {}
        self._calls = {"num_device_alloc": 0, "num_device_free": 0}
        self._told: Callable[[Refused], None] = lambda refused: None

    def used_bytes(self) -> int:
        return self.others_bytes + self.context_bytes + self._allocator.reserved_bytes

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

    def keep_history(self) -> None:
        self._trace = Trace()

    def calls(self) -> Calls:
        named = self._allocator.counters.named()
        return Calls(named["allocation.all.allocated"], named["allocation.all.freed"])

    def history(self) -> DeviceSnapshot:
        assert self._trace is not None
        segments = tuple(self._allocator.segments())
        return DeviceSnapshot(
            device=0, segments=segments, trace=self._trace, settings=AllocatorSettings()
        )

    def _note(self, action: Action, address: int, size: int, stream: Stream) -> None:
        self._note_event(ACTIONS[action], address, size, stream)

    def _note_event(self, action: int, address: int, size: int, stream: Stream = 0) -> None:
        if self._trace is not None:
            self._trace.append(action, address, size, stream)

    def allocate_inside(self, nbytes: int) -> None:
        """What a library takes in an operator, which no tensor holds; it is kept."""
        block = self._allocator.malloc(nbytes)
        self._note_event(ALLOC, block.address, nbytes)

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

    def _ran(self, operator: Operator, inputs: Any, result: Any) -> None:
        super()._ran(operator, inputs, result)
        self._inside(self, operator.name)

    def _came(self, nbytes: int, operator: str) -> int:
        try:
            block = self._allocator.malloc(nbytes)
        except OutOfMemoryError as error:
            self._note_event(OOM, 0, nbytes)
            self._told(
                Refused(
                    requested_bytes=error.segment_bytes,
                    allocated_bytes=error.allocated_bytes,
                    reserved_bytes=error.reserved_bytes,
                    limit_bytes=error.limit_bytes,
                )
            )
            raise torch.OutOfMemoryError(f"CUDA out of memory. {error}") from None
        self._note_event(ALLOC, block.address, nbytes)
        number = super()._came(nbytes, operator)
        self._blocks[number] = block
        return number

    def _freed(self, number: int, nbytes: int) -> None:
        block = self._blocks.pop(number)
        self._allocator.free(block)
        for action in (FREE_REQUESTED, FREE_COMPLETED):
            self._note_event(action, block.address, nbytes)
        super()._freed(number, nbytes)


class SimulatedDriver:
    """NVML's count of the simulated GPU; before there is one, what others hold."""

    def __init__(self) -> None:
        self.gpu: SimulatedGpu | None = None

    def usage(self) -> Usage:
        return Usage(device_bytes=OTHERS) if self.gpu is None else self.gpu.usage()
