"""PyTorch's CUDA caching allocator, simulated: same requests, same segments, same addresses.

The rules, their sources and what is left out: docs/allocator.md. `malloc` and `free` run hundreds
of thousands of times a second, so they do in place what elsewhere would be a call.
"""
# ruff: noqa: PLR1730  (`max` is a call, and these run once an event)

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tritter_mem.allocator import expandable, reclaim
from tritter_mem.allocator.blocks import (
    ADDRESS_BITS,
    ALLOCATED,
    FREE,
    MERGED,
    UNMAPPED,
    WAITING,
    Block,
    BlockPool,
    ExpandableSegment,
    Stream,
)
from tritter_mem.allocator.rules import (
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    round_request,
    round_up,
    segment_bytes,
)
from tritter_mem.allocator.segments import SegmentState, load, read
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.statistics import Stat, Tally
from tritter_mem.errors import UsageError
from tritter_mem.units import MiB, TiB, format_bytes

SegmentAction = Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]
Action = SegmentAction | Literal["free_completed"]
# Address of a new segment or reservation, from (action, bytes, stream).
Place = Callable[[SegmentAction, int, Stream], int]
# Told of each segment that comes or goes, and of each free that waited: (action, address, bytes,
# stream).
Observer = Callable[[Action, int, int, Stream], None]

FIRST_ADDRESS = 0x7F00_0000_0000
ALIGNMENT = 2 * MiB
UNLIMITED = 1 << 62
NEVER = 1 << 63
# What an expandable segment reserves of addresses where the device's size is not known.
UNKNOWN_DEVICE_BYTES = 16 * TiB


class OutOfMemoryError(Exception):
    """A request that the simulated device could not serve, after the allocator's own retry.

    Attributes:
        requested_bytes: the bytes asked for.
        segment_bytes: the bytes that the driver was asked for.
        allocated_bytes: live blocks at that moment.
        reserved_bytes: segments at that moment, the cache released.
        limit_bytes: what segments may take.
    """

    def __init__(self, *, requested_bytes: int, segment_bytes: int, allocated_bytes: int,
                 reserved_bytes: int, limit_bytes: int) -> None:  # fmt: skip
        super().__init__(
            f"out of memory: {format_bytes(requested_bytes)} requested, "
            f"{format_bytes(segment_bytes)} needed from the driver; "
            f"{format_bytes(reserved_bytes)} of {format_bytes(limit_bytes)} reserved, "
            f"{format_bytes(allocated_bytes)} allocated"
        )
        self.requested_bytes = requested_bytes
        self.segment_bytes = segment_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.limit_bytes = limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMoment:
    """The fullest moment while reserved stood at its peak: what was held and could not be used.

    Attributes:
        allocations: how many allocations had succeeded by then.
    """

    allocations: int
    allocated_bytes: int
    reserved_bytes: int
    largest_free_block_bytes: int
    inactive_split_bytes: int


class Lap(NamedTuple):
    """Peaks since the lap before."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int


class Ascending:
    """Addresses for new segments: ascending, never used again."""

    def __init__(self, first: int = FIRST_ADDRESS) -> None:
        self._next = first

    def __call__(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The next address, aligned as `cudaMalloc` aligns large blocks."""
        address = self._next
        self._next += round_up(size, ALIGNMENT)
        return address


def _ignore(action: Action, address: int, size: int, stream: Stream) -> None:
    """Observe nothing."""


class CachingAllocator:
    """One device's allocator.

    Args:
        settings: as in `PYTORCH_CUDA_ALLOC_CONF`.
        capacity_bytes: memory of the device; None: no limit. It is also the limit that garbage
            collection measures by.
        device_reserved_bytes: part of it that segments cannot have: the CUDA context, others.
        place: gives new segments their address; default: ascending ones.
        observer: is told of every segment that comes or goes, and of every free that waited.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity_bytes: int | None = None,
        device_reserved_bytes: int = 0,
        place: Place | None = None,
        observer: Observer = _ignore,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.capacity_bytes = capacity_bytes
        self.device_reserved_bytes = device_reserved_bytes
        self.reserved_bytes = 0
        self.segments_by_address: dict[int, Block] = {}  # first block of each, reservations too
        self.small_pools: dict[Stream, BlockPool] = {}
        self.large_pools: dict[Stream, BlockPool] = {}
        self.waiting: dict[int, Block] = {}  # by ticket, in the order of their frees
        self._tickets = 0
        self.observer = observer
        self._place = place or Ascending()
        self._small, self._large = Tally(), Tally()
        self._set_limits()
        self._set_counters()

    def _set_limits(self) -> None:
        settings = self.settings
        self._divisions = settings.roundup_power2_divisions
        self._max_split = settings.max_split_bytes or UNLIMITED
        self._split_limit = UNLIMITED if settings.expandable_segments else self._max_split
        self.driver_limit_bytes = UNLIMITED
        self.allowed_bytes = UNLIMITED
        if self.capacity_bytes is not None:
            self.driver_limit_bytes = max(self.capacity_bytes - self.device_reserved_bytes, 0)
            if settings.per_process_memory_fraction < 1:
                fraction = settings.per_process_memory_fraction
                self.allowed_bytes = int(fraction * self.capacity_bytes)
        # PyTorch collects only under a fraction; here the capacity itself is a limit as well.
        fraction_set = self.allowed_bytes < UNLIMITED
        self.collection_limit_bytes = (
            self.allowed_bytes if fraction_set else self.driver_limit_bytes
        )
        self.ages = settings.garbage_collection_threshold > 0 and self.capacity_bytes is not None
        # The common case: the smallest block that suffices is the one to take.
        self._plain = (
            not settings.expandable_segments and self._max_split == UNLIMITED and not self.ages
        )

    def _set_counters(self) -> None:
        self._allocations_peak = self._allocated_peak = self._requested_peak = 0
        self._allocated_lap_peak = self._reserved_lap_peak = 0
        self._active_blocks_peak = self._active_bytes_peak = 0
        self._inactive_split, self._inactive_split_bytes = Stat(), Stat()
        self._reserved, self._segment = Stat(), Stat()
        self._oversize_allocations, self._oversize_segments = Stat(), Stat()
        self.num_alloc_retries = self.num_ooms = self.num_sync_all_streams = 0
        self.num_device_alloc = self.num_device_free = self.num_oom_rejections = 0
        self._peak_moment: PeakMoment | None = None
        self._fullest = -1  # allocated at the peak moment; NEVER while reserved is below its peak
        self._fullest_before = -1

    # Requests

    def malloc(self, size_bytes: int, stream: Stream = 0) -> Block:
        """Serve a request; the block's `address` and `size` are what PyTorch would have given.

        Args:
            size_bytes: the bytes asked for, before rounding.
            stream: the CUDA stream; blocks are reused within their stream only.

        Raises:
            OutOfMemoryError: the capacity does not suffice, even with the cache released.
        """
        if self._divisions is None:
            size = (size_bytes + 511) & -512 or 512  # round_request, in place
        else:
            size = round_request(size_bytes, self._divisions)
        pool = (self.small_pools if size <= SMALL_BYTES else self.large_pools).get(stream)
        if pool is None:
            pool = self.pool(stream, small=size <= SMALL_BYTES)
        keys = pool.keys
        position = bisect_left(keys, size << ADDRESS_BITS)
        if self._plain and position < len(keys):
            block = pool.blocks.pop(keys.pop(position))
        else:
            block = self._search(pool, size, position) or self._obtain(pool, size, size_bytes)
        if block.size - size >= pool.remainder and size < self._split_limit:
            self._split(block, size)
        elif block.next is not None or block.previous is not None:
            self._inactive_split_changes(block, -1, -block.size)
        block.state = ALLOCATED
        block.requested = size_bytes
        self._count_allocation(pool, block)
        return block

    def free(self, block: Block) -> None:
        """Return a block to its pool; free neighbours become one with it.

        Raises:
            UsageError: the block is not allocated.
        """
        self._count_free(block)
        tally = block.pool.tally
        tally.requested -= block.requested
        self._return(block)

    def request_free(self, block: Block) -> int:
        """Free a block that another stream may still use.

        It waits for `complete_free` with the ticket that this returns.

        Raises:
            UsageError: the block is not allocated.
        """
        self._count_free(block)
        block.state = WAITING
        tally = block.pool.tally
        tally.waiting_blocks += 1
        tally.waiting_bytes += block.size
        self._tickets += 1
        self.waiting[self._tickets] = block
        self._note_active()
        return self._tickets

    def complete_free(self, ticket: int) -> None:
        """The other stream is done with the block.

        Nothing happens where the allocator, short of memory, has waited for it already.
        """
        block = self.waiting.pop(ticket, None)
        if block is not None:
            self._complete(block)

    def empty_cache(self) -> None:
        """Wait for all streams and give every unused segment, or page, back to the driver."""
        self.num_sync_all_streams += 1
        for block in self.waiting.values():
            self._complete(block)
        self.waiting.clear()
        reclaim.release_cached(self)

    def _complete(self, block: Block) -> None:
        tally = block.pool.tally
        tally.waiting_blocks -= 1
        tally.waiting_bytes -= block.size
        tally.requested -= block.requested
        self.observer("free_completed", block.address, block.requested, block.pool.stream)
        self._return(block)

    # What there is

    @property
    def allocated_bytes(self) -> int:
        """Live blocks, rounded as they are."""
        return self._small.bytes + self._large.bytes

    @property
    def allocated_peak_bytes(self) -> int:
        """The largest that `allocated_bytes` ever was."""
        return max(self._allocated_peak, self._allocated_lap_peak)

    @property
    def reserved_peak_bytes(self) -> int:
        """The largest that `reserved_bytes` ever was."""
        return self._reserved.peak

    @property
    def requested_bytes(self) -> int:
        """What was asked for, of the blocks that are live or waiting."""
        return self._small.requested + self._large.requested

    @property
    def active_bytes(self) -> int:
        """Blocks that are live or waiting for another stream."""
        waiting = self._small.waiting_bytes + self._large.waiting_bytes
        return self.allocated_bytes + waiting

    @property
    def allocations(self) -> int:
        """How many requests were served."""
        return self._small.blocks_ever + self._large.blocks_ever

    @property
    def peak_moment(self) -> PeakMoment:
        """The fullest moment at the reserved peak."""
        return self._peak_moment or self._moment()

    @property
    def statistics(self) -> dict[str, int]:
        """All counters, under the names of `torch.cuda.memory_stats`."""
        total = self._total()
        named = dict(total.named("all"))
        named |= dict(self._large.named("large_pool"))
        named |= dict(self._small.named("small_pool"))
        named |= dict(self._oversize_allocations.named("oversize_allocations"))
        named |= dict(self._oversize_segments.named("oversize_segments"))
        return named | {
            "num_alloc_retries": self.num_alloc_retries,
            "num_ooms": self.num_ooms,
            "num_oom_rejections": self.num_oom_rejections,
            "num_sync_all_streams": self.num_sync_all_streams,
            "num_device_alloc": self.num_device_alloc,
            "num_device_free": self.num_device_free,
            "max_split_size": self.settings.max_split_bytes or -1,
        }

    def segments(self) -> list[SegmentState]:
        """Every segment with its blocks, by address; of an expandable one each mapped range."""
        return read(self.segments_by_address.values())

    def lap(self) -> Lap:
        """Peaks since the last call, for a timeline or the phases of a run."""
        lap = Lap(self._allocated_lap_peak, self._reserved_lap_peak)
        self._allocated_peak = max(self._allocated_peak, lap.allocated_peak_bytes)
        self._allocated_lap_peak = self.allocated_bytes
        self._reserved_lap_peak = self.reserved_bytes
        return lap

    def load(self, segments: list[SegmentState]) -> dict[int, Block]:
        """Start from segments that are there already; returns live and waiting blocks by address.

        Peaks start at this state.
        """
        found = load(self, segments)
        self._start_peaks()
        return found

    def adopt(self, chain: Sequence[Block]) -> None:
        """Take in a segment, or a whole reservation, that is there already."""
        first, pool = chain[0], chain[0].pool
        mapped = sum(block.size for block in chain if block.state is not UNMAPPED)
        self.segments_by_address[first.address] = first
        self.reserved_bytes += mapped
        for tally_stat, stat, amount in (
            (pool.tally.reserved, self._reserved, mapped),
            (pool.tally.segment, self._segment, int(first.expandable is None)),
        ):
            tally_stat.increase(amount)
            stat.increase(amount)
        for block in chain:
            self._adopt_block(block)
        self._plain = self._plain and first.expandable is None

    def _adopt_block(self, block: Block) -> None:
        pool = block.pool
        if block.state is UNMAPPED:
            expandable.add_unmapped(block)
        elif block.state is FREE:
            pool.add(block)
            if block.is_split():
                self._inactive_split_changes(block, 1, block.size)
        else:
            waits = block.state is WAITING
            self._count_allocation(pool, block)
            if waits:
                block.state = ALLOCATED
                self.request_free(block)

    def _start_peaks(self) -> None:
        small, large = self._small, self._large
        small.reset_peaks()
        large.reset_peaks()
        self._allocations_peak = small.blocks + large.blocks
        self._requested_peak = self.requested_bytes
        self._allocated_peak = self._allocated_lap_peak = self.allocated_bytes
        self._reserved_lap_peak = self.reserved_bytes
        self._active_blocks_peak = self._active_bytes_peak = 0
        self._note_active()
        for stat in (self._inactive_split, self._inactive_split_bytes, self._oversize_allocations):
            stat.peak = stat.current
        self._note_fullest(self.allocated_bytes)

    def _total(self) -> Tally:
        small, large, total = self._small, self._large, Tally()
        for name in ("blocks", "blocks_ever", "bytes", "bytes_ever", "requested", "requested_ever",
                     "waiting_blocks", "waiting_bytes"):  # fmt: skip
            setattr(total, name, getattr(small, name) + getattr(large, name))
        total.blocks_peak, total.bytes_peak = self._allocations_peak, self.allocated_peak_bytes
        total.requested_peak = self._requested_peak
        total.active_blocks_peak = self._active_blocks_peak
        total.active_bytes_peak = self._active_bytes_peak
        total.inactive_split = self._inactive_split
        total.inactive_split_bytes = self._inactive_split_bytes
        total.reserved, total.segment = self._reserved, self._segment
        return total

    # Counting

    def _count_allocation(self, pool: BlockPool, block: Block) -> None:
        tally, other = pool.tally, pool.other
        tally.blocks_ever += 1
        tally.blocks = count = tally.blocks + 1
        if count > tally.blocks_peak:
            tally.blocks_peak = count
        if count + other.blocks > self._allocations_peak:
            self._allocations_peak = count + other.blocks
        size = block.size
        tally.bytes_ever += size
        tally.bytes = allocated = tally.bytes + size
        if allocated > tally.bytes_peak:
            tally.bytes_peak = allocated
        allocated += other.bytes
        if allocated > self._allocated_lap_peak:
            self._allocated_lap_peak = allocated
        if allocated > self._fullest:
            self._note_fullest(allocated)
        self._count_request(tally, other, block)

    def _count_request(self, tally: Tally, other: Tally, block: Block) -> None:
        requested = block.requested
        tally.requested_ever += requested
        tally.requested = now = tally.requested + requested
        if now > tally.requested_peak:
            tally.requested_peak = now
        if now + other.requested > self._requested_peak:
            self._requested_peak = now + other.requested
        if self.waiting:
            self._note_active()
        if block.size >= self._max_split:
            self._oversize_allocations.increase(1)

    def _count_free(self, block: Block) -> None:
        if block.state is not ALLOCATED:
            raise UsageError(f"the block at {block.address:#x} is not allocated; it is freed twice")
        tally = block.pool.tally
        tally.blocks -= 1
        tally.bytes -= block.size
        if block.size >= self._max_split:
            self._oversize_allocations.decrease(1)

    def _note_active(self) -> None:
        small, large = self._small, self._large
        small.note_active()
        large.note_active()
        blocks = small.blocks + small.waiting_blocks + large.blocks + large.waiting_blocks
        self._active_blocks_peak = max(self._active_blocks_peak, blocks)
        self._active_bytes_peak = max(self._active_bytes_peak, self.active_bytes)

    def _inactive_split_changes(self, block: Block, blocks: int, size: int) -> None:
        """Count free parts of segments; PyTorch leaves expandable segments out of it."""
        if block.expandable is not None:
            return
        tally = block.pool.tally
        if blocks:
            for stat in (tally.inactive_split, self._inactive_split):
                (stat.increase if blocks > 0 else stat.decrease)(abs(blocks))
        for stat in (tally.inactive_split_bytes, self._inactive_split_bytes):
            if size > 0:
                stat.increase(size)
            else:
                stat.current += size

    def _note_fullest(self, allocated: int) -> None:
        self._fullest = allocated
        self._peak_moment = self._moment()

    def _moment(self) -> PeakMoment:
        pools = (*self.small_pools.values(), *self.large_pools.values())
        return PeakMoment(
            allocations=self.allocations,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
            largest_free_block_bytes=max(
                (pool.keys[-1] >> ADDRESS_BITS for pool in pools if pool.keys), default=0
            ),
            inactive_split_bytes=self._inactive_split_bytes.current,
        )

    # Free blocks

    def pool(self, stream: Stream, *, small: bool) -> BlockPool:
        """The free blocks of a stream and size class."""
        pools = self.small_pools if small else self.large_pools
        if stream not in pools:
            tallies = (self._small, self._large) if small else (self._large, self._small)
            expand = self.settings.expandable_segments
            pools[stream] = BlockPool(stream, *tallies, small=small, expandable=expand)
        return pools[stream]

    def _search(self, pool: BlockPool, size: int, position: int) -> Block | None:
        """`get_free_block`: the best fit under every setting."""
        if self.ages:
            pool.lookups += 1
        block = self._candidate(pool, position)
        if block is None:
            return None
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and (
            block.size >= size + self.settings.max_non_split_rounding_bytes
        ):
            return None
        pool.remove(block)
        return block

    def _candidate(self, pool: BlockPool, position: int) -> Block | None:
        if position == len(pool):
            return None
        if self.settings.expandable_segments:
            return expandable.best_fit(pool, position)
        block = pool.at(position)
        if block.expandable is None:
            return block
        # Switched off during the run: PyTorch skips the expandable blocks that follow.
        behind = (pool.at(i) for i in range(position + 1, len(pool)))
        return next((other for other in behind if other.expandable is None), None)

    def _split(self, block: Block, size: int) -> None:
        was_split = block.next is not None or block.previous is not None
        rest = block.split(size)
        block.pool.add(rest)
        if was_split:
            self._inactive_split_changes(block, 0, -size)
        else:
            self._inactive_split_changes(block, 1, rest.size)

    def _return(self, block: Block) -> None:
        """`free_block`: merge with free neighbours and join the pool."""
        pool = block.pool
        joined = block.size
        blocks, size = 0, 0
        after = block.next
        if after is not None and after.state is FREE:
            pool.remove(after)
            blocks, size = -1, -after.size
            block.absorb_next()
        before = block.previous
        if before is not None and before.state is FREE:
            pool.remove(before)
            blocks, size = blocks - 1, size - before.size
            before.absorb_next()
            block = before
        pool.add(block)
        if block.next is not None or block.previous is not None:
            blocks, size = blocks + 1, joined
        if blocks or size:
            self._inactive_split_changes(block, blocks, size)

    # Memory from the driver

    def _obtain(self, pool: BlockPool, size: int, requested_bytes: int) -> Block:
        """Get memory as PyTorch does: collect, ask, release what suffices, release all, fail."""
        reclaim.collect_garbage(self)
        wanted = segment_bytes(size, self.settings.large_segment_bytes)
        block = self._grow(pool, size, wanted)
        if block is None and self._rejects(wanted):
            self.num_oom_rejections += 1
        elif block is None:
            block = self._retry(pool, size, wanted)
        if block is not None:
            return block
        self.num_ooms += 1
        raise OutOfMemoryError(
            requested_bytes=requested_bytes,
            segment_bytes=wanted,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
            limit_bytes=min(self.driver_limit_bytes, self.allowed_bytes),
        )

    def _rejects(self, wanted: int) -> bool:
        beyond = self.reserved_bytes + wanted > self.allowed_bytes
        return beyond and self.settings.throw_on_cudamalloc_oom

    def _retry(self, pool: BlockPool, size: int, wanted: int) -> Block | None:
        block = None
        if reclaim.release_oversize(self, pool, size):
            block = self._grow(pool, size, wanted)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._grow(pool, size, wanted)
        return block

    def _grow(self, pool: BlockPool, size: int, wanted: int) -> Block | None:
        """`alloc_block`: a block of new memory that is in no pool; None where there is none."""
        if self.reserved_bytes + wanted > self.allowed_bytes:
            return None
        if self.settings.expandable_segments:
            return self._grow_expandable(pool, size)
        if self.reserved_bytes + wanted > self.driver_limit_bytes:
            return None
        address = self._place("segment_alloc", wanted, pool.stream)
        block = Block(address, wanted, pool)
        self.segments_by_address[address] = block
        self._segment.increase(1)
        pool.tally.segment.increase(1)
        if wanted >= self._max_split:
            self._oversize_segments.increase(1)
        self.take("segment_alloc", block, address, wanted)
        return block

    def _grow_expandable(self, pool: BlockPool, size: int) -> Block | None:
        room = expandable.find_room(pool, size) or self._reserve_addresses(pool, size)
        mapped = self._map(room, size) if room.state is not FREE else room
        while mapped is not None and mapped.size < size:
            behind = mapped.next
            mapped = self._map(behind, size - mapped.size) if behind is not None else None
        if mapped is not None:
            pool.remove(mapped)
        return mapped

    def _reserve_addresses(self, pool: BlockPool, size: int) -> Block:
        page = SMALL_SEGMENT_BYTES if pool.small else self.settings.large_segment_bytes
        length = max(self.reservation_bytes(page), round_up(size, page))
        address = self._place("segment_map", length, pool.stream)
        block = expandable.reserve(pool, ExpandableSegment(address, length, page))
        self.segments_by_address[address] = block
        return block

    def reservation_bytes(self, page_bytes: int) -> int:
        """Addresses that an expandable segment takes: 9/8 of the device, in whole pages."""
        device = self.capacity_bytes or UNKNOWN_DEVICE_BYTES
        return round_up(device + device // 8, page_bytes)

    def _map(self, block: Block, size: int) -> Block | None:
        mapped = expandable.bytes_to_map(block, min(size, block.size))
        if self.reserved_bytes + mapped > self.driver_limit_bytes:
            return None
        address = block.address
        joined = expandable.map_pages(block, mapped)
        self.take("segment_map", joined, address, mapped)
        return joined

    def take(self, action: SegmentAction, block: Block, address: int, size: int) -> None:
        """Count memory that came from the driver."""
        self.num_device_alloc += 1
        block.pool.tally.reserved.increase(size)
        grown = self._reserved.current + size > self._reserved.peak
        self._reserved.increase(size)
        self.reserved_bytes += size
        self._reserved_lap_peak = max(self._reserved_lap_peak, self.reserved_bytes)
        if grown:
            self._note_fullest(self.allocated_bytes)
        elif self.reserved_bytes == self._reserved.peak:
            self._fullest = self._fullest_before
        self.observer(action, address, size, block.pool.stream)

    def give_back(self, action: SegmentAction, block: Block, address: int, size: int) -> None:
        """Count memory that went back to the driver."""
        self.num_device_free += 1
        if self.reserved_bytes == self._reserved.peak:
            self._fullest, self._fullest_before = NEVER, self._fullest
        block.pool.tally.reserved.decrease(size)
        self._reserved.decrease(size)
        self.reserved_bytes -= size
        self.observer(action, address, size, block.pool.stream)

    def release_segment(self, address: int) -> bool:
        """Release the segment at an address if it is one free block; whether it was."""
        block = self.segments_by_address.get(address)
        if block is None or block.state is not FREE or block.is_split():
            return False
        self.release(block)
        return True

    def release(self, block: Block) -> None:
        """Give a segment that is one free block back to the driver (`release_block`)."""
        del self.segments_by_address[block.address]
        block.pool.remove(block)
        block.state = MERGED
        self._segment.decrease(1)
        block.pool.tally.segment.decrease(1)
        if block.size >= self._max_split:
            self._oversize_segments.decrease(1)
        self.give_back("segment_free", block, block.address, block.size)

    def unmap(self, block: Block) -> None:
        """Give the whole pages of a free block back to the driver (`unmap_block`)."""
        address, size = expandable.whole_pages(block)
        if size == 0:
            return
        unmapped = expandable.unmap_pages(block)
        self.give_back("segment_unmap", unmapped, address, size)
        if not unmapped.is_split():
            unmapped.pool.unmapped.remove(unmapped)
            del self.segments_by_address[unmapped.address]
