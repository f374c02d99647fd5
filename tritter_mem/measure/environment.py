"""What the numbers are made with, found without importing PyTorch."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypedDict

from tritter_mem.results import Environment


class _Gpu(TypedDict, total=False):
    driver: str
    gpu: str
    total_bytes: int


def collect_environment(allocator_conf: str = "") -> Environment:
    """Collect the versions and the first visible GPU; what is missing is None.

    Args:
        allocator_conf: the allocator settings that the run is to have.
    """
    return Environment(
        python=platform.python_version(),
        torch=_version("torch"),
        triton=_version("triton"),
        cuda=_cuda_of_torch(),
        allocator_conf=allocator_conf,
        **_gpu(),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cuda_of_torch() -> str | None:
    """The CUDA version that PyTorch is built for: its `version.py`, which imports nothing."""
    package = find_spec("torch")
    if package is None or package.origin is None:
        return None
    spec = spec_from_file_location("_torch_version", Path(package.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "cuda", None)


def _gpu() -> _Gpu:
    """The first GPU that CUDA would see, by NVML."""
    import pynvml

    try:
        with _nvml():
            device = _first_visible(pynvml)
            if device is None:
                return {}
            return {
                "driver": pynvml.nvmlSystemGetDriverVersion(),
                "gpu": pynvml.nvmlDeviceGetName(device),
                "total_bytes": pynvml.nvmlDeviceGetMemoryInfo(device).total,
            }
    except pynvml.NVMLError:
        return {}


@contextmanager
def _nvml() -> Iterator[None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _first_visible(pynvml: Any) -> Any:
    """The first of CUDA_VISIBLE_DEVICES, which names devices by number or UUID, or device 0."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else None
