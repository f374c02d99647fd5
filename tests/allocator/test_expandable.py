"""Expandable segments: pages mapped, blocks split finely, pages unmapped under pressure."""

import pytest

from tritter_mem.allocator.addresses import TOP_ADDRESS as START
from tritter_mem.allocator.addresses import AscendingAddresses
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.units import GiB, MiB

Segments = list[tuple[int, list[tuple[int, str]]]]


def allocator(more: str = "", capacity: int | None = None) -> CachingAllocator:
    conf = f"expandable_segments:True,{more}"
    return CachingAllocator(parse_alloc_conf(conf), capacity, addresses=AscendingAddresses(START))


def layout(a: CachingAllocator) -> Segments:
    """Mapped ranges as (MiB from START, [(block size in MiB, state)])."""
    return [
        ((s.address - START) // MiB, [(b.size // MiB, b.state.name.lower()) for b in s.blocks])
        for s in a.segments()
    ]


def test_the_large_pool_maps_pages_of_20_mib() -> None:
    a = allocator()
    assert a.malloc(30 * MiB).address == START
    assert a.reserved_bytes == 40 * MiB
    assert a.malloc(50 * MiB).address == START + 30 * MiB  # 10 MiB are there, two pages more
    assert layout(a) == [(0, [(30, "allocated"), (50, "allocated")])]
    assert a.reserved_bytes == 80 * MiB


def test_the_small_pool_maps_pages_of_2_mib_of_its_own() -> None:
    a = allocator()
    large = a.malloc(2 * MiB)
    small = a.malloc(512)
    assert small.address - large.address > GiB
    assert a.reserved_bytes == 22 * MiB


def test_pages_follow_the_large_segment_size() -> None:
    a = allocator("large_segment_size_mb:64")
    a.malloc(2 * MiB)
    assert a.reserved_bytes == 64 * MiB


def test_every_remainder_is_split_off() -> None:
    a = allocator()
    assert a.malloc(20 * MiB - 512).size == 20 * MiB - 512
    a.malloc(2 * MiB)
    assert a.reserved_bytes == 40 * MiB  # the 512 bytes left did not suffice
    assert [b.size for b in a.segments()[0].blocks][:2] == [20 * MiB - 512, 2 * MiB]


def test_a_block_that_cannot_grow_is_preferred() -> None:
    a = allocator()
    first = a.malloc(14 * MiB)
    a.malloc(2 * MiB)
    # Free: 14 MiB at the front once `first` goes, and 4 MiB at the end, before unmapped addresses.
    a.free(first)
    assert a.malloc(3 * MiB).address == first.address


def test_freed_pages_are_reused_before_new_ones() -> None:
    a = allocator()
    first, _ = a.malloc(40 * MiB), a.malloc(20 * MiB)
    a.free(first)
    assert a.malloc(30 * MiB).address == START
    assert a.reserved_bytes == 60 * MiB


def test_only_whole_free_pages_are_unmapped() -> None:
    a = allocator()
    blocks = [a.malloc(size * MiB) for size in (10, 50, 20)]
    a.free(blocks[1])
    a.empty_cache()
    # Free were the bytes from 10 to 60 MiB; the pages from 20 to 60 lie wholly in them.
    assert layout(a) == [(0, [(10, "allocated"), (10, "free")]), (60, [(20, "allocated")])]
    assert a.reserved_bytes == 40 * MiB


def test_a_gap_is_mapped_again_at_its_lowest_address() -> None:
    a = allocator()
    blocks = [a.malloc(size * MiB) for size in (10, 50, 20)]
    a.free(blocks[1])
    a.empty_cache()
    block = a.malloc(25 * MiB)
    assert block.address == START + 10 * MiB  # the free 10 MiB, and one page of the gap
    assert layout(a) == [
        (0, [(10, "allocated"), (25, "allocated"), (5, "free")]),
        (60, [(20, "allocated")]),
    ]


def test_a_gap_that_is_too_small_is_left() -> None:
    a = allocator()
    blocks = [a.malloc(size * MiB) for size in (20, 20, 20)]
    a.free(blocks[1])
    a.empty_cache()
    assert a.malloc(30 * MiB).address == START + 60 * MiB


def test_an_unused_reservation_is_given_up() -> None:
    a = allocator()
    a.free(a.malloc(100 * MiB))
    a.empty_cache()
    assert (a.reserved_bytes, a.segments()) == (0, [])
    assert a.malloc(2 * MiB).address != START  # addresses are reserved anew


def test_split_segments_cannot_be_released_and_pages_can() -> None:
    """The case that expandable segments are for: three gaps of 10 MiB, or one of 30."""

    def grows(a: CachingAllocator) -> None:
        blocks = [a.malloc(60 * MiB) for _ in range(3)]
        for block in blocks:
            a.free(block)
        for _ in range(3):
            a.malloc(30 * MiB)
            a.malloc(20 * MiB)
        a.malloc(40 * MiB)

    with pytest.raises(OutOfMemoryError):
        grows(CachingAllocator(capacity_bytes=200 * MiB))
    grows(allocator(capacity=200 * MiB))


def test_out_of_memory_when_no_page_is_left() -> None:
    a = allocator(capacity=50 * MiB)
    a.malloc(30 * MiB)  # two pages of 20 MiB
    a.malloc(10 * MiB)
    with pytest.raises(OutOfMemoryError, match=r"11\.0 MiB requested"):
        a.malloc(11 * MiB)
    assert a.reserved_bytes == 40 * MiB


def test_loaded_pages_lie_where_their_reservation_begins() -> None:
    """A snapshot shows mapped pages alone; known ones before them are used first."""
    made = allocator()
    first, _ = made.malloc(60 * MiB), made.malloc(20 * MiB)
    made.free(first)
    made.empty_cache()
    for starts, address in (({(0, False): START}, START), (None, START + 80 * MiB)):
        again = allocator()
        again.load(made.segments(), starts)
        assert again.malloc(40 * MiB).address == address


def test_expandable_blocks_do_not_count_as_inactive_split() -> None:
    a = allocator()
    a.malloc(2 * MiB)
    assert a.statistics["inactive_split_bytes.all.current"] == 0
    assert a.statistics["segment.all.current"] == 0
    assert a.statistics["reserved_bytes.large_pool.current"] == 20 * MiB


def test_pages_that_come_and_go_are_no_segments() -> None:
    a = allocator()
    a.free(a.malloc(50 * MiB))
    a.empty_cache()
    assert a.statistics["num_device_alloc"] == a.statistics["num_device_free"] == 1
    for value in ("current", "peak", "allocated", "freed"):
        assert a.statistics[f"segment.all.{value}"] == 0
