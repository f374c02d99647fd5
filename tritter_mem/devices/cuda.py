"""A CUDA device as PyTorch sees it in this process, and what to do where it cannot be used."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tritter_mem.devices.device import Calls, DeviceMemory, RandomState, Refused
from tritter_mem.devices.environment import cuda_of_torch
from tritter_mem.devices.nvml import driver_version, visible_devices
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.results.run import Kind

if TYPE_CHECKING:
    from tritter_mem.allocator.snapshot import DeviceSnapshot

MOST_EVENTS = 2_000_000
"""Events of a history that is replayed; PyTorch lists them in about a gigabyte of host memory."""
_NAMES = re.compile(r"cuda(:\d{1,3})?")


STANDIN_VERSION = "tritter_standin_version"
"""A function that the stand-ins for CUDA's libraries have, and NVIDIA's have not."""
_DRIVER_LIBRARY = "libcuda.so.1"


def is_standin() -> bool:
    """Whether this process's CUDA is a stand-in, on which nothing is measured.

    Asked of the driver's library that is loaded; before one is, the answer is no.
    """
    try:
        driver = ctypes.CDLL(_DRIVER_LIBRARY, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    except OSError:
        return False
    return hasattr(driver, STANDIN_VERSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """What PyTorch says of a device: `torch.cuda.get_device_properties`.

    Attributes:
        standin: whether CUDA's libraries are stand-ins, which compute nothing.
    """

    title: str
    compute_capability: tuple[int, ...]
    multiprocessors: int
    total_bytes: int
    memory_kilohertz: int
    memory_bus_lines: int
    standin: bool


class CudaDevice:
    """One CUDA device. Nothing is asked of CUDA before the first use.

    Args:
        index: of the device, as in `cuda:1`.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self.name = f"cuda:{index}"

    @property
    def kind(self) -> Kind:
        """Measured; rehearsed over stand-ins for CUDA's libraries."""
        return "rehearsed" if is_standin() else "measured"

    @cached_property
    def total_bytes(self) -> int:
        """The device's memory; the first reading makes the process's context on it."""
        import torch

        return int(torch.cuda.mem_get_info(self._index)[1])

    def properties(self) -> DeviceProperties:
        """What the device is."""
        import torch

        found = torch.cuda.get_device_properties(self._index)
        return DeviceProperties(
            title=found.name,
            compute_capability=(found.major, found.minor),
            multiprocessors=found.multi_processor_count,
            total_bytes=found.total_memory,
            memory_kilohertz=found.memory_clock_rate,
            memory_bus_lines=found.memory_bus_width,
            standin=is_standin(),
        )

    def memory(self) -> DeviceMemory:
        """The memory now; `free_bytes` is below the process's cap, where there is one."""
        from torch import cuda

        free, total = cuda.mem_get_info(self._index)
        reserved = cuda.memory_reserved(self._index)
        cap = int(cuda.get_per_process_memory_fraction(self._index) * total)
        return DeviceMemory(
            cuda.memory_allocated(self._index), reserved, max(0, min(free, cap - reserved))
        )

    def used_bytes(self) -> int:
        """What all processes together have of the device now, as CUDA says."""
        import torch

        free, total = torch.cuda.mem_get_info(self._index)
        return int(total - free)

    def stats(self) -> Mapping[str, int]:
        """`torch.cuda.memory_stats`: empty before CUDA is first used."""
        import torch

        return torch.cuda.memory_stats(self._index)

    def reset_peaks(self) -> None:
        """Let every peak start at what is there now."""
        import torch

        torch.cuda.reset_peak_memory_stats(self._index)

    def synchronize(self) -> None:
        """Wait for all that was begun, on every stream."""
        import torch

        torch.cuda.synchronize(self._index)

    def first_kernel(self) -> None:
        """Launch a kernel, and leave nothing allocated or reserved."""
        import torch

        torch.zeros(1, device=self.name)
        self.synchronize()
        self.empty_cache()

    def empty_cache(self) -> None:
        """Give unused segments back to the driver."""
        import torch

        with torch.cuda.device(self._index):
            torch.cuda.empty_cache()

    def limit(self, limit_bytes: int) -> None:
        """Cap what the allocator may hold; what it caches beyond goes back."""
        import torch

        fraction = memory_fraction(limit_bytes, self.total_bytes)
        torch.cuda.set_per_process_memory_fraction(fraction, self._index)
        if torch.cuda.memory_reserved(self._index) > limit_bytes:
            self.empty_cache()

    def on_refusal(self, callback: Callable[[Refused], None]) -> None:
        """Call `callback` at each out-of-memory error, before anything is unwound."""
        import torch

        def observe(device: int, requested: int, limit: int, free: int) -> None:
            del device, free
            stats = self.stats()
            callback(
                Refused(
                    requested_bytes=requested,
                    allocated_bytes=stats["allocated_bytes.all.current"],
                    reserved_bytes=stats["reserved_bytes.all.current"],
                    limit_bytes=min(limit, self.total_bytes),
                )
            )

        torch._C._cuda_attach_out_of_memory_observer(observe)  # type: ignore[attr-defined]

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
        return _snapshot_of(torch.cuda.memory._snapshot(), self._index)

    def random_state(self) -> RandomState:
        """Of the CPU's generator and the device's."""
        import torch

        return torch.get_rng_state(), torch.cuda.get_rng_state(self._index)

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""
        import torch

        torch.set_rng_state(state[0])
        torch.cuda.set_rng_state(state[1], self._index)


def _snapshot_of(snapshot: dict[str, Any], index: int) -> DeviceSnapshot:
    """One device of what `torch.cuda.memory._snapshot` gives.

    Raises:
        MeasureError: the history is missing, or its beginning was overwritten.
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


def memory_fraction(limit_bytes: int, total_bytes: int) -> float:
    """The fraction of a device's memory by which PyTorch comes to a limit, to the byte.

    PyTorch truncates `fraction * total` (`setMemoryFraction` in `CUDACachingAllocator.cpp`), so the
    plain quotient may come out one byte short.
    """
    fraction = limit_bytes / total_bytes
    while int(fraction * total_bytes) < limit_bytes:
        fraction = math.nextafter(fraction, math.inf)
    return min(fraction, 1.0)


def cuda_device(name: str, instead: str) -> CudaDevice:
    """The CUDA device of a name; `cuda` is the current one, and stays so.

    Args:
        name: `cuda` or `cuda:1`.
        instead: what to use where there is no CUDA device.

    Raises:
        MeasureError: there is no CUDA device, or none of that number.
        UsageError: it is no such name.
    """
    import torch

    if not _NAMES.fullmatch(name):
        raise UsageError(f"device: got {name!r}, expected cuda, cuda:1, and so on")
    if not torch.cuda.is_available():
        raise MeasureError(f"no CUDA device was found: {instead}")
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MeasureError(f"device: got {name}, but there is {there}")
    return CudaDevice(index)


def open_cuda(index: int) -> CudaDevice:
    """Make the process's context on a CUDA device, which becomes the current one.

    Raises:
        MeasureError: CUDA cannot be used; says why, and what to do.
    """
    import torch

    try:
        torch.cuda.init()
        torch.cuda.set_device(index)
        device = CudaDevice(index)
        device.used_bytes()
    except (RuntimeError, AssertionError) as error:
        raise MeasureError(explain_cuda(str(error), index)) from error
    return device


NO_CUDA = "no CUDA device: nothing was measured"
NO_CUDA_BUILD = (
    "this PyTorch is built without CUDA: nothing was measured; install a build with CUDA, as "
    "pytorch.org says"
)
_NO_SUCH_DEVICE = "there is no {device}{shown}: `nvidia-smi -L` lists the devices"
_ADVICE = {
    "not compiled with cuda": NO_CUDA_BUILD,
    "too old": (
        "the NVIDIA driver ({driver}) is too old for this PyTorch, which is built for CUDA {cuda}: "
        "update the driver, or install a PyTorch that is built for an older CUDA"
    ),
    "no cuda gpus": "no CUDA device{shown}: nothing was measured",
    "no nvidia driver": NO_CUDA,
    "invalid device ordinal": _NO_SUCH_DEVICE,
    "invalid device id": _NO_SUCH_DEVICE,
    "gpu device may be out of range": _NO_SUCH_DEVICE,
    "busy or unavailable": (
        "{device} is busy: another process has it to itself (compute mode exclusive), or it is "
        "being reset; stop that process, or choose another device (--device cuda:1)"
    ),
    "out of memory": (
        "{device} is full: other processes leave no memory for a CUDA context; stop them, or use "
        "another device (--device cuda:1)"
    ),
}
"""What to do, by a part of what PyTorch says in lower case."""


def explain_cuda(message: str, index: int = 0) -> str:
    """Turn what PyTorch says when CUDA cannot be used into one line with a way out.

    Args:
        message: of PyTorch's error.
        index: the device that was asked for.
    """
    low = message.lower()
    advice = next((text for sign, text in _ADVICE.items() if sign in low), None)
    if advice is None:
        first = message.strip().splitlines()[:1]
        return f"CUDA cannot be used: {' '.join(first)[:300]}"
    driver = driver_version() or "whose version cannot be read"
    return advice.format(
        device=f"cuda:{index}", driver=driver, cuda=cuda_of_torch(), shown=_shown()
    )


def _shown() -> str:
    """What hides devices from CUDA, where something does."""
    visible = visible_devices()
    return "" if visible is None else f" among those that CUDA_VISIBLE_DEVICES={visible!r} shows"
