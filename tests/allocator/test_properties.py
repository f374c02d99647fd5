"""What holds for any workload under any settings."""

from contextlib import suppress
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.allocator.workloads import ALLOC, CONFS, SIZES, WORKLOADS, Run, Step
from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.results.segments import ALLOCATED, FREE
from tritter_mem.units import GiB, MiB

CAPACITIES = st.one_of(st.none(), st.integers(20 * MiB, GiB))
ANY_CONF = st.sampled_from(CONFS)


def run(conf: str, capacity: int | None, steps: list[Step]) -> Run:
    return Run(CachingAllocator(parse_alloc_conf(conf), capacity)).do_all(steps)


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, capacity=CAPACITIES, steps=WORKLOADS)
def test_blocks_tile_segments_and_free_neighbours_are_one(
    conf: str, capacity: int | None, steps: list[Step]
) -> None:
    found = run(conf, capacity, steps)
    segments = found.allocator.segments()
    for segment in segments:
        position = segment.address
        for block in segment.blocks:
            assert block.address == position
            assert block.size > 0
            assert block.size % 512 == 0
            position += block.size
        assert position == segment.address + segment.size
        states = [block.state for block in segment.blocks]
        assert all(not (a is FREE and b is FREE) for a, b in pairwise(states))
    ends = [(segment.address, segment.address + segment.size) for segment in segments]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, capacity=CAPACITIES, steps=WORKLOADS)
def test_live_blocks_are_those_handed_out_and_do_not_overlap(
    conf: str, capacity: int | None, steps: list[Step]
) -> None:
    found = run(conf, capacity, steps)
    handed = sorted((block.address, block.size, block.requested) for block in found.live)
    blocks = [block for segment in found.allocator.segments() for block in segment.blocks]
    assert handed == [(b.address, b.size, b.requested) for b in blocks if b.state is ALLOCATED]
    assert all(address + size <= after for (address, size, _), (after, *_) in pairwise(handed))


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, capacity=CAPACITIES, steps=WORKLOADS)
def test_statistics_agree_with_the_blocks(
    conf: str, capacity: int | None, steps: list[Step]
) -> None:
    found = run(conf, capacity, steps)
    allocator, statistics = found.allocator, found.allocator.statistics
    segments = allocator.segments()
    assert statistics["reserved_bytes.all.current"] == sum(s.size for s in segments)
    assert statistics["allocated_bytes.all.current"] == sum(s.allocated_bytes for s in segments)
    split = sum(
        block.size
        for segment in segments
        if not segment.expandable and len(segment.blocks) > 1
        for block in segment.blocks
        if block.state is FREE
    )
    assert statistics["inactive_split_bytes.all.current"] == split
    assert statistics["num_ooms"] == found.failures


@settings(max_examples=100, deadline=None)
@given(conf=ANY_CONF, steps=WORKLOADS)
def test_counts_and_peaks_of_each_pool_are_those_of_the_blocks_after_each_step(
    conf: str, steps: list[Step]
) -> None:
    """Without a capacity: where memory is short, a request waits for what is being freed."""
    found = Run(CachingAllocator(parse_alloc_conf(conf)))
    small = found.allocator.counters.small
    blocks: dict[int, tuple[Block, int, int, bool]] = {}
    peaks: dict[str, int] = {}
    for step in steps:
        before = len(found.live)
        found.do(step)
        for block in found.live[before:]:
            row = (block, block.size, block.requested, block.pool.tally is small)
            blocks[id(block)] = row
        waiting = {id(block) for block in found.allocator.waiting.values()}
        live = {id(block) for block in found.live}
        for pool, sizes in {
            "all": {True, False},
            "small_pool": {True},
            "large_pool": {False},
        }.items():
            own = [(key, *row) for key, row in blocks.items() if row[3] in sizes]
            active = [row for row in own if row[0] in live | waiting]
            allocated = [row for row in own if row[0] in live]
            for name, value in {
                "allocation": len(allocated),
                "allocated_bytes": sum(row[2] for row in allocated),
                "active": len(active),
                "active_bytes": sum(row[2] for row in active),
                "requested_bytes": sum(row[3] for row in active),
            }.items():
                key = f"{name}.{pool}"
                peaks[f"{key}.current"] = value
                peaks[f"{key}.peak"] = max(peaks.get(f"{key}.peak", 0), value)
    statistics = found.allocator.statistics
    assert {name: statistics[name] for name in peaks} == peaks


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, capacity=CAPACITIES, steps=WORKLOADS)
def test_reserved_active_allocated_requested_in_that_order(
    conf: str, capacity: int | None, steps: list[Step]
) -> None:
    found = Run(CachingAllocator(parse_alloc_conf(conf), capacity))
    for step in steps:
        found.do(step)
        statistics = found.allocator.statistics
        for value in ("current", "peak"):
            reserved, active, allocated = (
                statistics[f"{name}_bytes.all.{value}"]
                for name in ("reserved", "active", "allocated")
            )
            assert reserved >= active >= allocated
            assert active >= statistics[f"requested_bytes.all.{value}"]
        assert capacity is None or statistics["reserved_bytes.all.peak"] <= capacity


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, steps=WORKLOADS, step=ALLOC)
def test_free_then_the_same_request_again_changes_nothing(
    conf: str, steps: list[Step], step: Step
) -> None:
    found = run(conf, None, [*steps, step])
    allocator, block = found.allocator, found.live[-1]
    before = allocator.segments()
    address, size = block.address, block.size
    allocator.free(block)
    again = allocator.malloc(step.size, step.stream)
    assert (again.address, again.size) == (address, size)
    assert allocator.segments() == before


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, capacity=CAPACITIES, steps=WORKLOADS)
def test_the_same_workload_gives_the_same_state(
    conf: str, capacity: int | None, steps: list[Step]
) -> None:
    first, second = (run(conf, capacity, steps).allocator for _ in range(2))
    assert first.segments() == second.segments()
    assert first.statistics == second.statistics


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, steps=WORKLOADS)
def test_without_a_capacity_no_request_fails(conf: str, steps: list[Step]) -> None:
    found = run(conf, None, steps)
    assert found.failures == 0
    assert found.allocator.statistics["num_alloc_retries"] == 0


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, steps=WORKLOADS)
def test_everything_freed_and_the_cache_emptied_leaves_nothing(
    conf: str, steps: list[Step]
) -> None:
    public = [step._replace(stream=0) for step in steps]
    found = run(conf, None, public)
    for block in found.live:
        found.allocator.free(block)
    found.allocator.empty_cache()
    assert found.allocator.segments() == []
    assert found.allocator.statistics["reserved_bytes.all.current"] == 0
    assert found.allocator.statistics["active.all.current"] == 0


EVENTS = st.lists(st.one_of(SIZES, st.integers(-(1 << 16), -1)), max_size=120)


@settings(max_examples=200, deadline=None)
@given(conf=ANY_CONF, capacity=CAPACITIES, wanted=EVENTS, cut=st.integers(0, 120))
def test_many_requests_at_once_get_the_blocks_that_each_alone_would(
    conf: str, capacity: int | None, wanted: list[int], cut: int
) -> None:
    """Cut into two calls anywhere; out of memory with the same request."""
    sizes, events = _events(wanted)
    each = CachingAllocator(parse_alloc_conf(conf), capacity)
    alone: dict[int, Block] = {}
    blocks: list[int] = []
    with suppress(OutOfMemoryError):
        for event in events:
            if event >= 0:
                alone[event] = each.malloc(sizes[event])
                blocks.append(alone[event].size)
            else:
                each.free(alone.pop(~event))
    at_once = CachingAllocator(parse_alloc_conf(conf), capacity)
    held: dict[int, Block] = {}
    served: list[int] = []
    with suppress(OutOfMemoryError):
        served += at_once.serve(sizes, events[:cut], held)
        served += at_once.serve(sizes, events[cut:], held)
    places = [{number: (b.address, b.size) for number, b in live.items()} for live in (alone, held)]
    assert places[0] == places[1]
    assert served == blocks[: len(served)]
    for name in ("reserved_bytes.all.peak", "reserved_bytes.all.current", "num_alloc_retries"):
        assert each.statistics[name] == at_once.statistics[name]
    free = [[(b.address, b.size, b.state) for s in a.segments() for b in s.blocks]
            for a in (each, at_once)]  # fmt: skip
    assert free[0] == free[1]


def _events(wanted: list[int]) -> tuple[list[int], list[int]]:
    """Sizes and events; a number below 0 frees one of those that live, if any."""
    sizes: list[int] = []
    events: list[int] = []
    live: list[int] = []
    for number in wanted:
        if number > 0:
            live.append(len(sizes))
            events.append(len(sizes))
            sizes.append(number)
        elif live:
            events.append(~live.pop(number % len(live)))
    return sizes, events
