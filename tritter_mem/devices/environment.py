"""What the numbers are made with, found without importing PyTorch."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TypedDict

from tritter_mem.devices.nvml import driver_version, present_card
from tritter_mem.errors import MeasureError
from tritter_mem.results.run import Environment
from tritter_mem.torch_release import version_module


class _Gpu(TypedDict, total=False):
    driver: str | None
    gpu: str
    total_bytes: int


def collect_environment(allocator_conf: str = "", gpu: int = 0) -> Environment:
    """Collect the versions and a visible GPU; what is missing is None.

    Args:
        allocator_conf: the allocator settings that the run is to have.
        gpu: which of the visible ones, as in `cuda:1`.
    """
    return Environment(
        python=platform.python_version(),
        torch=_version("torch"),
        triton=_version("triton"),
        cuda=cuda_of_torch(),
        allocator_conf=allocator_conf,
        **_gpu(gpu),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cuda_of_torch() -> str | None:
    """The CUDA version that PyTorch is built for: its `version.py`, which imports nothing."""
    return getattr(version_module(), "cuda", None)


def _gpu(index: int) -> _Gpu:
    """A GPU that CUDA would see; nothing where there is none."""
    try:
        card, driver = present_card(index), driver_version()
    except MeasureError:
        return {}
    return {"driver": driver, "gpu": card.title, "total_bytes": card.total_bytes}
