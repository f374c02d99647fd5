"""The driver's own reading of a device (NVML): what `nvidia-smi` shows, and why it may not say."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tritter_mem.config.present import visible_device
from tritter_mem.errors import MeasureError

NO_LIBRARY = "NVML cannot be used: install nvidia-ml-py"
NOT_LISTED = (
    "NVML lists no process with this number: in a container, and under WSL, the driver counts "
    "processes by other numbers"
)
NOT_SAID = "NVML lists the process without its memory, as it does under WSL and on a MIG slice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Memory in use on a device.

    Attributes:
        device_bytes: of all processes, without what the driver keeps for itself.
        process_bytes: of this process.
        unread: why either is missing.
    """

    device_bytes: int | None = None
    process_bytes: int | None = None
    unread: tuple[str, ...] = ()


class Driver:
    """Reads one device for as long as the process lives; never fails.

    Args:
        index: of the device among those that CUDA_VISIBLE_DEVICES shows, in the order of the bus.
    """

    def __init__(self, index: int) -> None:
        self._nvml: Any = None
        self._why = ""
        try:
            import pynvml
        except ImportError:
            self._why = NO_LIBRARY
            return
        try:
            pynvml.nvmlInit()
            self._handle = visible_device(pynvml, index)
            self._nvml = pynvml
        except (pynvml.NVMLError, MeasureError) as error:
            self._why = f"NVML cannot be used: {error}"

    def usage(self) -> Usage:
        """Read the memory in use now."""
        if self._nvml is None:
            return Usage(unread=(self._why,))
        try:
            return read_usage(self._nvml, self._handle, os.getpid())
        except self._nvml.NVMLError as error:
            return Usage(unread=(f"NVML does not say: {error}",))


def read_usage(nvml: Any, handle: Any, pid: int) -> Usage:
    """Read a device.

    Args:
        nvml: the module `pynvml`.
        handle: of the device.
        pid: of the process.

    Raises:
        NVMLError: the device cannot be read.
    """
    device = _device_bytes(nvml, handle)
    process, why = _process_bytes(nvml, handle, pid)
    return Usage(device_bytes=device, process_bytes=process, unread=why)


def _device_bytes(nvml: Any, handle: Any) -> int:
    """The second version leaves out what the driver reserves; drivers before 510 have the first."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used)
    except nvml.NVMLError:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)


def _process_bytes(nvml: Any, handle: Any, pid: int) -> tuple[int | None, tuple[str, ...]]:
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError as error:
        return None, (f"NVML does not list processes: {error}",)
    own = next((process for process in processes if process.pid == pid), None)
    if own is None:
        return None, (NOT_LISTED,)
    return (None, (NOT_SAID,)) if own.usedGpuMemory is None else (int(own.usedGpuMemory), ())
