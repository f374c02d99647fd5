"""How the allocator gives cached memory back: by age, just enough, or all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tritter_mem.allocator.blocks import Block, BlockPool

if TYPE_CHECKING:
    from tritter_mem.allocator.simulator import CachingAllocator


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
                allocator.release(block)
        for block in pages:
            allocator.unmap(block)


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
        allocator.release(pool.at(position))
        return True
    released = 0
    for block in reversed([block for block in pool if block.size >= limit]):
        if released >= wanted:
            break
        if block.expandable is None and not block.is_split():
            released += block.size
            allocator.release(block)
    return released >= wanted


def collect_garbage(allocator: CachingAllocator) -> None:
    """Above the threshold: release cached large segments, those unused for longest first.

    PyTorch repeats it with the average age of what is left until enough is released, and within
    one round does not stop at enough (`garbage_collect_cached_blocks`). Age counts lookups in the
    pool, not time.
    """
    if not allocator.ages:
        return
    limit = allocator.collection_limit_bytes
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
            allocator.release(block)
        cached = [block for block in cached if _age(block) < average]
        if not old:
            return


def _age(block: Block) -> int:
    return block.pool.lookups - block.age
