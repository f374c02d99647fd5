"""What holds for every test: no local history, no deadline, and `gpu` skips without CUDA."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # other work may keep the machine busy
settings.load_profile("busy")
os.environ["TRITTER_MEM_HISTORY"] = "off"  # tests that want a history say so

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
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
