"""PyTorch's CUDA caching allocator, simulated: same requests, same segments, same addresses.

The rules, their sources and what is left out: docs/allocator.md. `malloc` and `free` run hundreds
of thousands of times a second, so they do in place what elsewhere would be a call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

from tritter_mem.allocator import expandable, growth, reclaim
from tritter_mem.allocator.blocks import (
    ADDRESS_BITS,
    ALLOCATED,
    FREE,
    UNMAPPED,
    WAITING,
    Block,
    BlockPool,
    Stream,
)
from tritter_mem.allocator.rules import SMALL_BYTES, UNLIMITED, round_request, round_up
from tritter_mem.allocator.segments import SegmentState, Starts, load, read
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.statistics import Counters, Lap, PeakMoment
from tritter_mem.errors import UsageError
from tritter_mem.units import MiB, format_bytes

SegmentAction = Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]
Action = SegmentAction | Literal["free_completed"]
# Address of a new segment or reservation, from (action, bytes, stream).
Place = Callable[[SegmentAction, int, Stream], int]
# Told of each segment that comes or goes, and of each free that waited: (action, address, bytes,
# stream).
Observer = Callable[[Action, int, int, Stream], None]

FIRST_ADDRESS = 0x7F00_0000_0000
ALIGNMENT = 2 * MiB


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

    Attributes:
        counters: what it counts; `statistics` shows it under PyTorch's names.
        segments_by_address: the first block of each segment or reservation.
        waiting: freed blocks that another stream may still use, by ticket, in order.

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
        self.place = place or Ascending()
        self.observer = observer
        self.max_split_bytes = self.settings.max_split_bytes or UNLIMITED
        self.counters = Counters(self._largest_free_block, self.max_split_bytes)
        self.segments_by_address: dict[int, Block] = {}
        self.small_pools: dict[Stream, BlockPool] = {}
        self.large_pools: dict[Stream, BlockPool] = {}
        self.waiting: dict[int, Block] = {}
        self._tickets = 0
        self._divisions = self.settings.roundup_power2_divisions
        self._rounded: dict[int, int] = {}
        self._split_limit = UNLIMITED if self.settings.expandable_segments else self.max_split_bytes
        self._set_limits()

    def _set_limits(self) -> None:
        settings, capacity = self.settings, self.capacity_bytes
        self.driver_limit_bytes = self.allowed_bytes = UNLIMITED
        if capacity is not None:
            self.driver_limit_bytes = max(capacity - self.device_reserved_bytes, 0)
        if capacity is not None and settings.per_process_memory_fraction < 1:
            self.allowed_bytes = int(settings.per_process_memory_fraction * capacity)
        self.ages = settings.garbage_collection_threshold > 0 and capacity is not None
        # The common case: the smallest block that suffices is the one to take.
        self._plain = not (
            settings.expandable_segments or settings.max_split_bytes is not None or self.ages
        )

    @property
    def limit_bytes(self) -> int:
        """What segments may take."""
        return min(self.driver_limit_bytes, self.allowed_bytes)

    # Requests

    def malloc(self, size_bytes: int, stream: Stream = 0, *, new_memory: bool = False) -> Block:
        """Serve a request; the block's `address` and `size` are what PyTorch would have given.

        Args:
            size_bytes: the bytes asked for, before rounding.
            stream: the CUDA stream; blocks are reused within their stream only.
            new_memory: whether no cached block is looked for, as in the allocator's own retry.

        Raises:
            OutOfMemoryError: the capacity does not suffice, even with the cache released.
        """
        if self._divisions is None:
            size = (size_bytes + 511) & -512 or 512  # round_request, in place
        else:
            size = self._rounded.get(size_bytes) or self._round(size_bytes, self._divisions)
        pool = (self.small_pools if size <= SMALL_BYTES else self.large_pools).get(stream)
        if pool is None:
            pool = self.pool(stream, small=size <= SMALL_BYTES)
        keys = pool.keys
        position = len(keys) if new_memory else bisect_left(keys, size << ADDRESS_BITS)
        if self._plain and position < len(keys):
            block = pool.blocks.pop(keys.pop(position))
        else:
            block = self._search(pool, size, position) or growth.obtain(
                self, pool, size, size_bytes
            )
        if block.size - size >= pool.remainder and size < self._split_limit:
            self._split(block, size)
        elif block.expandable is None and (block.next is not None or block.previous is not None):
            self.counters.inactive_split_changes(pool.tally, -1, -block.size)
        block.state = ALLOCATED
        block.requested = size_bytes
        self.counters.allocation(pool.tally, pool.other, block.size, size_bytes)
        return block

    def free(self, block: Block) -> None:
        """Return a block to its pool; free neighbours become one with it.

        Raises:
            UsageError: the block is not allocated.
        """
        if block.state is not ALLOCATED:
            raise _freed_twice(block)
        tally = block.pool.tally
        self.counters.freed(tally, block.size)
        tally.requested -= block.requested
        self._return(block)

    def request_free(self, block: Block) -> int:
        """Free a block that another stream may still use.

        It waits for `complete_free` with the ticket that this returns.

        Raises:
            UsageError: the block is not allocated.
        """
        if block.state is not ALLOCATED:
            raise _freed_twice(block)
        tally = block.pool.tally
        self.counters.freed(tally, block.size)
        self.counters.waits(tally, block.size)
        block.state = WAITING
        self._tickets += 1
        self.waiting[self._tickets] = block
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
        self.counters.num_sync_all_streams += 1
        for block in self.waiting.values():
            self._complete(block)
        self.waiting.clear()
        reclaim.release_cached(self)

    def _complete(self, block: Block) -> None:
        tally = block.pool.tally
        self.counters.waited(tally, block.size)
        tally.requested -= block.requested
        self.observer("free_completed", block.address, block.requested, block.pool.stream)
        self._return(block)

    # What there is

    @property
    def allocated_bytes(self) -> int:
        """Live blocks, rounded as they are."""
        return self.counters.allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        """Segments, and mapped pages of expandable ones."""
        return self.counters.reserved.current

    @property
    def statistics(self) -> dict[str, int]:
        """All counters, under the names of `torch.cuda.memory_stats`."""
        split = self.settings.max_split_bytes
        return self.counters.named() | {"max_split_size": -1 if split is None else split}

    @property
    def peak_moment(self) -> PeakMoment:
        """The fullest moment at the reserved peak."""
        return self.counters.moment()

    def lap(self) -> Lap:
        """Peaks since the last call, for a timeline or the phases of a run."""
        return self.counters.lap()

    def segments(self) -> list[SegmentState]:
        """Every segment with its blocks, by address; of an expandable one each mapped range."""
        return read(self.segments_by_address.values())

    def _largest_free_block(self) -> int:
        pools = (*self.small_pools.values(), *self.large_pools.values())
        return max((pool.keys[-1] >> ADDRESS_BITS for pool in pools if pool.keys), default=0)

    def out_of_memory(self, requested_bytes: int, wanted_bytes: int) -> OutOfMemoryError:
        """The error for a request, with how things stand now."""
        return OutOfMemoryError(
            requested_bytes=requested_bytes,
            segment_bytes=wanted_bytes,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
            limit_bytes=self.limit_bytes,
        )

    # A state that is there already

    def load(
        self, segments: Sequence[SegmentState], starts: Starts | None = None
    ) -> dict[int, Block]:
        """Start from segments that are there already; returns live and waiting blocks by address.

        Peaks start at this state.

        Args:
            segments: all of them, with their blocks.
            starts: where expandable segments begin, if not with their lowest mapped page.
        """
        found = load(self, segments, starts or {})
        self.counters.start_peaks()
        return found

    def adopt(self, chain: Sequence[Block]) -> None:
        """Take in a segment, or a whole reservation, that is there already."""
        first = chain[0]
        mapped = sum(block.size for block in chain if block.state is not UNMAPPED)
        self.segments_by_address[first.address] = first
        self.counters.took(first.pool.tally, mapped, segment=first.expandable is None)
        self._plain = self._plain and first.expandable is None
        for block in chain:
            self._adopt_block(block)

    def _adopt_block(self, block: Block) -> None:
        pool = block.pool
        if block.state is UNMAPPED:
            expandable.add_unmapped(block)
        elif block.state is FREE:
            pool.add(block)
            if block.is_split() and block.expandable is None:
                self.counters.inactive_split_changes(pool.tally, 1, block.size)
        else:
            waits = block.state is WAITING
            self.counters.allocation(pool.tally, pool.other, block.size, block.requested)
            block.state = ALLOCATED
            if waits:
                self.request_free(block)

    # Free blocks

    def pool(self, stream: Stream, *, small: bool) -> BlockPool:
        """The free blocks of a stream and size class."""
        pools = self.small_pools if small else self.large_pools
        if stream not in pools:
            tallies = self.counters.tallies(small=small)
            expand = self.settings.expandable_segments
            pools[stream] = BlockPool(stream, *tallies, small=small, expandable=expand)
        return pools[stream]

    def _round(self, size_bytes: int, divisions: Sequence[int]) -> int:
        """Round a size that was not asked for before."""
        size = self._rounded[size_bytes] = round_request(size_bytes, divisions)
        return size

    def _search(self, pool: BlockPool, size: int, position: int) -> Block | None:
        """The best fit under every setting (`get_free_block`)."""
        if self.ages and not pool.private:
            pool.tally.lookups += 1
        block = self._candidate(pool, position)
        if block is None or size < self.max_split_bytes <= block.size:
            return None
        rounding = self.settings.max_non_split_rounding_bytes
        if size >= self.max_split_bytes and block.size >= size + rounding:
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
        if block.expandable is not None:  # PyTorch leaves these out of inactive split
            return
        if was_split:
            self.counters.inactive_split_changes(block.pool.tally, 0, -size)
        else:
            self.counters.inactive_split_changes(block.pool.tally, 1, rest.size)

    def _return(self, block: Block) -> None:
        """Merge with free neighbours and join the pool (`free_block`)."""
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
        if size and block.expandable is None:
            self.counters.inactive_split_changes(pool.tally, blocks, size)


def _freed_twice(block: Block) -> UsageError:
    return UsageError(f"the block at {block.address:#x} is not allocated: it was freed before")
