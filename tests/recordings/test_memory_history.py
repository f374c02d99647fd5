"""The state at the beginning, rebuilt from the end, and the steps of a replay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.allocator.build import (
    BASE,
    alloc,
    event,
    free,
    history_of,
    live,
    segment,
    snapshot,
    unused,
)
from tests.allocator.workloads import AT_ONCE, CONFS, WORKLOADS, Run, Step
from tritter_mem.allocator.blocks import Ties
from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.allocator.snapshot import RecordingAllocator, Trace, snapshot_of
from tritter_mem.recordings.fidelity import verify
from tritter_mem.recordings.memory_history import (
    DO_ALLOC,
    DO_COMPLETE,
    DO_FREE,
    DO_MAP,
    DO_RELEASE,
    DO_REQUEST,
    DO_RETRY,
    DO_TRY,
    History,
)
from tritter_mem.units import KiB, MiB


def start(history: History) -> list[tuple[int, list[tuple[int, str]]]]:
    """Segments at the beginning, as (MiB from BASE, [(block size, state)])."""
    return [
        ((s.address - BASE) // MiB, [(b.size, b.state.name.lower()) for b in s.blocks])
        for s in history.start
    ]


# The state at the beginning


def test_a_complete_history_begins_with_nothing() -> None:
    history = history_of(
        snapshot(
            [segment(BASE, live(512), unused(2 * MiB - 512))],
            [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 512)],
        )
    )
    assert (history.start, history.warnings) == ([], [])


def test_a_block_freed_in_the_history_was_live_at_its_beginning() -> None:
    made = snapshot([segment(BASE, unused(2 * MiB))], free(BASE + 512, 700))
    assert start(history_of(made)) == [
        (0, [(512, "free"), (1024, "allocated"), (2 * MiB - 1536, "free")])
    ]


def test_a_block_allocated_in_the_history_was_free() -> None:
    made = snapshot([segment(BASE, live(512), unused(2 * MiB - 512))], [alloc(BASE, 9)])
    assert start(history_of(made)) == [(0, [(2 * MiB, "free")])]


def test_a_released_segment_was_there_and_free() -> None:
    made = snapshot([], [event("segment_free", BASE, 2 * MiB)])
    history = history_of(made)
    assert start(history) == [(0, [(2 * MiB, "free")])]
    assert history.start[0].small
    assert history.recorded.reserved_start_bytes == 2 * MiB
    assert history.recorded.reserved_end_bytes == 0


def test_a_gap_too_small_to_be_split_off_belongs_to_the_block_before_it() -> None:
    first, second = BASE, BASE + 5 * MiB
    made = snapshot(
        [segment(BASE, unused(20 * MiB))],
        [*free(first, 4 * MiB + 512 * KiB), *free(second, 15 * MiB)],
    )
    assert start(history_of(made)) == [(0, [(5 * MiB, "allocated"), (15 * MiB, "allocated")])]


def test_a_larger_gap_is_free() -> None:
    made = snapshot(
        [segment(BASE, unused(20 * MiB))],
        [*free(BASE, 4 * MiB - 512), *free(BASE + 5 * MiB, 15 * MiB)],
    )
    assert [block for block, _ in start(history_of(made))[0][1]] == [
        4 * MiB - 512,
        MiB + 512,
        15 * MiB,
    ]


def test_in_the_small_pool_every_gap_is_free() -> None:
    made = snapshot([segment(BASE, unused(2 * MiB))], [*free(BASE, 512), *free(BASE + 1024, 512)])
    assert [state for _, state in start(history_of(made))[0][1]] == [
        "allocated", "free", "allocated", "free",
    ]  # fmt: skip


def test_the_first_request_served_behind_a_block_tells_where_it_ends() -> None:
    """What lay behind the block was free at the beginning, so the gap alone says nothing."""
    made = snapshot(
        [segment(BASE, unused(5 * MiB + 512 * KiB), live(3 * MiB), unused(11 * MiB + 512 * KiB))],
        [alloc(BASE + 5 * MiB + 512 * KiB, 3 * MiB), *free(BASE, 5 * MiB)],
    )
    assert start(history_of(made))[0][1][0] == (5 * MiB + 512 * KiB, "allocated")


def test_max_split_leaves_the_whole_segment_to_an_oversize_request() -> None:
    made = snapshot(
        [segment(BASE, unused(100 * MiB))], free(BASE, 85 * MiB), conf="max_split_size_mb:64"
    )
    assert start(history_of(made)) == [(0, [(100 * MiB, "allocated")])]


def test_a_block_that_waits_at_the_beginning() -> None:
    made = snapshot([segment(BASE, unused(2 * MiB))], [event("free_completed", BASE, 512)])
    history = history_of(made)
    assert start(history)[0][1][0] == (512, "waiting")
    assert (list(history.steps), history.waiting_at_start) == ([DO_COMPLETE], [0])


def test_a_block_that_waits_at_the_end() -> None:
    block = {**live(512), "state": "active_awaiting_free"}
    made = snapshot(
        [segment(BASE, block, unused(2 * MiB - 512))], [event("free_requested", BASE, 512)]
    )
    history = history_of(made)
    assert start(history)[0][1][0] == (512, "allocated")
    assert list(history.steps) == [DO_REQUEST]


def test_mapped_pages_are_undone() -> None:
    mapped = segment(BASE, live(30 * MiB), unused(10 * MiB), is_expandable=True)
    made = snapshot(
        [mapped],
        [event("segment_map", BASE + 20 * MiB, 20 * MiB), alloc(BASE, 30 * MiB)],
        conf="expandable_segments:True",
    )
    assert start(history_of(made)) == [(0, [(20 * MiB, "free")])]


def test_unmapped_pages_are_undone_and_join_their_neighbours() -> None:
    made = snapshot(
        [
            segment(BASE, live(20 * MiB), is_expandable=True),
            segment(BASE + 40 * MiB, live(20 * MiB), is_expandable=True),
        ],
        [event("segment_unmap", BASE + 20 * MiB, 20 * MiB)],
        conf="expandable_segments:True",
    )
    (whole,) = history_of(made).start
    assert (whole.address, whole.size, whole.small) == (BASE, 60 * MiB, False)


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("second", [BASE, BASE + MiB])
def test_a_segment_inside_of_another_at_the_end_is_ignored_and_counted(
    second: int, expandable: bool
) -> None:
    segments = [
        segment(BASE, unused(2 * MiB), is_expandable=expandable, segment_pool_id=(1, 2)),
        segment(second, live(2 * MiB), is_expandable=expandable),
    ]
    history = history_of(snapshot(segments, []))
    assert start(history) == [(0, [(2 * MiB, "free")])]
    assert history.warnings == ["segments that overlap another one, ignored: 1"]


def test_the_pool_of_pages_that_are_gone_follows_from_what_they_served() -> None:
    made = snapshot(
        [],
        [*free(BASE, 4096), event("segment_unmap", BASE, 20 * MiB)],
        conf="expandable_segments:True",
    )
    (pages,) = history_of(made).start
    assert pages.small


# Steps


def test_steps_of_every_kind() -> None:
    history = history_of(
        snapshot(
            [segment(BASE, unused(20 * MiB))],
            [
                event("segment_alloc", BASE, 20 * MiB),
                alloc(BASE, 2 * MiB),
                event("free_requested", BASE, 2 * MiB),
                event("free_completed", BASE, 2 * MiB),
                alloc(BASE, 3 * MiB),
                event("free_requested", BASE, 3 * MiB),
                event("segment_alloc", BASE + 64 * MiB, 30 * MiB),
                event("free_completed", BASE, 3 * MiB),
                event("segment_free", BASE + 64 * MiB, 30 * MiB),
                event("oom", 1000, 80 * MiB),
            ],
        )
    )
    assert list(history.steps) == [
        DO_ALLOC, DO_FREE, DO_ALLOC, DO_REQUEST, DO_COMPLETE, DO_RELEASE, DO_TRY,
    ]  # fmt: skip
    assert list(history.events) == [1, 2, 4, 5, 7, 8, 9]
    assert history.releases[0].segments == [(BASE + 64 * MiB, 30 * MiB)]
    assert history.failures[0].device_free_bytes == 1000
    assert history.recorded.reserved_peak_bytes == 50 * MiB
    assert (history.recorded.segment_allocations, history.recorded.segment_releases) == (2, 1)


def test_consecutive_releases_are_one_step() -> None:
    made = snapshot([], [event("segment_free", BASE + i * 2 * MiB, 2 * MiB) for i in range(3)])
    history = history_of(made)
    assert list(history.steps) == [DO_RELEASE]
    assert len(history.releases[0].segments) == 3


# What does not add up


def test_frees_of_what_was_never_allocated_are_counted() -> None:
    made = snapshot(
        [segment(BASE, live(512), unused(2 * MiB - 512))],
        [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 512), *free(BASE + 64 * MiB, 512)],
    )
    history = history_of(made)
    assert history.warnings == ["frees of memory that was never allocated, ignored: 1"]
    assert list(history.steps) == [DO_ALLOC]


def test_a_second_free_of_the_same_block_is_counted() -> None:
    made = snapshot(
        [segment(BASE, unused(2 * MiB))],
        [
            event("segment_alloc", BASE, 2 * MiB),
            alloc(BASE, 512),
            *free(BASE, 512),
            *free(BASE, 512),
        ],
    )
    history = history_of(made)
    assert "frees of memory that was never allocated, ignored: 1" in history.warnings
    assert list(history.steps) == [DO_ALLOC, DO_FREE]


def test_a_missing_free_is_added_and_counted() -> None:
    made = snapshot(
        [segment(BASE, live(512), unused(2 * MiB - 512))],
        [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 512), alloc(BASE, 100)],
    )
    history = history_of(made)
    assert list(history.steps) == [DO_ALLOC, DO_FREE, DO_ALLOC]
    assert history.warnings == [
        "allocations neither freed in the history nor allocated at its end: 1",
        "allocations at the address of an allocated block, whose missing free was added: 1",
    ]


def test_segments_that_vanish_are_counted() -> None:
    made = snapshot([], [event("segment_alloc", BASE, 2 * MiB)])
    assert history_of(made).warnings == [
        "segments neither released in the history nor there at its end: 1"
    ]


@pytest.mark.parametrize("recorded", ["free_requested", "free_completed"])
def test_a_recording_that_skipped_one_event_of_each_free(recorded: str) -> None:
    made = snapshot(
        [segment(BASE, unused(2 * MiB))],
        [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 512), event(recorded, BASE, 512)],
    )
    history = history_of(made)
    assert (list(history.steps), history.warnings) == ([DO_ALLOC, DO_FREE], [])


# Recordings of the simulator itself: what was recorded is known


@settings(max_examples=200, deadline=None)
@given(conf=st.sampled_from(CONFS), ties=st.sampled_from(Ties), steps=WORKLOADS)
def test_a_complete_recording_is_replayed_exactly(conf: str, ties: Ties, steps: list[Step]) -> None:
    """Of every release of PyTorch: the replay finds out which of several equal blocks it took."""
    recorder = RecordingAllocator(CachingAllocator(parse_alloc_conf(conf), ties=ties))
    Run(recorder).do_all(steps)
    for device in _devices(recorder):
        replayed, fidelity = verify(device, lambda _: None)
        assert fidelity.exact
        assert replayed == device.recorded
        assert device.warnings == []


PLAIN_CONFS = [conf for conf in CONFS if "expandable" not in conf]


@settings(max_examples=200, deadline=None)
@given(
    conf=st.sampled_from(PLAIN_CONFS),
    capacity=st.one_of(st.none(), st.integers(50 * MiB, 500 * MiB)),
    before=AT_ONCE,
    after=AT_ONCE,
)
def test_a_recording_that_begins_later_is_replayed_exactly(
    conf: str, capacity: int | None, before: list[Step], after: list[Step]
) -> None:
    """Where addresses decide between equal blocks; of older segments the order is not known."""
    allocator = CachingAllocator(parse_alloc_conf(conf), capacity, ties=Ties.LOWEST)
    recorder = RecordingAllocator(allocator)
    run = Run(recorder).do_all(before)
    at_start = recorder.allocator.segments()
    recorder.trace = Trace()
    run.do_all(after)
    for device in _devices(recorder):
        replayed, fidelity = verify(device, lambda _: None)
        assert fidelity.exact
        assert replayed == device.recorded
        assert device.recorded.reserved_start_bytes == sum(s.size for s in at_start)


def _devices(recorder: RecordingAllocator) -> list[History]:
    """None where nothing happened."""
    return [history_of(snapshot_of(recorder))] if len(recorder.trace) else []


# What the recordings of PyTorch's own allocator showed


def assert_exact(history: History) -> None:
    replayed, fidelity = verify(history, lambda _: None)
    assert fidelity.exact, fidelity
    assert replayed == history.recorded


def test_pages_mapped_below_all_others_tell_where_an_expandable_segment_begins() -> None:
    """Its first page was unmapped before the recording began, and is the first to be mapped."""
    page = 20 * MiB
    blocks = (live(12 * MiB), unused(8 * MiB), live(page))
    events = [event("segment_map", BASE, page), alloc(BASE, 12 * MiB)]
    history = history_of(
        snapshot(
            [segment(BASE, *blocks, is_expandable=True)], events, conf="expandable_segments:True"
        )
    )
    assert [s.address for s in history.start] == [BASE + page]
    assert history.starts == {(0, False): BASE}
    assert_exact(history)


def test_an_expandable_segment_that_was_given_up_begins_anew() -> None:
    page, lower = 20 * MiB, BASE - 100 * MiB
    events = [
        *free(BASE, page),
        event("segment_unmap", BASE, page),
        event("segment_map", lower, page),
        alloc(lower, page),
    ]
    made = segment(lower, live(page), is_expandable=True)
    history = history_of(snapshot([made], events, conf="expandable_segments:True"))
    assert history.starts == {(0, False): BASE}
    assert_exact(history)


def test_pages_mapped_for_a_request_that_then_failed_are_mapped_and_unmapped() -> None:
    page = 20 * MiB
    events = [
        event("segment_map", BASE, page),
        alloc(BASE, 15 * MiB),
        event("segment_map", BASE + page, page),
        event("segment_unmap", BASE + page, page),
        event("oom", 0, 60 * MiB),
    ]
    made = segment(BASE, live(15 * MiB), unused(5 * MiB), is_expandable=True)
    history = history_of(snapshot([made], events, conf="expandable_segments:True"))
    assert list(history.steps) == [DO_ALLOC, DO_MAP, DO_RELEASE, DO_TRY]
    assert history.recorded.reserved_peak_bytes == 2 * page
    assert_exact(history)


def test_the_retry_does_not_look_again_at_free_blocks() -> None:
    """A block that waited is free by then and would fit; PyTorch takes new memory all the same."""
    small, new = BASE + 20 * MiB, BASE + 40 * MiB
    events = [
        event("segment_alloc", BASE, 20 * MiB),
        alloc(BASE, 9 * MiB),
        alloc(BASE + 9 * MiB, 9 * MiB),
        event("segment_alloc", small, 2 * MiB),
        alloc(small, 512),
        *free(small, 512),
        event("free_requested", BASE, 9 * MiB),
        event("free_completed", BASE, 9 * MiB),
        event("segment_free", small, 2 * MiB),
        event("segment_alloc", new, 20 * MiB),
        alloc(new, 5 * MiB),
    ]
    end = [
        segment(BASE, unused(9 * MiB), live(9 * MiB), unused(2 * MiB)),
        segment(new, live(5 * MiB), unused(15 * MiB)),
    ]
    history = history_of(snapshot(end, events))
    assert history.steps[-1] == DO_RETRY
    assert_exact(history)
