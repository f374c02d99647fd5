"""Reading PyTorch's allocator on a device, and what else a measurement asks of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from tritter_mem.measure.limit import memory_fraction

FIGURES = (
    "allocated_bytes.all.peak", "reserved_bytes.all.peak", "requested_bytes.all.peak",
    "active_bytes.all.peak", "inactive_split_bytes.all.peak",
    "allocated_bytes.all.current", "reserved_bytes.all.current", "inactive_split_bytes.all.current",
    "num_alloc_retries", "num_device_alloc", "num_device_free",
)  # fmt: skip
"""What is read of `torch.cuda.memory_stats`; the last three count from the process's start."""


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


class Meter(Protocol):
    """A device, as a measurement uses it."""

    @property
    def name(self) -> str:
        """As PyTorch takes it, such as `cuda:0`."""

    @property
    def total_bytes(self) -> int:
        """The device's memory."""

    def first_kernel(self) -> None:
        """Launch a kernel, and leave nothing allocated or reserved."""

    def synchronize(self) -> None:
        """Wait until the device has done all."""

    def stats(self) -> Mapping[str, int]:
        """The allocator's figures, `FIGURES` among them."""

    def reset_peaks(self) -> None:
        """Let every peak start at what is there now."""

    def largest_free_block_bytes(self) -> int:
        """Of the allocator's cache."""

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

    def largest_free_block_bytes(self) -> int:
        """Of the allocator's cache."""
        import torch

        segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()
        own = (segment for segment in segments if segment["device"] == self._index)
        return largest_free_block_bytes(list(own))

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


def largest_free_block_bytes(segments: list[dict[str, Any]]) -> int:
    """The largest free block of segments, as `torch.cuda.memory_snapshot` lists them."""
    free = (
        block["size"]
        for segment in segments
        for block in segment["blocks"]
        if block["state"] == "inactive"
    )
    return max(free, default=0)
