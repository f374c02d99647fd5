"""What the driver says through NVML: the card that is present, and its memory in use.

NVML is loaded without PyTorch and without a CUDA context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tritter_mem.config.cards import AUTO, GpuCard, find_card, known_as, read_card
from tritter_mem.errors import MeasureError
from tritter_mem.units import MiB

ASSUMED_CONTEXT_BYTES = 512 * MiB
"""For a card that the table lacks: within what was seen on others, 0.13 to 0.66 GiB."""
ASSUMED_SOURCE = "assumed, not measured: the card is not in the table"
_CORES = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
"""CUDA cores a multiprocessor by compute capability; 128 from 8.6 on."""
NOT_INSTALLED = "install nvidia-ml-py"


def visible_devices() -> str | None:
    """CUDA_VISIBLE_DEVICES: the devices that CUDA shows; None where it shows all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


class DriverError(MeasureError):
    """There is no driver, or it refuses a question; in NVML's words."""


@contextmanager
def _nvml() -> Iterator[Any]:
    """The module `pynvml`, initialised while this is entered.

    Raises:
        DriverError: in place of NVML's errors.
        MeasureError: the module is not installed.
    """
    try:
        import pynvml
    except ImportError:
        raise MeasureError(NOT_INSTALLED) from None
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise DriverError(str(error)) from None


def driver_version() -> str | None:
    """The NVIDIA driver's version; None where there is no driver, or no asking it."""
    try:
        with _nvml() as nvml:
            return str(nvml.nvmlSystemGetDriverVersion())
    except MeasureError:
        return None


def find_gpu(name: str) -> GpuCard:
    """Look a card up by name, alias or the driver's name; `auto` is the card present.

    Raises:
        ConfigError: there is no such card; near names are suggested.
        MeasureError: `auto`, and no card can be read.
    """
    return present_card() if name == AUTO else find_card(name)


def present_card(index: int = 0) -> GpuCard:
    """A card that CUDA_VISIBLE_DEVICES shows, with the memory that the driver reports.

    Args:
        index: among those shown, as in `cuda:1`.

    Raises:
        MeasureError: there is no card, no driver, or no reading it.
    """
    try:
        with _nvml() as nvml:
            return _card(nvml, visible_device(nvml, index))
    except DriverError as error:
        reason = f"no NVIDIA card can be read ({error})"
    except MeasureError as error:
        reason = str(error)
    raise MeasureError(f"gpu auto: {reason}; name the GPU to plan for, such as --gpu rtx-5080")


def visible_device(nvml: Any, index: int) -> Any:
    """NVML's handle of the device that is `cuda:<index>` where CUDA counts as the bus does.

    CUDA does so with CUDA_DEVICE_ORDER=PCI_BUS_ID, as in the processes that measure.

    Args:
        nvml: the module `pynvml`, initialised.
        index: among the devices that CUDA_VISIBLE_DEVICES shows.

    Raises:
        MeasureError: it shows none, or fewer.
        NVMLError: there are fewer.
    """
    visible = visible_devices()
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    shown = [name.strip() for name in visible.split(",")]
    name = shown[index] if index < len(shown) else ""
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    if name.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    raise MeasureError(
        f"CUDA_VISIBLE_DEVICES is {visible!r}, which shows no card"
        + (f" number {index}" if index else "")
    )


def _card(nvml: Any, handle: Any) -> GpuCard:
    title = nvml.nvmlDeviceGetName(handle)
    total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    known = known_as(title)
    if known is not None:
        return replace(read_card(known), title=title, total_bytes=total)
    return _unlisted_card(nvml, handle, title, total)


def _unlisted_card(nvml: Any, handle: Any, title: str, total_bytes: int) -> GpuCard:
    """Read what the table would have said: two transfers a clock on every line of the bus."""
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    megahertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    lines = nvml.nvmlDeviceGetMemoryBusWidth(handle)
    return GpuCard(
        name="auto",
        title=title,
        total_bytes=total_bytes,
        bandwidth_bytes_per_second=2 * megahertz * 10**6 * lines // 8,
        compute_capability=(major, minor),
        multiprocessors=nvml.nvmlDeviceGetNumGpuCores(handle) // _CORES.get((major, minor), 128),
        context_bytes=ASSUMED_CONTEXT_BYTES,
        source="read from the driver (NVML)",
        context_source=ASSUMED_SOURCE,
    )


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


def read_usage(index: int) -> Usage:
    """Read the memory in use now; where it cannot be read, the answer says why.

    Args:
        index: of the device among those that CUDA_VISIBLE_DEVICES shows, in the order of the bus.
    """
    try:
        with _nvml() as nvml:
            handle = visible_device(nvml, index)
            return usage_of(nvml, handle, os.getpid())
    except MeasureError as error:
        return Usage(unread=(f"NVML cannot be used: {error}",))


def usage_of(nvml: Any, handle: Any, pid: int) -> Usage:
    """Read a device.

    Args:
        nvml: the module `pynvml`, initialised.
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
