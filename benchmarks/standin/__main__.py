"""Run Python with PyTorch's CUDA build over the stand-ins: `python -m benchmarks.standin ARGS`."""

from __future__ import annotations

import os
import sys

from benchmarks.standin.install import LIBRARIES, PYTHON, ROOT, install
from tritter_mem.rehearsal.build import NVML

WITHOUT_CUDNN = "TORCH_CUDNN_SDPA_DEPRIORITIZED", "1"
"""PyTorch, and what is simulated beside it, leaves cuDNN's attention, which is not there, alone."""


def environment() -> dict[str, str]:
    """The libraries, and the checkout, which is not installed there, first on their paths."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    folders = (
        [LIBRARIES] if os.environ.get("STANDIN_NVML") == "off" else [LIBRARIES, LIBRARIES / NVML]
    )
    libraries = {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)),
        "TRITON_LIBCUDA_PATH": str(LIBRARIES),
    }
    own = dict([WITHOUT_CUDNN]) | {"PYTHONPATH": paths, "TRITTER_MEM_HISTORY": "off"}
    return os.environ | libraries | own


def main() -> None:
    """Become Python in the folder, which is made where it is missing."""
    if not LIBRARIES.exists():
        install()
    os.execve(PYTHON, [str(PYTHON), *sys.argv[1:]], environment())


if __name__ == "__main__":
    main()
