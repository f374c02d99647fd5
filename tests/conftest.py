"""What holds for every test: those marked `gpu` skip, with the reason, where there is no CUDA."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
