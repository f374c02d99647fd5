"""What the driver says of memory in use, and the reason where it does not."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tritter_mem.devices import nvml as driver
from tritter_mem.devices.nvml import Usage, read_usage, usage_of


class NVMLError(Exception):
    """As NVML has it."""


def nvml(processes: Any = (), second_version: bool = True) -> Any:
    """As much of `pynvml` as is asked for, with the answers of one device."""

    def memory(handle: int, version: int | None = None) -> Any:
        if version and not second_version:
            raise NVMLError("Function Not Found")
        return SimpleNamespace(used=1000 if version else 1600)  # the first counts the driver's own

    def listed(handle: int) -> Any:
        if isinstance(processes, Exception):
            raise processes
        return processes

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlMemory_v2=0x2000028,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetComputeRunningProcesses=listed,
    )


def process(pid: int, used: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_process_is_found_among_others() -> None:
    found = usage_of(nvml([process(7, 300), process(8, 600)]), 0, pid=8)
    assert found == Usage(device_bytes=1000, process_bytes=600)


@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        ([], driver.NOT_LISTED),
        ([process(7, 300)], driver.NOT_LISTED),
        ([process(8, None)], driver.NOT_SAID),
        (NVMLError("Not Supported"), "NVML does not list processes: Not Supported"),
    ],
    ids=["container", "other numbers", "wsl", "not supported"],
)
def test_missing_process_has_its_reason(processes: Any, reason: str) -> None:
    found = usage_of(nvml(processes), 0, pid=8)
    assert (found.device_bytes, found.process_bytes, found.unread) == (1000, None, (reason,))


def test_old_driver_counts_its_own_memory_too() -> None:
    assert usage_of(nvml(second_version=False), 0, pid=8).device_bytes == 1600


def test_without_the_package_all_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_usage(0) == Usage(unread=("NVML cannot be used: install nvidia-ml-py",))


def test_without_a_driver_all_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    fake = nvml()
    fake.nvmlInit = missing
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    [reason] = read_usage(0).unread
    assert reason == "NVML cannot be used: NVML Shared Library Not Found"


def test_own_process_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml([process(os.getpid(), 64)]))
    assert read_usage(0).process_bytes == 64
