"""A device of a given capacity that runs on the CPU: what runs out of memory on it would on a GPU.

Every storage that a run allocates is requested of PyTorch's caching allocator, simulated. Where the
capacity does not suffice, the run gets PyTorch's own error, from the operator that asked.
"""

from __future__ import annotations

from collections import Counter

import torch

from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.devices.cuda import RandomState, Reading
from tritter_mem.results.run import COMPONENTS, Kind
from tritter_mem.simulation.recorder import Recorder


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

    def __init__(self, capacity_bytes: int, settings: AllocatorSettings | None = None) -> None:
        super().__init__("cpu")
        self._allocator = CachingAllocator(settings, capacity_bytes)
        self._blocks: dict[int, Block] = {}

    def read(self) -> Reading:
        """The memory now."""
        reserved = self._allocator.reserved_bytes
        free = self._allocator.limit_bytes - reserved
        return Reading(self._allocator.allocated_bytes, reserved, free)

    def synchronize(self) -> None:
        """The CPU has always done all."""

    def empty_cache(self) -> None:
        """Give unused segments back to the driver."""
        self._allocator.empty_cache()

    def components(self) -> dict[str, int]:
        """What is alive now, as the model labels it."""
        found: Counter[int] = Counter()
        for component, nbytes in self.log.changes():
            found[component] += nbytes
        return {COMPONENTS[component]: nbytes for component, nbytes in found.items() if nbytes}

    def random_state(self) -> RandomState:
        """Of the CPU's generator."""
        return (torch.get_rng_state(),)

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""
        torch.set_rng_state(state[0])

    def _came(self, nbytes: int, operator: str) -> int:
        try:
            block = self._allocator.malloc(nbytes)
        except OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"simulated {error} ({operator})") from None
        number = super()._came(nbytes, operator)
        self._blocks[number] = block
        return number

    def _freed(self, number: int, nbytes: int) -> None:
        self._allocator.free(self._blocks.pop(number))
        super()._freed(number, nbytes)
