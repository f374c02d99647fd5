"""What holds for every test: no local history; `gpu` skips, with its reason, without CUDA."""

from __future__ import annotations

import os

import pytest

os.environ["TRITTER_MEM_HISTORY"] = "off"  # tests that want a history say so


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
