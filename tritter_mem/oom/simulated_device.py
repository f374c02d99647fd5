"""A device of a given capacity that runs on the CPU: what runs out of memory on it would on a GPU.

Every storage that a run allocates is requested of PyTorch's caching allocator, simulated. Where the
capacity does not suffice, the run gets PyTorch's own error, from the operator that asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from tritter_mem.allocator.blocks import Block
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
from tritter_mem.devices.device import Calls, DeviceMemory, RandomState, Refused
from tritter_mem.results.run import COMPONENTS, Kind
from tritter_mem.results.segments import Stream
from tritter_mem.simulation.recorder import Recorder

_FORGOTTEN = ("num_device_alloc", "num_device_free")
"""What the allocator's counters forget when peaks start anew; PyTorch's go on."""


class SimulatedDevice(Recorder):
    """Counts the storages of the CPU, on this thread, while it is entered; refuses one too many.

        with SimulatedDevice(2 * GB) as device:
            model = Model()
            manager = MemoryManager(budget_gb=2, headroom_gb=0, device=device)

    Only storages made inside count, so the model is made inside. An operator has run by the time
    that its result is refused, so the host must have the memory all the same.

    Args:
        capacity_bytes: what the allocator can get: a card's memory less its context.
        settings: of the allocator.
    """

    kind: Kind = "simulated"
    name = "cpu"

    def __init__(self, capacity_bytes: int, settings: AllocatorSettings | None = None) -> None:
        super().__init__(self.name)
        self.total_bytes = capacity_bytes
        self._settings = settings or AllocatorSettings()
        self._allocator = CachingAllocator(settings, capacity_bytes, observer=self._note_segment)
        self._blocks: dict[int, Block] = {}
        self._calls_before = dict.fromkeys(_FORGOTTEN, 0)
        self._trace: Trace | None = None
        self._refusal_callback: Callable[[Refused], None] | None = None

    def memory(self) -> DeviceMemory:
        """The memory now."""
        reserved = self._allocator.reserved_bytes
        free = self._allocator.limit_bytes - reserved
        return DeviceMemory(self._allocator.allocated_bytes, reserved, free)

    def used_bytes(self) -> int:
        """What the allocator has reserved: there is no context, and no other process."""
        return self._allocator.reserved_bytes

    def stats(self) -> Mapping[str, int]:
        """In the shape of `torch.cuda.memory_stats`."""
        named = self._allocator.counters.named()
        return named | {name: named[name] + before for name, before in self._calls_before.items()}

    def reset_peaks(self) -> None:
        """Let every peak start at what is there now."""
        stats = self.stats()
        self._calls_before = {name: stats[name] for name in _FORGOTTEN}
        self._allocator.counters.start_peaks()

    def synchronize(self) -> None:
        """The CPU has always done all."""

    def first_kernel(self) -> None:
        """The CPU loads no kernels."""

    def empty_cache(self) -> None:
        """Give unused segments back to the driver."""
        self._allocator.empty_cache()

    def limit(self, limit_bytes: int) -> None:
        """Cap what the allocator may hold; what it caches beyond goes back."""
        self._allocator.driver_limit_bytes = limit_bytes
        if self._allocator.reserved_bytes > limit_bytes:
            self._allocator.empty_cache()

    def on_refusal(self, callback: Callable[[Refused], None]) -> None:
        """Call `callback` at each out-of-memory error, before anything is unwound."""
        self._refusal_callback = callback

    def keep_history(self) -> None:
        """Let the allocator note every request from now on."""
        self._trace = Trace()

    def calls(self) -> Calls:
        """Of the allocator, since the device was made."""
        named = self._allocator.counters.named()
        return Calls(named["allocation.all.allocated"], named["allocation.all.freed"])

    def history(self) -> DeviceSnapshot:
        """What the allocator noted since `keep_history`, and how it stands now."""
        return DeviceSnapshot(
            device=0,
            segments=tuple(self._allocator.segments()),
            trace=self._trace or Trace(),
            settings=self._settings,
        )

    def random_state(self) -> RandomState:
        """Of the CPU's generator."""
        return (torch.get_rng_state(),)

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""
        torch.set_rng_state(state[0])

    def recorded_components(self) -> dict[str, int]:
        """What is alive now, as the model labels it: component to bytes."""
        found: Counter[int] = Counter()
        for component, nbytes in self.log.changes():
            found[component] += nbytes
        return {COMPONENTS[component]: nbytes for component, nbytes in found.items() if nbytes}

    def _came(self, nbytes: int, operator: str) -> int:
        block = self._allocate(nbytes, operator)
        number = super()._came(nbytes, operator)
        self._blocks[number] = block
        return number

    def _allocate(self, nbytes: int, operator: str) -> Block:
        try:
            block = self._allocator.malloc(nbytes)
        except OutOfMemoryError as error:
            self._note(OOM, 0, nbytes)
            if self._refusal_callback is not None:
                self._refusal_callback(
                    Refused(
                        requested_bytes=error.segment_bytes,
                        allocated_bytes=error.allocated_bytes,
                        reserved_bytes=error.reserved_bytes,
                        limit_bytes=error.limit_bytes,
                    )
                )
            raise torch.OutOfMemoryError(f"simulated {error} ({operator})") from None
        self._note(ALLOC, block.address, nbytes)
        return block

    def _freed(self, number: int, nbytes: int) -> None:
        block = self._blocks.pop(number)
        self._allocator.free(block)
        for action in (FREE_REQUESTED, FREE_COMPLETED):
            self._note(action, block.address, nbytes)
        super()._freed(number, nbytes)

    def _note_segment(self, action: Action, address: int, size: int, stream: Stream) -> None:
        self._note(ACTIONS[action], address, size, stream)

    def _note(self, action: int, address: int, size: int, stream: Stream = 0) -> None:
        if self._trace is not None:
            self._trace.append(action, address, size, stream)
