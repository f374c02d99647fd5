"""`replay`: fidelity, scenarios, capacity, advice."""

import json
import tracemalloc
from pathlib import Path

import pytest

from tests.allocator.build import (
    BASE,
    alloc,
    dump,
    event,
    fragmented_snapshot,
    fragmenting,
    free,
    live,
    segment,
    snapshot,
    unused,
)
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.allocator.snapshot import RecordingAllocator, save_snapshot, snapshot_of
from tritter_mem.errors import ConfigError, InputError, UsageError
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.recordings.scenarios import STANDARD
from tritter_mem.results.replay import Replay, Scenario
from tritter_mem.units import MiB


@pytest.fixture
def fragmented(tmp_path: Path) -> Path:
    return fragmented_snapshot(tmp_path / "fragmented.pickle")


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """The same on a device of 200 MiB: the last request failed."""
    run = RecordingAllocator(CachingAllocator(capacity_bytes=200 * MiB))
    with pytest.raises(OutOfMemoryError):
        fragmenting(run)
    path = tmp_path / "failed.pickle"
    save_snapshot(path, snapshot_of(run))
    return path


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """Recorded with 100 MiB cached from before, for a step that needs 30 MiB."""
    made = snapshot(
        [segment(BASE, live(30 * MiB), unused(70 * MiB))], [alloc(BASE, 30 * MiB)]
    )  # fmt: skip
    return dump(tmp_path / "warm.pickle", made)


def by_name(found: Replay) -> dict[str, Scenario]:
    (device,) = found.devices
    return {scenario.name: scenario for scenario in device.scenarios}


# Fidelity


def test_a_recording_of_the_simulator_is_replayed_exactly(fragmented: Path) -> None:
    (device,) = replay(fragmented).devices
    assert device.fidelity.exact
    assert device.fidelity.segments_matched == 4
    assert device.fidelity.addresses_total == 10
    assert device.recorded == device.replayed
    assert device.recorded.reserved_peak_bytes == 220 * MiB


def test_a_recording_made_by_other_rules_is_not_exact(tmp_path: Path) -> None:
    """A segment that no rule asks for, and addresses that no rule gives."""
    made = snapshot(
        [segment(BASE, unused(512), live(512), unused(6 * MiB - 1024), segment_type="large")],
        [event("segment_alloc", BASE, 6 * MiB), alloc(BASE + 512, 512)],
    )
    (device,) = replay(dump(tmp_path / "s.pickle", made)).devices
    fidelity = device.fidelity
    assert not fidelity.exact
    assert (fidelity.segments_matched, fidelity.segments_missed) == (0, 1)
    assert (fidelity.segments_extra, fidelity.addresses_matched) == (1, 0)
    assert device.replayed.reserved_peak_bytes == 2 * MiB


def test_releases_are_replayed_where_they_were_recorded(tmp_path: Path) -> None:
    run = RecordingAllocator(CachingAllocator())
    run.free(run.malloc(100 * MiB))
    run.empty_cache()
    run.malloc(30 * MiB)
    save_snapshot(tmp_path / "s.pickle", snapshot_of(run))
    found = replay(tmp_path / "s.pickle")
    (device,) = found.devices
    assert device.fidelity.exact
    assert device.replayed.segment_releases == 1
    assert {s.reserved_peak_bytes for s in device.scenarios if "round" not in s.name} == {100 * MiB}


def test_a_partial_release_belongs_to_the_recorded_settings(tmp_path: Path) -> None:
    """One of two cached segments went, as garbage collection does: other settings do not."""
    made = snapshot(
        [segment(BASE, live(40 * MiB)), segment(BASE + 1024 * MiB, live(30 * MiB))],
        [
            *free(BASE + 64 * MiB, 20 * MiB),
            event("segment_free", BASE + 64 * MiB, 20 * MiB),
            event("segment_alloc", BASE + 1024 * MiB, 30 * MiB),
            alloc(BASE + 1024 * MiB, 30 * MiB),
            *free(BASE, 40 * MiB),
            alloc(BASE, 40 * MiB),
        ],
    )
    (device,) = replay(dump(tmp_path / "s.pickle", made)).devices
    assert device.fidelity.exact
    rows = {s.name: s for s in device.scenarios}
    assert rows["as recorded"].reserved_peak_bytes == 70 * MiB


# Scenarios


def test_the_standard_scenarios_and_those_asked_for(fragmented: Path) -> None:
    found = replay(fragmented, alloc_confs=["max_split_size_mb:32", STANDARD[1]])
    names = list(by_name(found))
    assert names == ["as recorded", *STANDARD[1:], "max_split_size_mb:32"]


def test_the_recorded_settings_are_not_repeated(tmp_path: Path) -> None:
    run = RecordingAllocator(CachingAllocator(parse_alloc_conf("expandable_segments:True")))
    run.malloc(1)
    save_snapshot(tmp_path / "s.pickle", snapshot_of(run))
    names = list(by_name(replay(tmp_path / "s.pickle")))
    assert names[:3] == ["as recorded", "PyTorch's defaults", "max_split_size_mb:64"]
    assert "expandable_segments:True" not in names


def test_expandable_segments_close_the_gaps(fragmented: Path) -> None:
    rows = by_name(replay(fragmented))
    recorded, expandable = rows["as recorded"], rows["expandable_segments:True"]
    assert recorded.reserved_peak_bytes == 220 * MiB
    assert recorded.fragmentation.reserved_not_allocated_bytes == 30 * MiB
    assert recorded.fragmentation.largest_free_block_bytes == 10 * MiB
    assert recorded.fragmentation.inactive_split_bytes == 30 * MiB
    assert expandable.reserved_peak_bytes == 200 * MiB
    assert expandable.fragmentation.reserved_not_allocated_bytes == 10 * MiB


def test_without_a_capacity_no_scenario_fails(fragmented: Path) -> None:
    assert all(scenario.fits for scenario in by_name(replay(fragmented)).values())


def test_a_warm_cache_is_kept_as_recorded_and_left_out_elsewhere(warm: Path) -> None:
    rows = by_name(replay(warm))
    assert rows["as recorded"].reserved_peak_bytes == 100 * MiB
    assert rows["as recorded, fresh start"].reserved_peak_bytes == 30 * MiB
    assert not rows["as recorded"].fresh
    assert all(row.fresh for name, row in rows.items() if name != "as recorded")


def test_the_timeline_keeps_the_peaks(fragmented: Path) -> None:
    for scenario in by_name(replay(fragmented)).values():
        events, allocated, reserved = zip(*scenario.timeline.rows, strict=True)
        assert max(allocated) == scenario.allocated_peak_bytes
        assert max(reserved) == scenario.reserved_peak_bytes
        assert list(events) == sorted(events)
        assert len(events) <= 600


def test_segment_maps_show_the_fullest_moment_at_the_peak(fragmented: Path) -> None:
    for scenario in by_name(replay(fragmented, segment_maps=True)).values():
        segments = scenario.segments_at_peak
        assert sum(s.size for s in segments) == scenario.reserved_peak_bytes
        live_bytes = sum(s.allocated_bytes for s in segments)
        unused_bytes = scenario.fragmentation.reserved_not_allocated_bytes
        assert scenario.reserved_peak_bytes - live_bytes == unused_bytes
    assert all(not s.segments_at_peak for s in by_name(replay(fragmented)).values())


def test_the_same_snapshot_gives_the_same_answer(fragmented: Path) -> None:
    first, second = (replay(fragmented).devices for _ in range(2))
    assert first == second


# Capacity


def test_a_capacity_tells_which_settings_fit(fragmented: Path) -> None:
    found = replay(fragmented, capacity_bytes=200 * MiB)
    rows = by_name(found)
    assert not found.fits
    assert rows["expandable_segments:True"].fits
    failure = rows["as recorded"].out_of_memory
    assert failure is not None
    assert (failure.requested_bytes, failure.segment_bytes) == (40 * MiB, 40 * MiB)
    assert (failure.allocated_bytes, failure.reserved_bytes) == (150 * MiB, 180 * MiB)
    assert failure.event == found.devices[0].recorded_events - 1
    assert rows["as recorded"].alloc_retries == 1


def test_a_recorded_failure_tells_the_capacity(failed: Path) -> None:
    found = replay(failed)
    (device,) = found.devices
    assert (device.capacity_bytes, device.capacity_source) == (200 * MiB, "recorded")
    rows = by_name(found)
    assert not rows["as recorded"].fits
    assert rows["expandable_segments:True"].fits
    assert device.advice.conf == "expandable_segments:True"


def test_a_fraction_is_seen_where_the_device_had_more_free(tmp_path: Path) -> None:
    conf = "per_process_memory_fraction:0.5"
    run = RecordingAllocator(CachingAllocator(parse_alloc_conf(conf), 400 * MiB))
    with pytest.raises(OutOfMemoryError):
        fragmenting(run)
    made = snapshot_of(run)
    made["device_traces"][0][-1]["device_free"] = 220 * MiB  # as cudaMemGetInfo would say
    (device,) = replay(dump(tmp_path / "s.pickle", made)).devices
    assert device.capacity_bytes == 180 * MiB + 40 * MiB - 1
    assert not device.fits


def test_a_given_capacity_outweighs_the_recorded_one(failed: Path) -> None:
    (device,) = replay(failed, capacity_bytes=500 * MiB).devices
    assert (device.capacity_bytes, device.capacity_source) == (500 * MiB, "given")
    assert device.fits


def test_a_beginning_that_does_not_fit(warm: Path) -> None:
    rows = by_name(replay(warm, capacity_bytes=20 * MiB))
    failure = rows["as recorded, fresh start"].out_of_memory
    assert failure is not None
    assert failure.event == 0
    assert rows["as recorded"].out_of_memory is not None


def test_live_blocks_that_alone_are_too_large_fail_at_the_beginning(tmp_path: Path) -> None:
    made = snapshot([segment(BASE, live(100 * MiB))], [*free(BASE + 512 * MiB, 1), alloc(BASE, 1)])
    made["segments"].append(segment(BASE + 1024 * MiB, live(100 * MiB)))
    rows = by_name(replay(dump(tmp_path / "s.pickle", made), capacity_bytes=50 * MiB))
    failure = rows["as recorded"].out_of_memory
    assert failure is not None
    assert (failure.event, failure.allocated_bytes) == (None, 100 * MiB)


def test_a_cached_beginning_that_is_too_large_is_released(warm: Path) -> None:
    """100 MiB are cached and none are live: on a smaller card the cache would have gone."""
    recorded = by_name(replay(warm, capacity_bytes=60 * MiB))["as recorded"]
    assert recorded.fits


# Advice


def test_the_setting_that_saves_most_is_advised(fragmented: Path) -> None:
    (device,) = replay(fragmented).devices
    assert device.advice.conf == "expandable_segments:True"
    assert device.advice.text == (
        "Use expandable_segments:True: reserves 200.0 MiB at the peak, 20.0 MiB less."
    )


def test_a_setting_that_helps_where_the_recorded_one_fails(fragmented: Path) -> None:
    (device,) = replay(fragmented, capacity_bytes=210 * MiB).devices
    assert device.advice.text == (
        "The recorded settings do not fit. Use expandable_segments:True: every recorded request is "
        "served, 200.0 MiB reserved at the peak, 10.0 MiB to spare."
    )


def test_what_a_job_that_ran_out_of_memory_asks_for_next_is_not_promised() -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "out-of-memory.pickle"
    (device,) = replay(example).devices
    assert device.advice.conf == "expandable_segments:True"
    assert "every recorded request" in device.advice.text
    assert device.advice.text.endswith("what it would have asked for next is unknown.")


def test_no_setting_helps_where_tensors_alone_are_too_much(fragmented: Path) -> None:
    (device,) = replay(fragmented, capacity_bytes=100 * MiB).devices
    assert device.advice.conf is None
    assert device.advice.text == (
        "No setting helps: none of them fits. The allocated tensors alone need 190.0 MiB, 90.0 MiB "
        "more "
        "than there is; with expandable_segments:True 200.0 MiB would have to be reserved."
    )


def test_no_setting_is_advised_where_none_saves_anything(tmp_path: Path) -> None:
    run = RecordingAllocator(CachingAllocator())
    run.malloc(100 * MiB)
    save_snapshot(tmp_path / "s.pickle", snapshot_of(run))
    (device,) = replay(tmp_path / "s.pickle", capacity_bytes=150 * MiB).devices
    assert device.advice.conf is None
    assert device.advice.text.startswith("The recorded settings fit, with 50.0 MiB to spare. No ")


# Input


def test_a_snapshot_without_history_says_how_to_record_one(tmp_path: Path) -> None:
    path = dump(tmp_path / "s.pickle", snapshot([segment(BASE, live(2 * MiB))], []))
    with pytest.raises(InputError, match=r"no history to replay \(1 segments at the end\)"):
        replay(path)


def test_wrong_settings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_split_size_mb"):
        replay(tmp_path / "not there", alloc_confs=["max_split_size_mb:1"])


@pytest.mark.parametrize("capacity", [0, -5])
def test_a_capacity_must_be_positive(fragmented: Path, capacity: int) -> None:
    with pytest.raises(UsageError, match="expected a positive size"):
        replay(fragmented, capacity_bytes=capacity)


def test_every_device_with_history_is_replayed(tmp_path: Path) -> None:
    made = snapshot(
        [segment(BASE, live(512), unused(2 * MiB - 512), device=d) for d in (0, 1)],
        [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 512)],
        [alloc(BASE, 512)],
    )
    devices = replay(dump(tmp_path / "s.pickle", made)).devices
    assert [device.device for device in devices] == [0, 1]
    assert [device.recorded.reserved_start_bytes for device in devices] == [0, 2 * MiB]


def test_progress_grows_to_one(fragmented: Path) -> None:
    seen: list[float] = []
    replay(fragmented, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_the_record_is_plain_json(fragmented: Path) -> None:
    record = replay(fragmented, capacity_bytes=200 * MiB).to_dict()
    assert json.dumps(json.loads(json.dumps(record))) == json.dumps(record)
    assert record["schema"] == "tritter-mem.replay/1"
    (device,) = record["devices"]
    assert set(device["fidelity"]) == {
        "segments_matched", "segments_missed", "segments_extra", "addresses_matched",
        "addresses_total",
    }  # fmt: skip
    assert {"conf", "allocated_peak_bytes", "reserved_peak_bytes", "fragmentation",
            "out_of_memory"} <= set(device["scenarios"][0])  # fmt: skip


def test_a_replay_takes_less_than_1_kib_an_event(tmp_path: Path) -> None:
    run = RecordingAllocator(CachingAllocator())
    for size in range(1, 5001):
        run.free(run.malloc(size * 700))
    save_snapshot(tmp_path / "s.pickle", snapshot_of(run))
    events = len(run.trace)
    del run
    tracemalloc.start()
    replay(tmp_path / "s.pickle")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1024 * events
