"""How the allocator gives cached memory back: by age, just enough, or all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tritter_mem.allocator import expandable
from tritter_mem.allocator.blocks import FREE, MERGED, Block, BlockPool
from tritter_mem.allocator.rules import UNLIMITED

if TYPE_CHECKING:
    from tritter_mem.allocator.simulator import CachingAllocator


def release(allocator: CachingAllocator, block: Block) -> None:
    """Give a segment that is one free block back to the driver (`release_block`)."""
    pool = block.pool
    del allocator.segments_by_address[block.address]
    pool.remove(block)
    block.state = MERGED
    allocator.counters.gave_back(pool.tally, block.size, segment=True)
    allocator.observer("segment_free", block.address, block.size, pool.stream)


def release_at(allocator: CachingAllocator, address: int) -> bool:
    """Release the segment at an address if it is one free block; whether it was."""
    block = allocator.segments_by_address.get(address)
    if block is None or block.state is not FREE or block.is_split():
        return False
    release(allocator, block)
    return True


def unmap(allocator: CachingAllocator, block: Block) -> None:
    """Give the whole pages of a free block back to the driver (`unmap_block`)."""
    address, size = expandable.whole_pages(block)
    if size == 0:
        return
    unmapped = expandable.unmap_pages(block)
    pool = unmapped.pool
    allocator.counters.gave_back(pool.tally, size, segment=False)
    allocator.observer("segment_unmap", address, size, pool.stream)
    if not unmapped.is_split():  # nothing of the reservation is mapped any more
        pool.unmapped.remove(unmapped)
        del allocator.segments_by_address[unmapped.address]


def release_cached(allocator: CachingAllocator) -> None:
    """Release every segment that is one free block, and every whole free page.

    The large pool comes first. Private pools keep their segments: a CUDA graph may replay into
    them.
    """
    for pools in (allocator.large_pools, allocator.small_pools):
        pages: list[Block] = []
        for block in _cached(pools.values()):
            if block.expandable is not None:
                pages.append(block)
            elif not block.is_split():
                release(allocator, block)
        for block in pages:
            unmap(allocator, block)


def _cached(pools: Iterable[BlockPool]) -> list[Block]:
    """Free blocks by stream, size and address."""
    ordered = sorted((pool for pool in pools if not pool.private), key=lambda pool: pool.stream)
    return [block for pool in ordered for block in pool]


def releasable(allocator: CachingAllocator) -> bool:
    """Whether `empty_cache` would release a segment (pages of expandable ones left aside)."""
    pools = (*allocator.large_pools.values(), *allocator.small_pools.values())
    return any(
        not block.is_split() and block.expandable is None
        for pool in pools
        if not pool.private
        for block in pool.blocks.values()
    )


def release_oversize(allocator: CachingAllocator, pool: BlockPool, size: int) -> bool:
    """With `max_split_size`: release just enough oversize blocks; whether that is enough.

    One block that suffices, the smallest such; else the largest ones until they add up
    (`release_available_cached_blocks`).
    """
    limit = allocator.settings.max_split_bytes
    if limit is None:
        return False
    wanted = max(size, limit)
    position = pool.position(wanted)
    if position < len(pool) and pool.at(position).expandable is None:
        release(allocator, pool.at(position))
        return True
    released = 0
    for block in reversed([block for block in pool if block.size >= limit]):
        if released >= wanted:
            break
        if block.expandable is None and not block.is_split():
            released += block.size
            release(allocator, block)
    return released >= wanted


def collect_garbage(allocator: CachingAllocator) -> None:
    """Above the threshold: release cached large segments, those unused for longest first.

    PyTorch repeats it with the average age of what is left until enough is released, and within
    one round does not stop at enough (`garbage_collect_cached_blocks`). Age counts lookups in the
    pool, not time.
    """
    if not allocator.ages:
        return
    # PyTorch collects only under a memory fraction; here the capacity itself is a limit as well.
    fraction_set = allocator.allowed_bytes < UNLIMITED
    limit = allocator.allowed_bytes if fraction_set else allocator.driver_limit_bytes
    threshold = int(allocator.settings.garbage_collection_threshold * limit)
    target = allocator.reserved_bytes - threshold
    cached = [
        block
        for block in _cached(allocator.large_pools.values())
        if not block.is_split() and block.expandable is None
    ]
    while target > 0 and cached:
        average = sum(map(_age, cached)) / len(cached)
        old = [block for block in cached if _age(block) >= average]
        for block in old:
            target -= block.size
            release(allocator, block)
        cached = [block for block in cached if _age(block) < average]
        if not old:
            return


def _age(block: Block) -> int:
    return block.pool.tally.lookups - block.age
