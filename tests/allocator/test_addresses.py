"""Addresses of segments: by hand, as recorded on GPUs, and beside a rule that is slow and short."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.recordings.measured import measured_history
from tritter_mem.allocator.addresses import (
    ALIGNMENT,
    REGION_BYTES,
    TOP_ADDRESS,
    AscendingAddresses,
    DriverAddresses,
)
from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.rules import round_up
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.allocator.snapshot_file import load_snapshot
from tritter_mem.recordings.memory_history import make_history
from tritter_mem.units import GiB, MiB, TiB


def mib_below_top(addresses: DriverAddresses, size_mib: int) -> int:
    """Reserve a segment; how far below the top it begins, in MiB."""
    address = addresses.reserve("segment_alloc", size_mib * MiB, 0)
    return (TOP_ADDRESS - address) // MiB


def release(addresses: DriverAddresses, below_mib: int, size_mib: int) -> None:
    addresses.release(TOP_ADDRESS - below_mib * MiB, size_mib * MiB)


def test_regions_of_32_mib_go_down_and_fill_upwards() -> None:
    """As gemma-3-1b's weights on an H200: 16, 16, 20, 2 and 16 MiB."""
    addresses = DriverAddresses()
    found = [mib_below_top(addresses, size) for size in (576, 16, 16, 20, 2, 16)]
    assert found == [576, 608, 592, 640, 620, 672]


def test_the_lowest_free_range_with_room_is_taken_not_the_one_that_fits_best() -> None:
    addresses = DriverAddresses()
    assert [mib_below_top(addresses, size) for size in (30, 20, 2)] == [32, 64, 44]


def test_a_large_segment_takes_whole_regions_whose_rest_is_free() -> None:
    """As the embedding of qwen3-8b on an H200: 1,188 MiB, then 20 MiB behind it."""
    addresses = DriverAddresses()
    assert mib_below_top(addresses, 1188) == 1216
    assert mib_below_top(addresses, 32) == 1248
    assert mib_below_top(addresses, 20) == 28


def test_a_region_that_is_free_as_a_whole_is_given_up() -> None:
    """Two that are neighbours make room for a larger one; a part of one does not."""
    addresses = DriverAddresses()
    assert [mib_below_top(addresses, 32) for _ in range(4)] == [32, 64, 96, 128]
    release(addresses, 64, 32)
    release(addresses, 96, 32)
    assert mib_below_top(addresses, 40) == 96
    release(addresses, 128, 32)
    assert mib_below_top(addresses, 32) == 128


def test_free_ranges_of_one_region_become_one() -> None:
    addresses = DriverAddresses()
    assert [mib_below_top(addresses, size) for size in (10, 10, 10, 32)] == [32, 22, 12, 64]
    release(addresses, 32, 10)
    assert mib_below_top(addresses, 12) == 96  # 10 MiB are free, and 2 behind the last
    release(addresses, 22, 10)
    assert [mib_below_top(addresses, 20) for _ in range(2)] == [84, 32]


def test_free_ranges_of_two_regions_stay_two() -> None:
    """As a training step after `empty_cache` on another's GPU, whose 32 MiB went elsewhere."""
    addresses = DriverAddresses()
    found = [mib_below_top(addresses, size) for size in (16, 16, 2, 30)]
    assert found == [32, 16, 64, 62]
    release(addresses, 32, 16)
    release(addresses, 62, 30)
    assert mib_below_top(addresses, 32) == 96


def test_where_the_addresses_below_are_used_up_regions_ascend() -> None:
    addresses = DriverAddresses()
    first = addresses.reserve("segment_map", 100 * TiB, 0)
    second = addresses.reserve("segment_map", 100 * TiB, 1)
    third = addresses.reserve("segment_alloc", 2 * MiB, 0)
    assert (first, second) == (TOP_ADDRESS - 100 * TiB, TOP_ADDRESS)
    assert third == first - REGION_BYTES


def test_what_lies_in_no_region_is_let_go() -> None:
    """A segment that an allocator began with was reserved by none."""
    addresses = DriverAddresses()
    addresses.release(TOP_ADDRESS - GiB, 32 * MiB)
    assert mib_below_top(addresses, 64) == 64
    addresses.release(TOP_ADDRESS + GiB, 32 * MiB)
    addresses.release(TOP_ADDRESS - GiB, 32 * MiB)
    assert mib_below_top(addresses, 32) == 96


def test_ascending_addresses_lie_side_by_side_in_steps_of_2_mib() -> None:
    addresses = AscendingAddresses(GiB)
    first, second, third = (
        addresses.reserve("segment_alloc", size, 0) for size in (100, 12 * MiB, 14 * MiB)
    )
    assert (first, second, third) == (GiB, GiB + 2 * MiB, GiB + 14 * MiB)
    addresses.release(first, 100)
    assert addresses.reserve("segment_alloc", 100, 0) == GiB + 28 * MiB


class SlowAddresses:
    """The same rule over lists of what is in use: (start, end) of regions, and ranges in them."""

    def __init__(self) -> None:
        self.used: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def reserve(self, size: int) -> int:
        size = -(-size // ALIGNMENT) * ALIGNMENT
        for region in sorted(self.used):
            for start, end in self._between(region, self.used[region]):
                if end - start >= size:
                    self.used[region] = sorted([*self.used[region], (start, start + size)])
                    return start
        wanted = -(-size // REGION_BYTES) * REGION_BYTES
        gaps = self._between((0, TOP_ADDRESS), sorted(self.used))
        end = max(end for start, end in gaps if end - start >= wanted)
        self.used[end - wanted, end] = [(end - wanted, end - wanted + size)]
        return end - wanted

    def release(self, address: int) -> None:
        for region, ranges in list(self.used.items()):
            self.used[region] = [found for found in ranges if found[0] != address]
            if not self.used[region]:
                del self.used[region]

    @staticmethod
    def _between(outer: tuple[int, int], used: list[tuple[int, int]]) -> list[tuple[int, int]]:
        starts = [outer[0], *(end for _, end in used)]
        ends = [*(start for start, _ in used), outer[1]]
        return [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]


sizes = st.one_of(st.integers(1, 8).map(lambda n: 2 * n * MiB), st.integers(1, 200 * MiB))


@given(st.lists(st.one_of(sizes, st.integers(-50, -1)), max_size=80))
def test_addresses_are_those_of_the_slow_rule(steps: list[int]) -> None:
    """A positive number reserves so many bytes, a negative one releases one that is live."""
    addresses, slow = DriverAddresses(), SlowAddresses()
    live: list[tuple[int, int]] = []
    for step in steps:
        if step > 0:
            address = addresses.reserve("segment_alloc", step, 0)
            assert address == slow.reserve(step)
            live.append((address, step))
        elif live:
            address, size = live.pop(step % len(live))
            addresses.release(address, size)
            slow.release(address)


def test_an_allocator_gives_its_segments_back() -> None:
    a = CachingAllocator()
    block = a.malloc(30 * MiB)
    a.free(block)
    a.empty_cache()
    assert a.malloc(30 * MiB).address == block.address


def test_an_expandable_segment_gives_its_reservation_back() -> None:
    a = CachingAllocator(parse_alloc_conf("expandable_segments:True"), GiB)
    block = a.malloc(30 * MiB)
    a.free(block)
    a.empty_cache()
    assert a.malloc(30 * MiB).address == block.address


def test_weights_lie_on_a_gpu_where_the_rule_says(tmp_path: Path) -> None:
    """97 segments while gemma-3-1b is loaded; two lie in the rest of the context's region."""
    [device] = load_snapshot(measured_history("gemma-3-1b--4-096-tokens--measured", tmp_path))
    segments = make_history(device).new_segments[:97]
    top = segments[0].address + round_up(segments[0].size, REGION_BYTES)
    addresses = DriverAddresses(top)
    missed = []
    for segment in segments:
        address = addresses.reserve("segment_alloc", segment.size, 0)
        if address != segment.address:
            addresses.release(address, segment.size)
            missed.append(segment.size // MiB)
    assert missed == [2, 20]
