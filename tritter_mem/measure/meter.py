"""Reading PyTorch's allocator on a device, and what else a measurement asks of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tritter_mem.errors import MeasureError
from tritter_mem.measure.limit import memory_fraction

if TYPE_CHECKING:
    from tritter_mem.allocator.snapshot_in import DeviceSnapshot

FIGURES = (
    "allocated_bytes.all.peak", "reserved_bytes.all.peak", "requested_bytes.all.peak",
    "active_bytes.all.peak", "inactive_split_bytes.all.peak",
    "allocated_bytes.all.current", "reserved_bytes.all.current",
    "num_alloc_retries", "num_device_alloc", "num_device_free",
)  # fmt: skip
"""What is read of `torch.cuda.memory_stats`; the last three count from the process's start."""
MOST_EVENTS = 2_000_000
"""Events of a history that is replayed; PyTorch lists them in about a gigabyte of host memory."""


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


class Meter(Protocol):
    """A device, as a measurement uses it."""

    @property
    def name(self) -> str:
        """As PyTorch takes it, such as `cuda:0`."""

    @property
    def total_bytes(self) -> int:
        """The device's memory."""

    def used_bytes(self) -> int:
        """What all processes together have of the device now, as CUDA says."""

    def first_kernel(self) -> None:
        """Launch a kernel, and leave nothing allocated or reserved."""

    def synchronize(self) -> None:
        """Wait until the device has done all."""

    def stats(self) -> Mapping[str, int]:
        """The allocator's figures, `FIGURES` among them."""

    def reset_peaks(self) -> None:
        """Let every peak start at what is there now."""

    def keep_history(self) -> None:
        """Let the allocator note every request from now on."""

    def calls(self) -> Calls:
        """Of the allocator, from the process's start."""

    def history(self) -> DeviceSnapshot:
        """What the allocator noted, and how it stands now.

        Raises:
            MeasureError: it is not all there.
        """

    def limit(self, limit_bytes: int) -> None:
        """Cap what the allocator may hold; what it caches beyond goes back."""

    def on_refusal(self, told: Callable[[Refused], None]) -> None:
        """Call `told` at each out-of-memory error, before anything is unwound."""


class CudaMeter:
    """A CUDA device; making one makes the process's context on it.

    Args:
        index: of the device.

    Raises:
        RuntimeError: CUDA cannot be used; PyTorch says why.
    """

    def __init__(self, index: int) -> None:
        import torch

        torch.cuda.init()
        torch.cuda.set_device(index)
        self._index = index
        self.name = f"cuda:{index}"
        self.total_bytes = int(torch.cuda.mem_get_info(index)[1])

    def used_bytes(self) -> int:
        """What all processes together have of the device now, as CUDA says."""
        import torch

        free, total = torch.cuda.mem_get_info(self._index)
        return int(total - free)

    def first_kernel(self) -> None:
        """Launch a kernel, and leave nothing allocated or reserved."""
        import torch

        torch.zeros(1, device=self.name)
        self.synchronize()
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait until the device has done all."""
        import torch

        torch.cuda.synchronize(self._index)

    def stats(self) -> Mapping[str, int]:
        """`torch.cuda.memory_stats`."""
        import torch

        return torch.cuda.memory_stats(self._index)

    def reset_peaks(self) -> None:
        """Let every peak start at what is there now."""
        import torch

        torch.cuda.reset_peak_memory_stats(self._index)

    def keep_history(self) -> None:
        """Let the allocator note every request from now on, without who asked."""
        import torch

        torch.cuda.memory._record_memory_history(
            enabled="all", context=None, stacks="python", max_entries=MOST_EVENTS
        )

    def calls(self) -> Calls:
        """From the nested statistics, which take ten microseconds: it is asked at each operator."""
        import torch

        found = torch._C._cuda_memoryStats(self._index)["allocation"]["all"]
        return Calls(found["allocated"], found["freed"])

    def history(self) -> DeviceSnapshot:
        """What the allocator noted, and how it stands now.

        Raises:
            MeasureError: it is not all there.
        """
        import torch

        self.synchronize()
        return of_device(torch.cuda.memory._snapshot(), self._index)

    def limit(self, limit_bytes: int) -> None:
        """Cap what the allocator may hold; what it caches beyond goes back."""
        import torch

        fraction = memory_fraction(limit_bytes, self.total_bytes)
        torch.cuda.set_per_process_memory_fraction(fraction, self._index)
        if torch.cuda.memory_reserved(self._index) > limit_bytes:
            torch.cuda.empty_cache()

    def on_refusal(self, told: Callable[[Refused], None]) -> None:
        """Call `told` at each out-of-memory error, before anything is unwound."""
        import torch

        def observe(device: int, requested: int, limit: int, free: int) -> None:
            del device, free
            stats = self.stats()
            told(
                Refused(
                    requested_bytes=requested,
                    allocated_bytes=stats["allocated_bytes.all.current"],
                    reserved_bytes=stats["reserved_bytes.all.current"],
                    limit_bytes=min(limit, self.total_bytes),
                )
            )

        torch._C._cuda_attach_out_of_memory_observer(observe)  # type: ignore[attr-defined]


def of_device(snapshot: dict[str, Any], index: int) -> DeviceSnapshot:
    """One device of what `torch.cuda.memory._snapshot` gives.

    Raises:
        MeasureError: the history has lost its beginning, or there is none.
    """
    from tritter_mem.allocator.snapshot_in import devices_of

    found = next((device for device in devices_of(snapshot) if device.device == index), None)
    if found is None or not len(found.trace):
        raise MeasureError("PyTorch's allocator kept no history of the run")
    if len(found.trace) >= MOST_EVENTS:
        raise MeasureError(
            f"the run has more than the {MOST_EVENTS:,} memory events that are kept: measure a "
            "shorter one (a shorter context, fewer new tokens)"
        )
    return found
