"""Reading PyTorch's allocator on a device, and what else a measurement asks of one."""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tritter_mem.devices.nvml import Usage
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.oom.components import known_components
from tritter_mem.results.run import Kind
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tritter_mem.allocator.snapshot import DeviceSnapshot


def allocator_limit_bytes(budget_bytes: int, context_bytes: int, total_bytes: int) -> int:
    """What PyTorch may reserve, so that it and the context stay within a budget.

    Args:
        budget_bytes: for the whole process.
        context_bytes: what the context takes of it.
        total_bytes: the device's memory, which is the most there can be.

    Raises:
        MeasureError: the context leaves nothing.
    """
    left = budget_bytes - context_bytes
    if left <= 0:
        raise MeasureError(
            f"budget: found {format_bytes(budget_bytes)}, of which the CUDA context alone takes "
            f"{format_bytes(context_bytes)} on this device; give it more (--budget)"
        )
    return min(left, total_bytes)


def memory_fraction(limit_bytes: int, total_bytes: int) -> float:
    """The fraction of a device's memory by which PyTorch comes to a limit, to the byte.

    PyTorch truncates `fraction * total` (`setMemoryFraction` in `CUDACachingAllocator.cpp`), so the
    plain quotient may come out one byte short.
    """
    fraction = limit_bytes / total_bytes
    while int(fraction * total_bytes) < limit_bytes:
        fraction = math.nextafter(fraction, math.inf)
    return min(fraction, 1.0)


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
    from tritter_mem.allocator.snapshot import devices_of

    found = next((device for device in devices_of(snapshot) if device.device == index), None)
    if found is None or not len(found.trace):
        raise MeasureError("PyTorch's allocator kept no history of the run")
    if len(found.trace) >= MOST_EVENTS:
        raise MeasureError(
            f"the run has more than the {MOST_EVENTS:,} memory events that are kept: measure a "
            "shorter one (a shorter context, fewer new tokens)"
        )
    return found


_AT_MOST = 1.5
"""A new context by what is assumed for the card. Another process has one of its own beside it."""


def context_bytes(before: Usage, now: Usage, reserved_bytes: int) -> int | None:
    """What a process takes of a device beside what its allocator reserves, by NVML.

    By the process's own count where the driver gives one, else by what the device has in use more
    than before; what other processes take or give back meanwhile then counts, too.
    """
    if now.process_bytes is not None:
        return max(now.process_bytes - reserved_bytes, 0)
    if now.device_bytes is None or before.device_bytes is None:
        return None
    return max(now.device_bytes - before.device_bytes - reserved_bytes, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByFreeMemory:
    """The second way: by what the device has in use as CUDA counts it, all processes together.

    Attributes:
        created_bytes: in use when the context was new, and nothing reserved.
        assumed_bytes: what is assumed for a context on the card.
    """

    created_bytes: int
    assumed_bytes: int

    @property
    def alone(self) -> bool:
        """Whether what was in use can be one context."""
        return self.created_bytes <= _AT_MOST * self.assumed_bytes

    def context_bytes(self, used_bytes: int, reserved_bytes: int) -> int | None:
        """The context now; None where other processes' memory cannot be told from it."""
        return max(used_bytes - reserved_bytes, 0) if self.alone else None

    def note(self) -> str:
        """How the context's figure was come by, in words."""
        if self.alone:
            return (
                "CUDA context: by what the device has free, as NVML does not say; what other "
                "processes take meanwhile counts, too"
            )
        return (
            f"CUDA context: not measured, {format_bytes(self.assumed_bytes)} assumed: the device "
            f"had {format_bytes(self.created_bytes)} in use when it was made, other processes' "
            "memory among it, which only NVML tells apart"
        )


_LOCK = threading.Lock()
_FOLLOWING: weakref.WeakSet[CudaPeak] = weakref.WeakSet()


class CudaPeak:
    """The most that was allocated on a device since the last reset of this very object.

    Args:
        device: a CUDA device with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._seen_bytes = device, 0
        with _LOCK:
            _FOLLOWING.add(self)

    def reset(self) -> None:
        """Begin at what is allocated now."""
        from torch import cuda

        with _LOCK:
            for other in _FOLLOWING:
                if other._device == self._device:
                    other._look()
            cuda.reset_peak_memory_stats(self._device)
            self._seen_bytes = 0

    def read_bytes(self) -> int:
        """The peak so far."""
        with _LOCK:
            return self._look()

    def _look(self) -> int:
        from torch import cuda

        self._seen_bytes = max(self._seen_bytes, cuda.max_memory_allocated(self._device))
        return self._seen_bytes


_NAMES = re.compile(r"cuda(:\d{1,3})?")
RandomState = tuple["Tensor", ...]


class Reading(NamedTuple):
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


class Device(Protocol):
    """What a manager asks of a device."""

    kind: Kind
    """What its figures are: measured, or simulated."""

    def read(self) -> Reading:
        """The memory now."""

    def synchronize(self) -> None:
        """Wait for all that was begun, on every stream."""

    def empty_cache(self) -> None:
        """Give unused memory back to the driver."""

    def components(self) -> dict[str, int]:
        """What is alive now: component to bytes."""

    def random_state(self) -> RandomState:
        """The state of PyTorch's generators that work here may draw from."""

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""


def cuda_device(name: str, instead: str) -> torch.device:
    """A CUDA device with its index: `cuda` is the current one, and stays so.

    Args:
        name: `cuda` or `cuda:1`.
        instead: what to use where there is no CUDA device.

    Raises:
        MeasureError: there is no CUDA device, or none of that number.
        UsageError: it is no such name.
    """
    import torch

    if not _NAMES.fullmatch(name):
        raise UsageError(f"device: found {name!r}; allowed: cuda, cuda:1, and so on")
    if not torch.cuda.is_available():
        raise MeasureError(f"no CUDA device was found: {instead}")
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MeasureError(f"device: found {name}; there is {there}")
    return torch.device("cuda", index)


class CudaDevice:
    """One CUDA device, as PyTorch sees it in this process.

    Args:
        name: `cuda` or `cuda:1`.

    Raises:
        MeasureError: there is no CUDA device, or none of that number.
        UsageError: it is no such name.
    """

    kind: Kind = "measured"

    def __init__(self, name: str = "cuda") -> None:
        self._device = cuda_device(
            name, "hand over SimulatedDevice(capacity_bytes) to try the ladder on the CPU"
        )

    def read(self) -> Reading:
        """The memory now; `free_bytes` is below the process's cap, where there is one."""
        from torch import cuda

        free, total = cuda.mem_get_info(self._device)
        reserved = cuda.memory_reserved(self._device)
        cap = int(cuda.get_per_process_memory_fraction(self._device) * total)
        return Reading(
            cuda.memory_allocated(self._device), reserved, max(0, min(free, cap - reserved))
        )

    def synchronize(self) -> None:
        """Wait for all that was begun, on every stream."""
        import torch

        torch.cuda.synchronize(self._device)

    def empty_cache(self) -> None:
        """Give unused segments back to the driver."""
        import torch

        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    def components(self) -> dict[str, int]:
        """What Python's objects show to be alive; the rest of what is allocated is activations.

        The backward pass keeps its tensors where Python does not see them.
        """
        found = known_components(self._device)
        rest = self.read().allocated_bytes - sum(found.values())
        found["activations"] = found.get("activations", 0) + max(rest, 0)
        return found

    def random_state(self) -> RandomState:
        """Of the CPU's generator and the device's."""
        import torch

        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""
        import torch

        torch.set_rng_state(state[0])
        torch.cuda.set_rng_state(state[1], self._device)
