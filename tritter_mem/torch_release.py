"""The PyTorch whose CUDA build is planned and simulated: the installed one.

Its libraries take memory inside PyTorch's allocator, and how much depends on the release:

| PyTorch | cuBLAS workspace | cuBLASLt workspace | a captured graph keeps |
|---|---|---|---|
| 2.10, 2.11 | kept by each handle and stream: 33,554,432 B on compute capability 9.0, else 8,519,680 B | 1,048,576 B, kept in the same way | seed and offset of the generator, 8 B each |
| 2.12, 2.13 | the same, with 33,554,432 B from 9.0 on | takes that of cuBLAS | the same |
| 2.14 | the same | the same | nothing |
| 2.15 | of the same size, for each call alone | 1,048,576 B, for each call alone | nothing |

Seen on the CUDA builds of 2.11.0, 2.12.1, 2.13.0, 2.14.1 and 2.15.0, without a GPU, on capabilities
8.0, 9.0, 10.0 and 12.0 (`benchmarks/standin`); 2.10 is taken to be as 2.11. A later release counts as
the last one here.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

Release = tuple[int, int]
LATEST: Release = (2, 15)

CUBLAS_BYTES = 8_519_680
CUBLAS_BYTES_WIDE = 33_554_432
CUBLASLT_BYTES = 1_048_576
RANDOM_STATE_BYTES = 2 * 8


@cache
def version_module() -> ModuleType | None:
    """PyTorch's `version.py`, which imports nothing of it; None without PyTorch."""
    package = find_spec("torch")
    if package is None or package.origin is None:
        return None
    spec = spec_from_file_location("_torch_version", Path(package.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def release() -> Release:
    """Major and minor number of the installed PyTorch; of the latest known one without it."""
    found = re.match(r"(\d+)\.(\d+)", getattr(version_module(), "__version__", ""))
    return (int(found[1]), int(found[2])) if found else LATEST


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """The workspace of a cuBLAS handle: `parseChosenWorkspaceSize` in `CublasHandlePool.cpp`.

    CUBLAS_WORKSPACE_CONFIG, which sets another, is taken not to be set.
    """
    wide = compute_capability == (9, 0) if release() < (2, 12) else compute_capability >= (9, 0)
    return CUBLAS_BYTES_WIDE if wide else CUBLAS_BYTES


def cublaslt_workspace_bytes() -> int:
    """The workspace that a cuBLASLt handle has for itself; 0 where it takes that of cuBLAS."""
    return 0 if (2, 12) <= release() < (2, 15) else CUBLASLT_BYTES


def keeps_workspaces() -> bool:
    """Whether a handle keeps its workspace, and does not take one for each call."""
    return release() < (2, 15)


def random_state_bytes() -> int:
    """What a captured graph keeps of the random generator."""
    return RANDOM_STATE_BYTES if release() < (2, 14) else 0
