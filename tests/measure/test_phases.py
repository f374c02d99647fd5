"""From `torch.cuda.memory_stats`, read around each phase, to the answer `measured`."""

from dataclasses import replace

import pytest

from tritter_mem.measure.phases import BETWEEN, PhaseReading, memory_use_of
from tritter_mem.measure.recorded_run import with_components
from tritter_mem.results.run import AllocatorStats, Components, DeviceRun, Holding, MemoryUse, Phase
from tritter_mem.simulation.peaks import WARMUP

NOTHING = AllocatorStats(
    requested_peak_bytes=0, active_peak_bytes=0, inactive_split_peak_bytes=0, retries=0,
    segment_allocations=0, segment_releases=0,
)  # fmt: skip
RUN = DeviceRun(allocator=NOTHING, total_bytes=1 << 30)


def reading(name: str, allocated: int, reserved: int, **more: int) -> PhaseReading:
    """A phase in which a tenth of what was allocated is rounding."""
    stats = {
        "allocated_bytes.all.peak": allocated,
        "reserved_bytes.all.peak": reserved,
        "requested_bytes.all.peak": allocated - allocated // 10,
        "active_bytes.all.peak": allocated + 1,
        "inactive_split_bytes.all.peak": more.get("split_peak", 0),
        "allocated_bytes.all.current": 0,
        "reserved_bytes.all.current": reserved,
        "num_alloc_retries": more.get("retries", 0),
        "num_device_alloc": more.get("allocations", 0),
        "num_device_free": more.get("releases", 0),
    }
    return PhaseReading(name=name, seconds=more.get("seconds", 1), stats=stats)


READINGS = (
    reading(BETWEEN, 0, 0),
    reading("load", 500, 600, allocations=3, seconds=9),
    reading(BETWEEN, 510, 600),
    reading(WARMUP, 5000, 6000, allocations=4, retries=1, releases=2, split_peak=70),
    reading("forward", 900, 6000, split_peak=20),
    reading("backward", 1000, 6000, split_peak=30),
    reading("forward", 950, 6000, seconds=2),
    reading(BETWEEN, 1010, 6000),
)


@pytest.fixture
def found() -> MemoryUse:
    return memory_use_of(READINGS, "cuda:0", RUN)


def test_peak_counts_all_but_the_warm_up(found: MemoryUse) -> None:
    assert found.allocated_peak_bytes == 1010
    assert found.run is not None
    stats = found.run.allocator
    assert (stats.requested_peak_bytes, stats.active_peak_bytes) == (909, 1011)
    assert stats.inactive_split_peak_bytes == 30


def test_what_the_warm_up_reserved_and_called_counts(found: MemoryUse) -> None:
    assert found.reserved_peak_bytes == 6000
    assert found.run is not None
    stats = found.run.allocator
    assert (stats.segment_allocations, stats.segment_releases, stats.retries) == (7, 2, 1)


def test_phase_that_comes_twice_has_its_largest_peak_and_all_its_seconds(found: MemoryUse) -> None:
    assert [phase.name for phase in found.phases] == ["load", "forward", "backward"]
    forward = found.phases[1]
    assert (forward.allocated_peak_bytes, forward.seconds) == (950, 3)


def test_run_without_a_phase_has_no_peak() -> None:
    found = memory_use_of(READINGS[:1], "cuda:0", RUN)
    assert (found.phases, found.allocated_peak_bytes) == ((), 0)


def recorded(found: MemoryUse, asked: int = 909) -> MemoryUse:
    """The same run under the recorder, which knows where the bytes are."""
    parts = Components(weights_bytes=100, activations_bytes=776, workspace_bytes=33)
    phases = tuple(
        Phase(name=phase.name, allocated_peak_bytes=910, components=Components(weights_bytes=100))
        for phase in found.phases
    )
    held = (Holding(module="mlp", component="weights", allocated_bytes=1010),)
    run = replace(RUN, allocator=replace(NOTHING, requested_peak_bytes=asked))
    return MemoryUse(
        device="cuda:0", components=replace(parts, rounding_bytes=101), phases=phases,
        allocated_peak_bytes=1010, peak_at="backward: mlp", library_workspace_bytes=33, run=run,
        held_at_peak=held,
    )  # fmt: skip


def test_where_the_bytes_are_is_the_recorded_run_s(found: MemoryUse) -> None:
    second = recorded(found)
    whole = with_components(found, second)
    assert whole.components == second.components
    assert whole.components.total_bytes == whole.allocated_peak_bytes
    assert whole.library_workspace_bytes == 33
    assert whole.peak_at == "backward: mlp"
    assert whole.held_at_peak == second.held_at_peak
    assert [phase.components and phase.components.total_bytes for phase in whole.phases] == [
        phase.allocated_peak_bytes for phase in whole.phases
    ]


def test_block_that_is_left_whole_in_one_run_alone_is_rounding(found: MemoryUse) -> None:
    """Both asked for the same; the rows by module are of the other run's blocks, and left out."""
    second = replace(recorded(found), allocated_peak_bytes=1000)
    whole = with_components(found, replace(second, components=Components(weights_bytes=1000)))
    assert whole.components == Components(weights_bytes=1000, rounding_bytes=10)
    assert whole.held_at_peak == ()


@pytest.mark.parametrize("other", ["more bytes", "fewer bytes", "other phases"])
def test_runs_that_disagree_leave_components_out(found: MemoryUse, other: str) -> None:
    seen = recorded(found, {"more bytes": 910, "fewer bytes": 908}.get(other, 909))
    seen = replace(seen, phases=seen.phases[:1]) if other == "other phases" else seen
    whole = with_components(found, seen)
    assert whole.components == Components()
    assert whole.allocated_peak_bytes == found.allocated_peak_bytes
    assert whole.run is not None
    assert "took another path" in str(whole.run.components_reason)
