"""How the allocator gets memory from the driver: segments, or pages of an expandable one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_mem.allocator import expandable, reclaim
from tritter_mem.allocator.blocks import (
    FREE,
    Block,
    BlockPool,
    ExpandableSegment,
    PrivateStream,
    Stream,
)
from tritter_mem.allocator.rules import SMALL_SEGMENT_BYTES, round_up, segment_bytes
from tritter_mem.config import pytorch
from tritter_mem.units import TiB

if TYPE_CHECKING:
    from tritter_mem.allocator.simulator import CachingAllocator

# What an expandable segment reserves of addresses where the device's size is not known.
UNKNOWN_DEVICE_BYTES = 16 * TiB


def obtain(allocator: CachingAllocator, pool: BlockPool, size: int, requested_bytes: int) -> Block:
    """A block of new memory: collect garbage, ask, release what suffices, release all, fail.

    Args:
        allocator: the one whose pools have no fit.
        pool: where the block belongs.
        size: the rounded request.
        requested_bytes: the bytes asked for.

    Raises:
        OutOfMemoryError: nothing helped.
    """
    reclaim.collect_garbage(allocator)
    wanted = segment_bytes(size, allocator.settings.large_segment_bytes)
    block = _grow(allocator, pool, size, wanted)
    if block is None and _rejects(allocator, wanted):
        allocator.counters.num_oom_rejections += 1
    elif block is None:
        block = _retry(allocator, pool, size, wanted)
    if block is None:
        allocator.counters.num_ooms += 1
        raise allocator.out_of_memory(requested_bytes, wanted)
    return block


def _rejects(allocator: CachingAllocator, wanted: int) -> bool:
    beyond = allocator.reserved_bytes + wanted > allocator.allowed_bytes
    return beyond and allocator.settings.throw_on_cudamalloc_oom


def _retry(allocator: CachingAllocator, pool: BlockPool, size: int, wanted: int) -> Block | None:
    block = None
    if reclaim.release_oversize(allocator, pool, size):
        block = _grow(allocator, pool, size, wanted)
    if block is None and not _captures(pool):
        allocator.empty_cache()
        allocator.counters.num_alloc_retries += 1
        block = _grow(allocator, pool, size, wanted)
    return block


def _captures(pool: BlockPool) -> bool:
    """Whether PyTorch takes it that a graph is captured: then nothing waits, and the cache stays.

    A private pool is asked for memory while it is in use, by a capture or, where its number comes
    second, maybe by `use_mem_pool`, which up to PyTorch 2.12 counts as one.
    """
    if not isinstance(pool.stream, PrivateStream):
        return False
    return pool.stream.pool_id[0] > 0 or pytorch.release() < (2, 13)


def _grow(allocator: CachingAllocator, pool: BlockPool, size: int, wanted: int) -> Block | None:
    """A block of new memory that is in no pool (`alloc_block`); None where there is none."""
    if allocator.reserved_bytes + wanted > allocator.allowed_bytes:
        return None
    if allocator.settings.expandable_segments:
        return _grow_expandable(allocator, pool, size)
    if allocator.reserved_bytes + wanted > allocator.driver_limit_bytes:
        return None
    address = allocator.place("segment_alloc", wanted, pool.stream)
    block = Block(address, wanted, pool)
    allocator.segments_by_address[address] = block
    allocator.counters.took(pool.tally, wanted, segment=True)
    allocator.observer("segment_alloc", address, wanted, pool.stream)
    return block


def _grow_expandable(allocator: CachingAllocator, pool: BlockPool, size: int) -> Block | None:
    """Map pages at the lowest address with room (`try_allocate_expandable_block`)."""
    room = expandable.find_room(pool, size) or _reserve_addresses(allocator, pool, size)
    mapped = room if room.state is FREE else _map(allocator, room, size)
    while mapped is not None and mapped.size < size:
        behind = mapped.next
        mapped = None if behind is None else _map(allocator, behind, size - mapped.size)
    if mapped is not None:
        pool.remove(mapped)
    return mapped


def map_at(allocator: CachingAllocator, stream: Stream, address: int, size: int) -> Block | None:
    """Map pages as a request did that then got no further, the device being full.

    The small pool maps one page for a request, so these are always of the large one.
    """
    pool = allocator.pool(stream, small=False)
    room = next((block for block in pool.unmapped if block.address == address), None)
    return _map(allocator, room or _reserve_addresses(allocator, pool, size), size)


def _reserve_addresses(allocator: CachingAllocator, pool: BlockPool, size: int) -> Block:
    page = SMALL_SEGMENT_BYTES if pool.small else allocator.settings.large_segment_bytes
    length = max(reservation_bytes(allocator, page), round_up(size, page))
    address = allocator.place("segment_map", length, pool.stream)
    block = expandable.reserve(pool, ExpandableSegment(address, length, page))
    allocator.segments_by_address[address] = block
    return block


def reservation_bytes(allocator: CachingAllocator, page_bytes: int) -> int:
    """Addresses that an expandable segment takes: 9/8 of the device, in whole pages.

    The eighth lets pages move to the end when lower ones cannot be unmapped.
    """
    device = allocator.capacity_bytes or UNKNOWN_DEVICE_BYTES
    return round_up(device + device // 8, page_bytes)


def _map(allocator: CachingAllocator, block: Block, size: int) -> Block | None:
    mapped = expandable.bytes_to_map(block, min(size, block.size))
    if allocator.reserved_bytes + mapped > allocator.driver_limit_bytes:
        return None
    address = block.address
    joined = expandable.map_pages(block, mapped)
    allocator.counters.took(joined.pool.tally, mapped, segment=False)
    allocator.observer("segment_map", address, mapped, joined.pool.stream)
    return joined
