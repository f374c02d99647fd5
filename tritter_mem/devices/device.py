"""What measuring, the memory manager and the tracker ask of a device.

`cuda.CudaDevice` is a real one, `oom.simulated_device.SimulatedDevice` one that runs on the CPU.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tritter_mem.results.run import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from tritter_mem.allocator.snapshot import DeviceSnapshot

STATISTICS = (
    "allocated_bytes.all.peak", "reserved_bytes.all.peak", "requested_bytes.all.peak",
    "active_bytes.all.peak", "inactive_split_bytes.all.peak",
    "allocated_bytes.all.current", "reserved_bytes.all.current",
    "num_alloc_retries", "num_device_alloc", "num_device_free",
)  # fmt: skip
"""What is read of `torch.cuda.memory_stats`; the last three count from the process's start."""

RandomState = tuple["Tensor", ...]


class DeviceMemory(NamedTuple):
    """A device's memory now, in bytes.

    Attributes:
        allocated_bytes: live tensors.
        reserved_bytes: what PyTorch's allocator holds for them.
        free_bytes: what it could still get of the device.
    """

    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int

    def holds(self, size_bytes: int) -> bool:
        """Whether there is room for so much more, in the cache or on the device."""
        return size_bytes <= self.reserved_bytes - self.allocated_bytes + self.free_bytes


class Refused(NamedTuple):
    """A request that the driver, or the cap, refused for good.

    Attributes:
        requested_bytes: the segment that the allocator asked for.
        allocated_bytes: live blocks at that moment.
        reserved_bytes: what the allocator then held.
        limit_bytes: the cap, or the device's memory.
    """

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    limit_bytes: int


class Calls(NamedTuple):
    """Requests that the allocator has served, and blocks that were given back to it."""

    allocations: int
    frees: int


class Device(Protocol):
    """One device and PyTorch's allocator on it."""

    @property
    def kind(self) -> Kind:
        """What its figures are: measured, rehearsed or simulated."""

    @property
    def name(self) -> str:
        """As PyTorch takes it, such as `cuda:0`."""

    @property
    def total_bytes(self) -> int:
        """The device's memory."""

    def memory(self) -> DeviceMemory:
        """The memory of this process now."""

    def used_bytes(self) -> int:
        """What all processes together have of the device now, as CUDA says."""

    def stats(self) -> Mapping[str, int]:
        """The allocator's figures, `STATISTICS` among them; none before the first use."""

    def reset_peaks(self) -> None:
        """Let every peak start at what is there now."""

    def synchronize(self) -> None:
        """Wait for all that was begun, on every stream."""

    def first_kernel(self) -> None:
        """Launch a kernel, and leave nothing allocated or reserved."""

    def empty_cache(self) -> None:
        """Give unused memory back to the driver."""

    def limit(self, limit_bytes: int) -> None:
        """Cap what the allocator may hold; what it caches beyond goes back."""

    def on_refusal(self, callback: Callable[[Refused], None]) -> None:
        """Call `callback` at each out-of-memory error, before anything is unwound."""

    def keep_history(self) -> None:
        """Let the allocator note every request from now on."""

    def calls(self) -> Calls:
        """Of the allocator, from the process's start."""

    def history(self) -> DeviceSnapshot:
        """What the allocator noted, and how it stands now.

        Raises:
            MeasureError: it is not all there.
        """

    def random_state(self) -> RandomState:
        """The state of PyTorch's generators that work here may draw from."""

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""


_LOCK = threading.Lock()
_FOLLOWING: weakref.WeakSet[AllocatedPeak] = weakref.WeakSet()


class AllocatedPeak:
    """The most that was allocated on a device since the last reset of this very object.

    PyTorch keeps one peak for a device, which a reset by one reader would hide from the others.

    Args:
        device: whose peak it is.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._seen_bytes = device, 0
        with _LOCK:
            _FOLLOWING.add(self)

    def reset(self) -> None:
        """Begin at what is allocated now."""
        with _LOCK:
            for other in _FOLLOWING:
                if other._device.name == self._device.name:
                    other._look()
            self._device.reset_peaks()
            self._seen_bytes = 0

    def read_bytes(self) -> int:
        """The peak so far."""
        with _LOCK:
            return self._look()

    def _look(self) -> int:
        peak = self._device.stats().get("allocated_bytes.all.peak", 0)
        self._seen_bytes = max(self._seen_bytes, peak)
        return self._seen_bytes
