"""From `torch.cuda.memory_stats`, read around each phase, to the answer `measured`."""

from dataclasses import replace

import pytest

from tritter_mem.measure.assemble import estimate_of, with_components
from tritter_mem.measure.meter import largest_free_block_bytes
from tritter_mem.measure.stretches import BETWEEN, Stretch
from tritter_mem.results import AllocatorStats, Components, DeviceRun, Estimate, Phase
from tritter_mem.trace.peaks import WARMUP

NOTHING = AllocatorStats(
    requested_peak_bytes=0, active_peak_bytes=0, inactive_split_peak_bytes=0, retries=0,
    segment_allocations=0, segment_releases=0,
)  # fmt: skip
RUN = DeviceRun(allocator=NOTHING, total_bytes=1 << 30)


def stretch(name: str, allocated: int, reserved: int, **more: int) -> Stretch:
    """A stretch in which a tenth of what was allocated is rounding."""
    stats = {
        "allocated_bytes.all.peak": allocated,
        "reserved_bytes.all.peak": reserved,
        "requested_bytes.all.peak": allocated - allocated // 10,
        "active_bytes.all.peak": allocated + 1,
        "inactive_split_bytes.all.peak": more.get("split_peak", 0),
        "allocated_bytes.all.current": 0,
        "reserved_bytes.all.current": reserved,
        "inactive_split_bytes.all.current": more.get("split", 0),
        "num_alloc_retries": more.get("retries", 0),
        "num_device_alloc": more.get("allocations", 0),
        "num_device_free": more.get("releases", 0),
    }
    return Stretch(
        name=name, seconds=more.get("seconds", 1), stats=stats,
        largest_free_block_bytes=more.get("free", 0),
    )  # fmt: skip


STRETCHES = (
    stretch(BETWEEN, 0, 0),
    stretch("load", 500, 600, allocations=3, seconds=9),
    stretch(BETWEEN, 510, 600),
    stretch(WARMUP, 5000, 6000, allocations=4, retries=1, releases=2, split_peak=70, split=8),
    stretch("forward", 900, 6000, split_peak=20, split=5, free=40),
    stretch("backward", 1000, 6000, free=77, split=7, split_peak=30),
    stretch("forward", 950, 6000, seconds=2),
    stretch(BETWEEN, 1010, 6000),
)


@pytest.fixture
def found() -> Estimate:
    return estimate_of(STRETCHES, "cuda:0", RUN)


def test_peak_counts_all_but_the_warm_up(found: Estimate) -> None:
    assert found.allocated_peak_bytes == 1010
    assert found.run is not None
    stats = found.run.allocator
    assert (stats.requested_peak_bytes, stats.active_peak_bytes) == (909, 1011)
    assert stats.inactive_split_peak_bytes == 30


def test_what_the_warm_up_reserved_and_called_counts(found: Estimate) -> None:
    assert found.reserved_peak_bytes == 6000
    assert found.run is not None
    stats = found.run.allocator
    assert (stats.segment_allocations, stats.segment_releases, stats.retries) == (7, 2, 1)


def test_phase_that_comes_twice_has_its_largest_peak_and_all_its_seconds(found: Estimate) -> None:
    assert [phase.name for phase in found.phases] == ["load", "forward", "backward"]
    forward = found.phases[1]
    assert (forward.allocated_peak_bytes, forward.seconds) == (950, 3)


def test_run_without_a_phase_has_no_fragmentation() -> None:
    found = estimate_of(STRETCHES[:1], "cuda:0", RUN)
    assert (found.fragmentation, found.phases, found.allocated_peak_bytes) == (None, (), 0)


def test_fragmentation_is_of_the_fullest_phase_at_the_reserved_peak() -> None:
    [fragmentation] = [estimate_of(STRETCHES[4:], "cuda:0", RUN).fragmentation]
    assert fragmentation is not None
    assert fragmentation.reserved_not_allocated_bytes == 5000
    assert fragmentation.ratio == 5000 / 6000
    assert (fragmentation.largest_free_block_bytes, fragmentation.inactive_split_bytes) == (77, 7)


def recorded(found: Estimate, unseen: int) -> Estimate:
    """The recorder's view of the same run: all of it but `unseen` bytes that libraries took."""

    def parts(requested: int) -> Components:
        return Components(weights_bytes=100, activations_bytes=requested - unseen - 100)

    phases = tuple(
        Phase(
            name=phase.name,
            allocated_peak_bytes=phase.allocator.requested_peak_bytes - unseen,
            components=parts(phase.allocator.requested_peak_bytes),
        )
        for phase in found.phases
        if phase.allocator
    )
    return Estimate(device="cuda:0", components=parts(909), phases=phases,
                    allocated_peak_bytes=909 - unseen, peak_at="backward: mlp")  # fmt: skip


def test_library_memory_and_rounding_are_what_no_tensor_holds(found: Estimate) -> None:
    whole = with_components(found, recorded(found, 33))
    assert whole.components == Components(
        weights_bytes=100, activations_bytes=776, workspace_bytes=33, rounding_bytes=101
    )
    assert whole.components.total_bytes == whole.allocated_peak_bytes
    assert whole.library_workspace_bytes == 33
    assert whole.peak_at == "backward: mlp"


@pytest.mark.parametrize("other", ["more bytes", "other phases"])
def test_runs_that_disagree_leave_components_out(found: Estimate, other: str) -> None:
    seen = recorded(found, -1 if other == "more bytes" else 0)
    seen = seen if other == "more bytes" else replace(seen, phases=seen.phases[:1])
    whole = with_components(found, seen)
    assert whole.components == Components()
    assert whole.allocated_peak_bytes == found.allocated_peak_bytes
    assert whole.run is not None
    assert "went another way" in str(whole.run.components_reason)


def test_largest_free_block_is_of_the_cache_alone() -> None:
    segments = [
        {"blocks": [{"size": 900, "state": "active_allocated"}, {"size": 40, "state": "inactive"}]},
        {
            "blocks": [
                {"size": 70, "state": "inactive"},
                {"size": 80, "state": "active_pending_free"},
            ]
        },
    ]
    assert largest_free_block_bytes(segments) == 70
    assert largest_free_block_bytes([]) == 0
