"""The tracker reads PyTorch's statistics on CUDA, and records on the CPU."""

import dataclasses
import time

import pytest
import torch

import tritter_mem
from tritter_mem import MemoryBudgetExceeded, MemoryTracker
from tritter_mem.errors import EXIT_DOES_NOT_FIT, MeasureError, UsageError

MB = 10**6
NO_CUDA = not torch.cuda.is_available()


def megabytes(count: int, device: str = "cpu") -> torch.Tensor:
    return torch.empty(count * MB, dtype=torch.uint8, device=device)


def test_snapshot_shows_now_and_peak_in_decimal_gb() -> None:
    with MemoryTracker(device="cpu") as tracker:
        kept = megabytes(20)
        megabytes(30)
        snapshot = tracker.snapshot()
    assert snapshot.allocated == snapshot.reserved == 0.02
    assert snapshot.peak == 0.05
    assert abs(snapshot.timestamp - time.time()) < 60
    del kept


def test_reset_begins_a_new_peak_at_what_is_live() -> None:
    tracker = MemoryTracker(device="cpu")
    tracker.reset()
    kept = megabytes(20)
    megabytes(30)
    tracker.reset()
    assert tracker.snapshot().peak == 0.02
    tracker.close()
    del kept
    megabytes(500)
    assert tracker.snapshot().peak == 0.02


def test_meta_tensors_can_be_tracked_at_any_size() -> None:
    with MemoryTracker(device="meta") as tracker:
        megabytes(16_000, "meta")
    assert tracker.snapshot().peak == 16.0


def test_budget_holds_up_to_the_peak_itself() -> None:
    with MemoryTracker(device="meta") as tracker:
        megabytes(15_000, "meta")
    assert tracker.check_budget() is True
    assert tracker.check_budget(budget_gb=15.0) is True


def test_exceeded_budget_says_found_allowed_and_what_to_do() -> None:
    with MemoryTracker(device="meta") as tracker:
        megabytes(15_500, "meta")
    with pytest.raises(MemoryBudgetExceeded) as caught:
        tracker.check_budget()
    assert "15.50 GB, 0.50 GB over the budget of 15 GB: reduce context" in str(caught.value)
    assert caught.value.exit_code == EXIT_DOES_NOT_FIT


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_budget_must_be_a_size(budget: float) -> None:
    with (
        MemoryTracker(device="cpu") as tracker,
        pytest.raises(UsageError, match="a size in GB above 0"),
    ):
        tracker.check_budget(budget)


def test_snapshot_before_the_first_reset_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"call reset\(\) first"):
        MemoryTracker(device="cpu").snapshot()


def test_snapshot_is_frozen() -> None:
    with MemoryTracker(device="cpu") as tracker:
        snapshot = tracker.snapshot()
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.peak = 1.0  # type: ignore[misc]


def test_error_inside_still_ends_the_recording() -> None:
    tracker = MemoryTracker(device="cpu")
    with pytest.raises(ZeroDivisionError), tracker:
        raise ZeroDivisionError
    megabytes(1)
    assert tracker.snapshot().peak == 0


@pytest.mark.skipif(not NO_CUDA, reason="needs a machine without CUDA")
def test_without_cuda_the_default_says_what_to_use() -> None:
    with pytest.raises(MeasureError, match="no CUDA device was found: use MemoryTracker"):
        MemoryTracker()


def test_a_tracker_that_is_entered_again_begins_anew() -> None:
    tracker = MemoryTracker(device="cpu")
    for count in (3, 2):
        with tracker:
            megabytes(count)
        assert tracker.snapshot().peak == count / 1000


@pytest.mark.parametrize("device", ["xpu", "cuda0", "cpu:1", "", "nope"])
def test_a_device_that_cannot_be_tracked_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"device: got '{device}', expected cuda, cuda:1, cpu"):
        MemoryTracker(device)


@pytest.mark.gpu
def test_a_tracker_inside_another_leaves_its_peak() -> None:
    with MemoryTracker() as outer:
        megabytes(100, "cuda")
        with MemoryTracker() as inner:
            megabytes(10, "cuda")
        assert 0.1 > inner.snapshot().peak - inner.snapshot().allocated >= 0.01
    assert outer.snapshot().peak >= 0.1


@pytest.mark.gpu
def test_what_comes_after_a_block_does_not_count() -> None:
    with MemoryTracker() as tracker:
        megabytes(10, "cuda")
    end = tracker.snapshot().peak
    megabytes(500, "cuda")
    assert tracker.snapshot().peak == end


@pytest.mark.gpu
def test_cuda_figures_are_those_of_the_allocator() -> None:
    tracker = MemoryTracker()
    tracker.reset()
    before = tracker.snapshot()
    kept = megabytes(64, "cuda")
    after = tracker.snapshot()
    assert after.peak - before.allocated >= 0.064
    assert after.reserved >= after.allocated
    del kept


def test_the_names_are_public() -> None:
    assert tritter_mem.MemoryTracker is MemoryTracker
    assert tritter_mem.MemorySnapshot.__name__ == "MemorySnapshot"
