"""What holds for every test: no local history, no deadline, and `gpu` skips without CUDA."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

from tests.coverage.selection import is_covered

# Other work may keep the machine busy. CI sets its variable, and tries the same examples each time.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")
os.environ["TRITTER_MEM_HISTORY"] = "off"  # tests that want a history say so
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Threads of PyTorch wait for each other busily: as many in each worker as there are cores make
    # a run of a model, here or in a process that a test starts, several times as long.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_covered(item.path):
            item.add_marker("covered")
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
        elif item.get_closest_marker("computes") and _has_stand_ins():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device that computes"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_stand_ins() -> bool:
    import torch

    from tritter_mem.devices.cuda import is_standin

    return torch.cuda.is_available() and is_standin()
