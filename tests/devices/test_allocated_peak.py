"""Several follow one device's peak, of which PyTorch keeps one, that anybody may reset."""

from __future__ import annotations

import pytest
import torch

from tritter_mem.devices.cuda import CudaDevice
from tritter_mem.devices.device import AllocatedPeak


class Statistics:
    """PyTorch's statistics of two devices."""

    def __init__(self) -> None:
        self._live, self._peak = [0, 0], [0, 0]

    def alloc(self, nbytes: int, index: int = 0) -> None:
        self._live[index] += nbytes
        self._peak[index] = max(self._peak[index], self._live[index])

    def memory_stats(self, index: int) -> dict[str, int]:
        return {"allocated_bytes.all.peak": self._peak[index]}

    def reset_peak_memory_stats(self, index: int) -> None:
        self._peak[index] = self._live[index]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Statistics:
    found = Statistics()
    for name in ("memory_stats", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found


def peak(index: int = 0) -> AllocatedPeak:
    found = AllocatedPeak(CudaDevice(index))
    found.reset()
    return found


def test_a_reset_of_one_leaves_the_peak_of_another(cuda: Statistics) -> None:
    outer = peak()
    cuda.alloc(100)
    cuda.alloc(-90)
    inner = peak()
    cuda.alloc(20)
    assert (outer.read_bytes(), inner.read_bytes()) == (100, 30)
    outer.reset()
    assert (outer.read_bytes(), inner.read_bytes()) == (30, 30)


def test_what_was_read_outlives_a_reset_by_other_code(cuda: Statistics) -> None:
    found = peak()
    cuda.alloc(100)
    cuda.alloc(-100)
    assert found.read_bytes() == 100
    cuda.reset_peak_memory_stats(0)
    assert found.read_bytes() == 100
    found.reset()
    assert found.read_bytes() == 0


def test_each_device_has_its_own(cuda: Statistics) -> None:
    first, second = peak(0), peak(1)
    cuda.alloc(5, 0)
    cuda.alloc(7, 1)
    assert (first.read_bytes(), second.read_bytes()) == (5, 7)


def test_one_that_is_gone_is_not_followed(cuda: Statistics) -> None:
    from tritter_mem.devices.device import _FOLLOWING

    before = len(_FOLLOWING)
    found = peak()
    assert len(_FOLLOWING) == before + 1
    del found
    assert len(_FOLLOWING) == before
