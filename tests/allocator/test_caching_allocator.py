"""Each rule of the allocator on a few requests whose outcome was worked out by hand.

New segments get ascending addresses from `START` here, so an address names the segment and the
offset.
"""

import pytest

from tritter_mem import torch_release
from tritter_mem.allocator.addresses import TOP_ADDRESS as START
from tritter_mem.allocator.addresses import AscendingAddresses
from tritter_mem.allocator.blocks import Ties, ties_of
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.errors import UsageError
from tritter_mem.results.segments import PrivateStream
from tritter_mem.units import GiB, MiB


def allocator(conf: str = "", capacity: int | None = None, **more: int) -> CachingAllocator:
    addresses = AscendingAddresses(START)
    return CachingAllocator(parse_alloc_conf(conf), capacity, addresses=addresses, **more)


def layout(a: CachingAllocator) -> list[tuple[int, list[tuple[int, str]]]]:
    """Segments as (MiB from START, [(block size, state)])."""
    return [
        ((s.address - START) // MiB, [(b.size, b.state.name.lower()) for b in s.blocks])
        for s in a.segments()
    ]


# Segments and pools


def test_small_requests_share_a_segment_of_2_mib() -> None:
    a = allocator()
    first, second = a.malloc(100), a.malloc(1000)
    assert (first.address, first.size) == (START, 512)
    assert (second.address, second.size) == (START + 512, 1024)
    assert layout(a) == [(0, [(512, "allocated"), (1024, "allocated"), (2 * MiB - 1536, "free")])]
    assert (a.allocated_bytes, a.reserved_bytes) == (1536, 2 * MiB)


def test_requests_below_10_mib_share_a_segment_of_20_mib() -> None:
    a = allocator()
    first, second = a.malloc(MiB + 1), a.malloc(10 * MiB - 512)
    assert (first.address, first.size) == (START, MiB + 512)
    assert second.address == START + MiB + 512
    assert a.reserved_bytes == 20 * MiB


def test_requests_from_10_mib_on_get_their_size_in_steps_of_2_mib() -> None:
    a = allocator()
    assert a.malloc(10 * MiB).size == 10 * MiB
    assert a.reserved_bytes == 10 * MiB
    # 11 MiB takes a segment of 12 MiB; the rest of 1 MiB is too small to be split off.
    assert a.malloc(11 * MiB).size == 12 * MiB
    assert a.reserved_bytes == 22 * MiB


def test_size_classes_do_not_share_segments() -> None:
    a = allocator()
    a.malloc(2 * MiB)
    small = a.malloc(512)
    assert small.address == START + 20 * MiB
    assert a.reserved_bytes == 22 * MiB


def test_streams_do_not_share_segments_or_blocks() -> None:
    a = allocator()
    a.free(a.malloc(5 * MiB, stream=0))
    other = a.malloc(5 * MiB, stream=7)
    assert other.address == START + 20 * MiB
    assert a.malloc(5 * MiB, stream=0).address == START
    assert a.reserved_bytes == 40 * MiB


# Best fit, split, merge


@pytest.mark.parametrize(
    ("ties", "segments"),
    [(Ties.LOWEST, [1, 1]), (Ties.FIRST_MADE, [0, 1]), (Ties.OLDEST_SEGMENT, [0, 0])],
)
def test_of_equal_blocks_one_is_taken_that_depends_on_the_release(
    ties: Ties, segments: list[int]
) -> None:
    """Of two segments, the second at the lower address, after the first was split and merged."""
    a = CachingAllocator(ties=ties)
    blocks = [a.malloc(64 * MiB) for _ in range(2)]
    places = [block.address for block in blocks]
    assert places == sorted(places, reverse=True)
    for block in blocks:
        a.free(block)
    taken = a.malloc(20 * MiB)
    a.free(taken)
    after = a.malloc(20 * MiB)
    assert [places.index(taken.address), places.index(after.address)] == segments


@pytest.mark.parametrize(
    ("release", "ties"),
    [((2, 10), Ties.LOWEST), ((2, 11), Ties.LOWEST), ((2, 12), Ties.FIRST_MADE),
     ((2, 13), Ties.OLDEST_SEGMENT), ((2, 15), Ties.OLDEST_SEGMENT)],
)  # fmt: skip
def test_each_release_has_its_rule(release: tuple[int, int], ties: Ties) -> None:
    assert ties_of(release) is ties


def test_the_smallest_block_that_suffices_is_taken() -> None:
    a = allocator()
    large, middle, little = (a.malloc(size * MiB) for size in (40, 20, 30))
    for block in (large, middle, little):
        a.free(block)
    assert a.malloc(25 * MiB).address == little.address


def test_of_equal_blocks_the_lowest_address_is_taken() -> None:
    a = allocator()
    blocks = [a.malloc(20 * MiB) for _ in range(3)]
    for block in (blocks[2], blocks[0], blocks[1]):
        a.free(block)
    assert [a.malloc(20 * MiB).address for _ in range(3)] == [block.address for block in blocks]


def test_the_small_pool_splits_off_512_bytes() -> None:
    a = allocator()
    a.free(a.malloc(2048))
    first = a.malloc(MiB)
    assert first.size == MiB
    assert a.malloc(MiB - 512).size == MiB - 512
    assert layout(a)[0][1][-1] == (512, "free")


def test_the_large_pool_leaves_up_to_1_mib_with_the_request() -> None:
    a = allocator()
    a.free(a.malloc(21 * MiB))  # a segment of 22 MiB
    assert a.malloc(21 * MiB).size == 22 * MiB  # exactly 1 MiB is left: not split off
    b = allocator()
    b.free(b.malloc(22 * MiB))
    assert b.malloc(21 * MiB - 512).size == 21 * MiB - 512  # 1 MiB and 512 bytes are


def test_a_freed_block_joins_its_free_neighbours() -> None:
    a = allocator()
    first, second, third = (a.malloc(4 * MiB) for _ in range(3))
    a.free(first)
    a.free(third)
    assert [size for size, _ in layout(a)[0][1]] == [4 * MiB, 4 * MiB, 12 * MiB]
    a.free(second)
    assert layout(a) == [(0, [(20 * MiB, "free")])]


def test_a_block_freed_twice_is_refused() -> None:
    a = allocator()
    block = a.malloc(512)
    a.free(block)
    with pytest.raises(UsageError, match="is not allocated"):
        a.free(block)
    with pytest.raises(UsageError, match="is not allocated"):
        a.request_free(block)


# Releasing


def test_empty_cache_releases_segments_that_are_one_free_block() -> None:
    a = allocator()
    whole, kept = a.malloc(30 * MiB), a.malloc(4 * MiB)
    a.malloc(4 * MiB)
    small = a.malloc(512)
    for block in (whole, kept, small):
        a.free(block)
    a.empty_cache()
    assert layout(a) == [
        (30, [(4 * MiB, "free"), (4 * MiB, "allocated"), (12 * MiB, "free")]),
    ]
    assert a.statistics["num_device_free"] == 2


def test_private_pools_keep_their_segments() -> None:
    a = allocator()
    graph = PrivateStream(0, (0, 1))
    block = a.malloc(30 * MiB, graph)
    a.free(block)
    a.empty_cache()
    assert a.reserved_bytes == 30 * MiB
    assert a.malloc(30 * MiB).address != block.address
    assert a.malloc(30 * MiB, graph).address == block.address


def test_a_block_in_use_by_another_stream_waits() -> None:
    a = allocator()
    block = a.malloc(20 * MiB)
    ticket = a.request_free(block)
    assert (a.allocated_bytes, a.counters.active_bytes) == (0, 20 * MiB)
    other = a.malloc(20 * MiB)
    assert other.address != block.address
    a.complete_free(ticket)
    assert a.counters.active_bytes == 20 * MiB
    assert a.malloc(20 * MiB).address == block.address


def test_small_blocks_that_wait_are_active() -> None:
    a = allocator()
    waits = a.request_free(a.malloc(1024))
    assert waits
    a.malloc(1024)
    assert a.counters.named()["active.all.peak"] == 2


def test_a_waiting_block_does_not_join_its_neighbours() -> None:
    a = allocator()
    first, second = a.malloc(4 * MiB), a.malloc(4 * MiB)
    ticket = a.request_free(first)
    a.free(second)
    assert layout(a) == [(0, [(4 * MiB, "waiting"), (16 * MiB, "free")])]
    a.complete_free(ticket)
    assert layout(a) == [(0, [(20 * MiB, "free")])]


def test_empty_cache_waits_for_other_streams() -> None:
    a = allocator()
    ticket = a.request_free(a.malloc(20 * MiB))
    a.empty_cache()
    assert a.reserved_bytes == 0
    a.complete_free(ticket)  # comes too late to matter
    assert a.statistics["num_sync_all_streams"] == 1


# Capacity


def test_out_of_memory_names_the_request() -> None:
    a = allocator(capacity=100 * MiB)
    a.malloc(60 * MiB)
    with pytest.raises(OutOfMemoryError, match=r"41\.0 MiB requested") as caught:
        a.malloc(41 * MiB)
    error = caught.value
    assert error.requested_bytes == 41 * MiB
    assert error.segment_bytes == 42 * MiB
    assert (error.reserved_bytes, error.limit_bytes) == (60 * MiB, 100 * MiB)
    assert (a.statistics["num_ooms"], a.statistics["num_alloc_retries"]) == (1, 1)


def test_the_cache_is_released_before_a_request_fails() -> None:
    a = allocator(capacity=100 * MiB)
    a.free(a.malloc(60 * MiB))
    assert a.malloc(90 * MiB).size == 90 * MiB
    assert a.reserved_bytes == 90 * MiB
    assert (a.statistics["num_alloc_retries"], a.statistics["num_ooms"]) == (1, 0)


def test_a_cached_block_that_is_part_of_a_segment_cannot_be_released() -> None:
    a = allocator(capacity=100 * MiB)
    a.free(a.malloc(60 * MiB))
    a.malloc(40 * MiB)  # from the cached segment, whose other 20 MiB stay free
    with pytest.raises(OutOfMemoryError) as caught:
        a.malloc(50 * MiB)
    assert caught.value.allocated_bytes == 40 * MiB
    assert caught.value.reserved_bytes == 60 * MiB


def test_memory_outside_of_the_allocator_counts_against_the_capacity() -> None:
    a = allocator(capacity=100 * MiB, device_reserved_bytes=50 * MiB)
    a.malloc(50 * MiB)
    with pytest.raises(OutOfMemoryError):
        a.malloc(512)


def test_a_memory_fraction_limits_segments() -> None:
    a = allocator("per_process_memory_fraction:0.5", capacity=100 * MiB)
    a.malloc(40 * MiB)
    a.malloc(10 * MiB)
    with pytest.raises(OutOfMemoryError):
        a.malloc(512)


@pytest.mark.parametrize(
    ("pool_id", "release"), [((1, 0), (2, 11)), ((1, 0), (2, 13)), ((0, 1), (2, 12))]
)
def test_a_pool_of_a_capture_does_not_have_the_cache_released_for_it(
    pool_id: tuple[int, int], release: torch_release.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be waited for then; up to 2.12 any pool in use counts as a capture's."""
    monkeypatch.setattr(torch_release, "release", lambda: release)
    a = allocator(capacity=100 * MiB)
    a.free(a.malloc(60 * MiB))
    with pytest.raises(OutOfMemoryError):
        a.malloc(90 * MiB, stream=PrivateStream(0, pool_id))
    assert a.reserved_bytes == 60 * MiB
    assert (a.statistics["num_alloc_retries"], a.statistics["num_ooms"]) == (0, 1)


def test_a_pool_in_use_is_no_capture_from_2_13_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_release, "release", lambda: (2, 13))
    a = allocator(capacity=100 * MiB)
    a.free(a.malloc(60 * MiB))
    a.malloc(90 * MiB, stream=PrivateStream(0, (0, 1)))
    assert a.statistics["num_alloc_retries"] == 1


def test_throw_on_oom_keeps_the_cache() -> None:
    conf = "per_process_memory_fraction:0.5,throw_on_cudamalloc_oom:True"
    a = allocator(conf, capacity=100 * MiB)
    a.free(a.malloc(40 * MiB))
    with pytest.raises(OutOfMemoryError):
        a.malloc(45 * MiB)
    assert a.reserved_bytes == 40 * MiB
    statistics = a.statistics
    assert (statistics["num_oom_rejections"], statistics["num_alloc_retries"]) == (1, 0)


# max_split_size


def test_an_oversize_block_is_not_split() -> None:
    a = allocator("max_split_size_mb:64")
    a.free(a.malloc(80 * MiB))
    assert a.malloc(70 * MiB).size == 80 * MiB


def test_a_smaller_request_does_not_take_an_oversize_block() -> None:
    a = allocator("max_split_size_mb:64")
    a.free(a.malloc(80 * MiB))
    assert a.malloc(60 * MiB).address == START + 80 * MiB
    assert a.malloc(64 * MiB - 512).size == 64 * MiB  # below the limit, in its own segment


def test_an_oversize_block_may_be_less_than_20_mib_larger_than_the_request() -> None:
    a = allocator("max_split_size_mb:64")
    a.free(a.malloc(100 * MiB))
    assert a.malloc(80 * MiB).address == START + 100 * MiB
    assert a.malloc(80 * MiB + 512).address == START


def test_how_much_larger_is_a_setting() -> None:
    a = allocator("max_split_size_mb:64,max_non_split_rounding_mb:40")
    a.free(a.malloc(100 * MiB))
    assert a.malloc(64 * MiB).address == START


def test_just_enough_oversize_blocks_are_released() -> None:
    a = allocator("max_split_size_mb:64", capacity=300 * MiB)
    blocks = [a.malloc(size * MiB) for size in (70, 80, 100)]
    for block in blocks:
        a.free(block)
    # 20 MiB more than the largest is refused, so 130 MiB need new memory: the largest blocks go
    # until they add up to 130 MiB.
    a.malloc(130 * MiB)
    assert a.reserved_bytes == 70 * MiB + 130 * MiB
    assert a.statistics["num_alloc_retries"] == 0


def test_one_oversize_block_that_suffices_is_released_alone() -> None:
    a = allocator("max_split_size_mb:64", capacity=300 * MiB)
    blocks = [a.malloc(size * MiB) for size in (70, 110, 120)]
    for block in blocks:
        a.free(block)
    a.malloc(80 * MiB)  # 110 is more than 20 MiB larger; it goes, 120 stays
    assert a.reserved_bytes == 70 * MiB + 120 * MiB + 80 * MiB


# Other settings


def test_power_of_two_rounding_lets_similar_sizes_share() -> None:
    a = allocator("roundup_power2_divisions:4")
    block = a.malloc(65 * MiB)
    assert block.size == 80 * MiB
    a.free(block)
    assert a.malloc(79 * MiB).address == block.address


def test_the_large_segment_size_is_a_setting() -> None:
    a = allocator("large_segment_size_mb:50")
    a.malloc(2 * MiB)
    assert a.reserved_bytes == 50 * MiB


def test_garbage_collection_releases_the_oldest_first() -> None:
    a = allocator("garbage_collection_threshold:0.5", capacity=400 * MiB)
    old, young, _ = (a.malloc(60 * MiB) for _ in range(3))
    a.free(old)
    a.malloc(70 * MiB)  # no fit: a lookup by which `old` ages
    a.free(young)
    assert a.reserved_bytes == 250 * MiB
    # 50 MiB above half of the capacity. Of two lookups and one, the average age is 1.5.
    a.malloc(80 * MiB)
    addresses = {segment.address for segment in a.segments()}
    assert old.address not in addresses
    assert young.address in addresses
    assert a.reserved_bytes == (250 - 60 + 80) * MiB
    # 70 MiB above it: all that is left goes, though it is not enough.
    a.malloc(90 * MiB)
    assert a.reserved_bytes == (270 - 60 + 90) * MiB


def test_lookups_on_every_stream_make_a_cached_block_older() -> None:
    conf = "garbage_collection_threshold:0.5,per_process_memory_fraction:0.5"
    a = allocator(conf, capacity=800 * MiB)
    old, young = a.malloc(60 * MiB, stream=1), a.malloc(60 * MiB, stream=2)
    a.free(old)
    a.malloc(70 * MiB, stream=2)  # a lookup by which `old` ages, though of another stream
    a.free(young)
    a.malloc(20 * MiB, stream=3)
    a.malloc(20 * MiB, stream=3)  # 10 MiB above the threshold: one of the two is enough
    assert next(s.address for s in a.segments() if s.stream in (1, 2)) == young.address


def test_garbage_is_collected_by_the_memory_fraction_where_one_is_set() -> None:
    conf = "garbage_collection_threshold:0.5,per_process_memory_fraction:0.5"
    a = allocator(conf, capacity=400 * MiB)
    a.free(a.malloc(120 * MiB))  # more than half of the 200 MiB allowed
    a.malloc(130 * MiB)
    assert a.reserved_bytes == 130 * MiB
    assert a.statistics["num_alloc_retries"] == 0


def test_without_a_capacity_nothing_is_collected() -> None:
    a = allocator("garbage_collection_threshold:0.1")
    a.free(a.malloc(GiB))
    a.malloc(2 * GiB)
    assert a.reserved_bytes == 3 * GiB


def test_a_request_of_no_bytes_takes_the_smallest_block() -> None:
    assert allocator().malloc(0).size == 512


def test_a_request_up_to_the_fraction_is_not_rejected_where_the_cache_can_make_room() -> None:
    """20 of 60 MiB are cached, the driver has 30 left: 40 more fit once the cache is released."""
    conf = "per_process_memory_fraction:0.6,throw_on_cudamalloc_oom:True"
    a = allocator(conf, 100 * MiB, device_reserved_bytes=50 * MiB)
    a.free(a.malloc(20 * MiB))
    assert a.malloc(40 * MiB).size == 40 * MiB
    assert a.reserved_bytes == 40 * MiB
