"""Statistics: PyTorch's names, and values worked out by hand."""

import re
from itertools import product

from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.units import MiB

# Statistics of other things: pinned memory, and the allocator's own configuration.
ELSEWHERE = {"reserved_bytes_by_private_pools"}


def documented_names() -> set[str]:
    """The names in the docstring of `torch.cuda.memory_stats`, its braces expanded."""
    import torch

    found = set()
    for name in re.findall(r'``?"([a-z][a-z_.{},]+)"``?', torch.cuda.memory_stats.__doc__ or ""):
        parts = re.split(r"\{([^}]*)\}", name)
        choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
        found |= {"".join(choice) for choice in product(*choices)}
    return found


def test_names_are_those_that_pytorch_documents() -> None:
    named = documented_names()
    assert len(named) > 100
    # The documentation writes "allocated" for what memory_stats calls "allocation".
    renamed = {re.sub(r"^allocated\.", "allocation.", name) for name in named}
    missing = {n for n in renamed - set(CachingAllocator().statistics) if n not in ELSEWHERE}
    assert missing == set()


def test_current_peak_and_totals() -> None:
    a = CachingAllocator()
    first, second = a.malloc(3 * MiB - 100), a.malloc(1000)
    a.free(first)
    statistics = a.statistics
    for name, current, peak, allocated, freed in (
        ("allocation.all", 1, 2, 2, 1),
        ("allocation.large_pool", 0, 1, 1, 1),
        ("allocated_bytes.all", 1024, 3 * MiB + 1024, 3 * MiB + 1024, 3 * MiB),
        ("allocated_bytes.small_pool", 1024, 1024, 1024, 0),
        ("requested_bytes.all", 1000, 3 * MiB + 900, 3 * MiB + 900, 3 * MiB - 100),
        ("active_bytes.all", 1024, 3 * MiB + 1024, 3 * MiB + 1024, 3 * MiB),
        ("reserved_bytes.all", 22 * MiB, 22 * MiB, 22 * MiB, 0),
        ("segment.all", 2, 2, 2, 0),
    ):
        found = [
            statistics[f"{name}.{value}"] for value in ("current", "peak", "allocated", "freed")
        ]
        assert found == [current, peak, allocated, freed], name
    a.free(second)
    assert a.statistics["allocation.all.current"] == 0


def test_inactive_split_counts_free_parts_of_segments() -> None:
    a = CachingAllocator()
    first = a.malloc(4 * MiB)  # 16 MiB are left of the segment
    assert a.statistics["inactive_split_bytes.all.current"] == 16 * MiB
    second = a.malloc(4 * MiB)
    assert a.statistics["inactive_split_bytes.all.current"] == 12 * MiB
    assert a.statistics["inactive_split.all.current"] == 1
    a.free(first)
    assert a.statistics["inactive_split_bytes.all.current"] == 16 * MiB
    assert a.statistics["inactive_split.all.current"] == 2
    a.free(second)  # the whole segment is free: nothing of it is a part
    assert a.statistics["inactive_split_bytes.all.current"] == 0
    assert a.statistics["inactive_split_bytes.all.peak"] == 16 * MiB


def test_active_counts_blocks_that_wait() -> None:
    a = CachingAllocator()
    ticket = a.request_free(a.malloc(4 * MiB))
    other = a.malloc(4 * MiB)
    statistics = a.statistics
    assert statistics["allocated_bytes.all.peak"] == 4 * MiB
    assert statistics["active_bytes.all.peak"] == 8 * MiB
    assert statistics["active.large_pool.current"] == 2
    assert statistics["requested_bytes.all.current"] == 8 * MiB
    a.complete_free(ticket)
    a.free(other)
    assert a.statistics["active_bytes.all.current"] == 0
    assert a.statistics["active_bytes.all.peak"] == 8 * MiB


def test_oversize_counts_what_is_never_split() -> None:
    a = CachingAllocator(parse_alloc_conf("max_split_size_mb:64"))
    block = a.malloc(64 * MiB)
    a.malloc(62 * MiB)
    assert a.statistics["oversize_allocations.current"] == 1
    assert a.statistics["oversize_segments.current"] == 1
    assert a.statistics["max_split_size"] == 64 * MiB
    a.free(block)
    assert a.statistics["oversize_allocations.current"] == 0
    assert a.statistics["oversize_allocations.peak"] == 1


def test_laps_have_peaks_of_their_own() -> None:
    a = CachingAllocator()
    a.free(a.malloc(100 * MiB))
    assert a.lap() == (100 * MiB, 100 * MiB)
    a.empty_cache()
    a.malloc(30 * MiB)
    assert a.lap() == (30 * MiB, 100 * MiB)  # 100 MiB were reserved when the lap began
    assert a.lap() == (30 * MiB, 30 * MiB)
    assert a.statistics["allocated_bytes.all.peak"] == 100 * MiB


def test_the_peak_moment_is_the_fullest_one_at_the_reserved_peak() -> None:
    a = CachingAllocator()
    block = a.malloc(90 * MiB)
    a.free(block)
    a.malloc(40 * MiB)
    a.malloc(30 * MiB)  # 70 of 90 MiB, the fullest
    fullest = a.peak_moment
    assert (fullest.allocated_bytes, fullest.reserved_bytes) == (90 * MiB, 90 * MiB)
    a.malloc(50 * MiB)  # a new peak: 120 of 140 MiB
    moment = a.peak_moment
    assert (moment.allocated_bytes, moment.reserved_bytes) == (120 * MiB, 140 * MiB)
    assert moment.largest_free_block_bytes == moment.inactive_split_bytes == 20 * MiB
    assert moment.allocations == 4


def test_a_fuller_moment_counts_only_at_the_reserved_peak() -> None:
    a = CachingAllocator()
    a.free(a.malloc(60 * MiB, stream=1))
    a.malloc(20 * MiB, stream=2)
    assert a.peak_moment[1:3] == (20 * MiB, 80 * MiB)
    a.empty_cache()
    a.malloc(50 * MiB, stream=2)  # fuller, but 70 MiB are below the peak
    assert a.peak_moment[1:3] == (20 * MiB, 80 * MiB)
    a.malloc(10 * MiB, stream=2)  # at the peak again
    assert a.peak_moment[1:3] == (80 * MiB, 80 * MiB)


def test_a_block_that_joins_both_its_neighbours_leaves_one_part() -> None:
    """512 bytes each: the first and the third are free, then the second, then the last."""
    a = CachingAllocator()
    blocks = [a.malloc(512) for _ in range(4)]
    counts = []
    for number in (0, 2, 1, 3):
        a.free(blocks[number])
        counts.append(a.statistics["inactive_split.all.current"])
    assert counts == [2, 3, 2, 0]


def test_segments_are_counted_as_they_come_and_go() -> None:
    a = CachingAllocator()
    blocks = [a.malloc(size) for size in (100, 12 * MiB)]
    assert a.statistics["num_device_alloc"] == 2
    for block in blocks:
        a.free(block)
    a.empty_cache()
    assert (a.statistics["num_device_alloc"], a.statistics["num_device_free"]) == (2, 2)
