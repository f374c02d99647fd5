"""PyTorch's CUDA caching allocator, simulated: same requests, same segments, same addresses.

The rules, their sources and what is left out: docs/allocator.md. `malloc` and `free` run hundreds
of thousands of times a second, so they do in place what elsewhere would be a call.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal

from tritter_mem import torch_release
from tritter_mem.allocator.addresses import (
    REGION_BYTES,
    Addresses,
    DriverAddresses,
    SegmentAction,
)
from tritter_mem.allocator.blocks import (
    ORDER_BITS,
    Block,
    BlockPool,
    ExpandableSegment,
    Orders,
    Ties,
    ties_of,
)
from tritter_mem.allocator.rules import (
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    UNLIMITED,
    round_request,
    round_up,
    segment_bytes,
)
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.statistics import Counters, Lap, PeakMoment
from tritter_mem.errors import UsageError
from tritter_mem.results.segments import (
    ALLOCATED,
    FREE,
    MERGED,
    UNMAPPED,
    WAITING,
    BlockState,
    PrivateStream,
    SegmentState,
    Stream,
)
from tritter_mem.units import TiB, format_bytes

Action = SegmentAction | Literal["free_completed"]
# Called for each segment that comes or goes, and for each free that waited, with (action, address,
# bytes, stream).
Observer = Callable[[Action, int, int, Stream], None]
PoolKey = tuple[Stream, bool]  # a stream, and whether the pool is the small one
Starts = Mapping[PoolKey, int]  # the address where each expandable segment begins

# An expandable segment reserves addresses for so much where the device's size is not known.
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


def _ignore(action: Action, address: int, size: int, stream: Stream) -> None:
    """Observe nothing."""


class CachingAllocator:
    """One device's allocator.

    Attributes:
        counters: what it counts; `statistics` shows it under PyTorch's names.
        segments_by_address: the first block of each segment or reservation.
        waiting: freed blocks that another stream may still use, by ticket, in order.
        driver_limit_bytes: what the driver can give.
        collects_garbage: whether cached segments are released by age.

    Args:
        settings: as in `PYTORCH_CUDA_ALLOC_CONF`.
        capacity_bytes: memory of the device; None: no limit. It is also the limit that garbage
            collection measures by.
        device_reserved_bytes: part of it that segments cannot have: the CUDA context, others.
        addresses: gives addresses to new segments; default: as the driver gives them.
        ties: which of several free blocks of equal size is taken; default: as the installed
            PyTorch does.
        observer: called for every segment that comes or goes, and for every free that waited.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity_bytes: int | None = None,
        device_reserved_bytes: int = 0,
        addresses: Addresses | None = None,
        ties: Ties | None = None,
        observer: Observer = _ignore,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.observer = observer
        self.segments_by_address: dict[int, Block] = {}
        self.waiting: dict[int, Block] = {}
        self._addresses = addresses or DriverAddresses()
        self._orders = Orders(ties or ties_of(torch_release.release()))
        self._small_pools: dict[Stream, BlockPool] = {}
        self._large_pools: dict[Stream, BlockPool] = {}
        self._tickets = 0
        self._divisions = self.settings.roundup_power2_divisions
        self._rounded: dict[int, int] = {}
        self._max_split_bytes = self.settings.max_split_bytes or UNLIMITED
        self._split_limit = (
            UNLIMITED if self.settings.expandable_segments else self._max_split_bytes
        )
        self.counters = Counters(self._largest_free_block, self._max_split_bytes)
        self._set_limits(capacity_bytes, device_reserved_bytes)
        # The common case: the smallest block that suffices is the one to take.
        self._plain = not (
            self.settings.expandable_segments
            or self.settings.max_split_bytes is not None
            or self.collects_garbage
        )

    def _set_limits(self, capacity: int | None, device_reserved: int) -> None:
        settings = self.settings
        self._capacity_bytes = capacity
        self.driver_limit_bytes = self._allowed_bytes = UNLIMITED
        if capacity is not None:
            self.driver_limit_bytes = max(capacity - device_reserved, 0)
        if capacity is not None and settings.per_process_memory_fraction < 1:
            self._allowed_bytes = int(settings.per_process_memory_fraction * capacity)
        self.collects_garbage = settings.garbage_collection_threshold > 0 and capacity is not None

    @property
    def limit_bytes(self) -> int:
        """What segments may take."""
        return min(self.driver_limit_bytes, self._allowed_bytes)

    # Requests and frees

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
        pool = (self._small_pools if size <= SMALL_BYTES else self._large_pools).get(stream)
        if pool is None:
            pool = self._pool(stream, small=size <= SMALL_BYTES)
        keys = pool.keys
        position = len(keys) if new_memory else bisect_left(keys, size << ORDER_BITS)
        if self._plain and position < len(keys):
            block = pool.blocks.pop(keys.pop(position))
        else:
            block = self._search(pool, size, position) or self._obtain(pool, size, size_bytes)
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

    def serve(  # noqa: C901  (a call would take longer than what it does)
        self, sizes: Sequence[int], events: Iterable[int], held: dict[int, Block]
    ) -> list[int]:
        """Serve many requests and frees of stream 0, as `malloc` and `free` would one by one.

        Blocks, segments and what is reserved are the same. Live blocks are not counted, which
        takes half as long.

        Args:
            sizes: the bytes that each storage asks for.
            events: the number of a storage to serve, or the complement (~) of one to free.
            held: blocks of storages that live, by number; kept up to date.

        Returns:
            The bytes of the blocks that were handed out, in order.

        Raises:
            OutOfMemoryError: the capacity does not suffice; `held` has what was served before.
        """
        served: list[int] = []
        expands = self.settings.expandable_segments
        is_other = self.settings.max_split_bytes is not None or self.collects_garbage
        if is_other or self._divisions is not None or self._orders.by_block:
            for event in events:
                if event >= 0:
                    block = held[event] = self.malloc(sizes[event])
                    served.append(block.size)
                else:
                    self.free(held.pop(~event))
            return served
        small, large = self._pool(0, small=True), self._pool(0, small=False)
        for event in events:
            if event >= 0:
                size = (sizes[event] + 511) & -512 or 512
                pool = small if size <= SMALL_BYTES else large
                keys, blocks = pool.keys, pool.blocks
                position = bisect_left(keys, size << ORDER_BITS)
                if position == len(keys):
                    block = self._obtain(pool, size, sizes[event])
                elif expands:
                    block = pool.best_expandable_fit(position)
                    pool.remove(block)
                else:
                    block = blocks.pop(keys.pop(position))
                left = block.size - size
                if left >= pool.remainder:
                    rest = block.split(size)
                    key = left << ORDER_BITS | rest.order
                    insort(keys, key)
                    blocks[key] = rest
                block.state = ALLOCATED
                held[event] = block
                served.append(block.size)
                continue
            block = held.pop(~event)
            pool = block.pool
            keys, blocks = pool.keys, pool.blocks
            after, before = block.next, block.previous
            if after is not None and after.state is FREE:
                key = after.size << ORDER_BITS | after.order
                del keys[bisect_left(keys, key)], blocks[key]
                block.absorb_next()
            if before is not None and before.state is FREE:
                key = before.size << ORDER_BITS | before.order
                del keys[bisect_left(keys, key)], blocks[key]
                before.absorb_next()
                block = before
            key = block.size << ORDER_BITS | block.order
            insort(keys, key)
            blocks[key] = block
            block.state = FREE
        return served

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
        self._release_cached()

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

    def out_of_memory(self, requested_bytes: int, wanted_bytes: int) -> OutOfMemoryError:
        """The error for a request, with how things stand now."""
        return OutOfMemoryError(
            requested_bytes=requested_bytes,
            segment_bytes=wanted_bytes,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
            limit_bytes=self.limit_bytes,
        )

    def _largest_free_block(self) -> int:
        pools = (*self._small_pools.values(), *self._large_pools.values())
        return max((pool.keys[-1] >> ORDER_BITS for pool in pools if pool.keys), default=0)

    # Free blocks: found, split, merged

    def _pool(self, stream: Stream, *, small: bool) -> BlockPool:
        pools = self._small_pools if small else self._large_pools
        if stream not in pools:
            tallies = self.counters.tallies(small=small)
            expand = self.settings.expandable_segments
            pools[stream] = BlockPool(
                stream, self._orders, *tallies, small=small, expandable=expand
            )
        return pools[stream]

    def _round(self, size_bytes: int, divisions: Sequence[int]) -> int:
        """Round a size that was not asked for before."""
        size = self._rounded[size_bytes] = round_request(size_bytes, divisions)
        return size

    def _search(self, pool: BlockPool, size: int, position: int) -> Block | None:
        """The best fit under every setting (`get_free_block`)."""
        if self.collects_garbage and not pool.private:
            pool.tally.lookups += 1
        block = self._candidate(pool, position)
        if block is None or size < self._max_split_bytes <= block.size:
            return None
        rounding = self.settings.max_non_split_rounding_bytes
        if size >= self._max_split_bytes and block.size >= size + rounding:
            return None
        pool.remove(block)
        return block

    def _candidate(self, pool: BlockPool, position: int) -> Block | None:
        if position == len(pool):
            return None
        if self.settings.expandable_segments:
            return pool.best_expandable_fit(position)
        block = pool.at(position)
        if block.expandable is None:
            return block
        # Switched off during the run: PyTorch skips the expandable blocks that follow.
        behind = (pool.at(i) for i in range(position + 1, len(pool)))
        return next((other for other in behind if other.expandable is None), None)

    def _split(self, block: Block, size: int) -> None:
        was_split = block.next is not None or block.previous is not None
        rest = block.split(size)
        if self._orders.by_block:  # PyTorch makes a block of what is taken
            rest.order = block.order
            self._orders.made(block)
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
            if self._orders.by_block:
                before.order = block.order
            block = before
        pool.add(block)
        if block.next is not None or block.previous is not None:
            blocks, size = blocks + 1, joined
        if size and block.expandable is None:
            self.counters.inactive_split_changes(pool.tally, blocks, size)

    # Memory from the driver

    def _obtain(self, pool: BlockPool, size: int, requested_bytes: int) -> Block:
        """A block of new memory: collect garbage, ask, release what suffices, release all, fail.

        Args:
            pool: where the block belongs.
            size: the rounded request.
            requested_bytes: the bytes asked for.

        Raises:
            OutOfMemoryError: nothing helped.
        """
        if self.collects_garbage:
            self._collect_garbage()
        wanted = segment_bytes(size, self.settings.large_segment_bytes)
        block = self._grow(pool, size, wanted)
        if block is None and self._rejects(wanted):
            self.counters.num_oom_rejections += 1
        elif block is None:
            block = self._retry(pool, size, wanted)
        if block is None:
            self.counters.num_ooms += 1
            raise self.out_of_memory(requested_bytes, wanted)
        return block

    def _rejects(self, wanted: int) -> bool:
        """Whether the request fails at once, the cache kept (`throw_on_cudamalloc_oom`)."""
        beyond = self.reserved_bytes + wanted > self._allowed_bytes
        return beyond and self.settings.throw_on_cudamalloc_oom

    def _retry(self, pool: BlockPool, size: int, wanted: int) -> Block | None:
        block = None
        if self._release_oversize(pool, size):
            block = self._grow(pool, size, wanted)
        if block is None and not _captures(pool):
            self.empty_cache()
            self.counters.num_alloc_retries += 1
            block = self._grow(pool, size, wanted)
        return block

    def _grow(self, pool: BlockPool, size: int, wanted: int) -> Block | None:
        """Ask the driver for a block (`alloc_block`); None if it has no memory left."""
        if self.reserved_bytes + wanted > self._allowed_bytes:
            return None
        if self.settings.expandable_segments:
            return self._grow_expandable(pool, size)
        if self.reserved_bytes + wanted > self.driver_limit_bytes:
            return None
        address = self._addresses.reserve("segment_alloc", wanted, pool.stream)
        block = Block(address, wanted, pool, self._orders.of_segment(address))
        self.segments_by_address[address] = block
        self.counters.took(pool.tally, wanted, segment=True)
        self.observer("segment_alloc", address, wanted, pool.stream)
        return block

    # Memory back to the driver

    def release_at(self, address: int) -> bool:
        """Release the segment at an address if it is one free block; whether it was."""
        block = self.segments_by_address.get(address)
        if block is None or block.state is not FREE or block.is_split():
            return False
        self._release(block)
        return True

    def can_release(self) -> bool:
        """Whether `empty_cache` would release a segment (pages of expandable ones left aside)."""
        pools = (*self._large_pools.values(), *self._small_pools.values())
        return any(
            _is_plain_segment(block)
            for pool in pools
            if not pool.private
            for block in pool.blocks.values()
        )

    def _collect_garbage(self) -> None:
        """Above the threshold: release cached large segments, those unused for longest first.

        PyTorch repeats it with the average age of what is left until enough is released, and within
        one round does not stop at enough (`garbage_collect_cached_blocks`). Age counts lookups in
        the pool, not time.
        """
        # PyTorch collects only under a memory fraction; here the capacity itself is a limit too.
        fraction_set = self._allowed_bytes < UNLIMITED
        limit = self._allowed_bytes if fraction_set else self.driver_limit_bytes
        threshold = int(self.settings.garbage_collection_threshold * limit)
        target = self.reserved_bytes - threshold
        cached = [block for block in _cached(self._large_pools) if _is_plain_segment(block)]
        while target > 0 and cached:
            average = sum(map(_age, cached)) / len(cached)
            old = [block for block in cached if _age(block) >= average]
            for block in old:
                target -= block.size
                self._release(block)
            cached = [block for block in cached if _age(block) < average]
            if not old:
                return

    def _release_oversize(self, pool: BlockPool, size: int) -> bool:
        """With `max_split_size`: release just enough oversize blocks; whether that is enough.

        One block that suffices, the smallest such; else the largest ones until they add up
        (`release_available_cached_blocks`).
        """
        limit = self.settings.max_split_bytes
        if limit is None:
            return False
        wanted = max(size, limit)
        position = pool.position(wanted)
        if position < len(pool) and pool.at(position).expandable is None:
            self._release(pool.at(position))
            return True
        released = 0
        for block in reversed([block for block in pool if block.size >= limit]):
            if released >= wanted:
                break
            if _is_plain_segment(block):
                released += block.size
                self._release(block)
        return released >= wanted

    def _release_cached(self) -> None:
        """Release every segment that is one free block, and every whole free page.

        The large pool comes first. Private pools keep their segments: a CUDA graph may replay into
        them.
        """
        for pools in (self._large_pools, self._small_pools):
            pages: list[Block] = []
            for block in _cached(pools):
                if block.expandable is not None:
                    pages.append(block)
                elif not block.is_split():
                    self._release(block)
            for block in pages:
                self._unmap(block)

    def _release(self, block: Block) -> None:
        """Give a segment that is one free block back to the driver (`release_block`)."""
        pool = block.pool
        del self.segments_by_address[block.address]
        pool.remove(block)
        block.state = MERGED
        self.counters.gave_back(pool.tally, block.size, segment=True)
        self._addresses.release(block.address, block.size)
        self.observer("segment_free", block.address, block.size, pool.stream)

    # Expandable segments

    def map_at(self, stream: Stream, address: int, size: int) -> Block | None:
        """Map pages as a request did that then got no further, the device being full.

        The small pool maps one page for a request, so these are always of the large one.
        """
        pool = self._pool(stream, small=False)
        room = next((block for block in pool.unmapped if block.address == address), None)
        return self._map(room or self._reserve(pool, size), size)

    def _grow_expandable(self, pool: BlockPool, size: int) -> Block | None:
        """Map pages at the lowest address with room (`try_allocate_expandable_block`)."""
        room = pool.find_room(size) or self._reserve(pool, size)
        mapped = room if room.state is FREE else self._map(room, size)
        while mapped is not None and mapped.size < size:
            behind = mapped.next
            mapped = None if behind is None else self._map(behind, size - mapped.size)
        if mapped is not None:
            pool.remove(mapped)
        return mapped

    def _reserve(self, pool: BlockPool, size: int) -> Block:
        """Reserve addresses for at least `size` bytes; returns them as one unmapped block."""
        page = self._page_bytes(small=pool.small)
        length = max(self._reservation_bytes(page), round_up(size, page))
        address = self._addresses.reserve("segment_map", length, pool.stream)
        block = pool.reserve(ExpandableSegment(address, length, page))
        self.segments_by_address[address] = block
        return block

    def _page_bytes(self, *, small: bool) -> int:
        return SMALL_SEGMENT_BYTES if small else self.settings.large_segment_bytes

    def _reservation_bytes(self, page_bytes: int) -> int:
        """Addresses that an expandable segment takes: 9/8 of the device, in whole pages.

        The eighth lets pages move to the end when lower ones cannot be unmapped.
        """
        device = self._capacity_bytes or UNKNOWN_DEVICE_BYTES
        return round_up(device + device // 8, page_bytes)

    def _map(self, block: Block, size: int) -> Block | None:
        """Map whole pages for the first `size` bytes of an unmapped block (`map_block`)."""
        pool, address = block.pool, block.address
        mapped = round_up(min(size, block.size), block.segment.page_bytes)
        if self.reserved_bytes + mapped > self.driver_limit_bytes:
            return None
        joined = pool.map_pages(block, mapped)
        self.counters.took(pool.tally, mapped, segment=False)
        self.observer("segment_map", address, mapped, pool.stream)
        return joined

    def _unmap(self, block: Block) -> None:
        """Give the whole pages of a free block back to the driver (`unmap_block`)."""
        pool = block.pool
        address, size = block.whole_pages()
        if size == 0:
            return
        unmapped = pool.unmap_pages(block)
        self.counters.gave_back(pool.tally, size, segment=False)
        self.observer("segment_unmap", address, size, pool.stream)
        if not unmapped.is_split():  # nothing of the reservation is mapped any more
            pool.unmapped.remove(unmapped)
            del self.segments_by_address[unmapped.address]
            self._addresses.release(unmapped.address, unmapped.size)

    # Segments as data

    def segments(self) -> list[SegmentState]:
        """Every segment with its blocks, by address; of an expandable one each mapped range."""
        firsts = self.segments_by_address.values()
        ranges = (mapped for first in firsts for mapped in _mapped_ranges(first))
        return sorted(map(_segment_state, ranges), key=lambda segment: segment.address)

    def load(
        self, segments: Sequence[SegmentState], starts: Starts | None = None
    ) -> dict[int, Block]:
        """Start from segments that are there already; returns live and waiting blocks by address.

        Peaks start at this state.

        Args:
            segments: all of them, with their blocks.
            starts: where expandable segments begin, if not with their lowest mapped page.
        """
        chains = [self._chain(s.blocks, s) for s in segments if not s.expandable]
        chains += self._reservations([s for s in segments if s.expandable], starts or {})
        for chain in sorted(chains, key=_oldest_first):
            self._adopt(chain)
        self.counters.start_peaks()
        blocks = (block for chain in chains for block in chain)
        return {block.address: block for block in blocks if block.state in (ALLOCATED, WAITING)}

    def _chain(self, blocks: Iterable[BlockState], like: SegmentState,
               reservation: ExpandableSegment | None = None) -> list[Block]:  # fmt: skip
        pool = self._pool(like.stream, small=like.small)
        chain = []
        for state in blocks:
            block = Block(state.address, state.size, pool, 0, reservation)
            block.requested, block.state = state.requested, state.state
            chain.append(block)
        for block, after in pairwise(chain):
            block.next, after.previous = after, block
        return chain

    def _reservations(
        self, ranges: Sequence[SegmentState], starts: Starts
    ) -> Iterator[list[Block]]:
        """One reservation a stream and pool, from where it starts to the end.

        A snapshot shows mapped ranges only: the lowest of them counts as the start where `starts`
        has no other one.
        """
        for stream, small in dict.fromkeys((r.stream, r.small) for r in ranges):
            own = sorted((r for r in ranges if (r.stream, r.small) == (stream, small)),
                         key=lambda r: r.address)  # fmt: skip
            page = self._page_bytes(small=small)
            base, end = starts.get((stream, small), own[0].address), own[-1].address + own[-1].size
            length = max(self._reservation_bytes(page), round_up(end - base, page) + page)
            reservation = ExpandableSegment(base, length, page)
            yield self._chain(_with_gaps(own, base, base + length), own[0], reservation)

    def _adopt(self, chain: Sequence[Block]) -> None:
        """Take in a segment, or a whole reservation, that is there already."""
        first = chain[0]
        mapped = sum(block.size for block in chain if block.state is not UNMAPPED)
        self.segments_by_address[first.address] = first
        self.counters.took(first.pool.tally, mapped, segment=first.expandable is None)
        self._plain = self._plain and first.expandable is None
        order = self._orders.of_segment(first.address)
        for block in chain:
            block.order = order + block.address - first.address
            self._adopt_block(block)

    def _adopt_block(self, block: Block) -> None:
        pool = block.pool
        if block.state is UNMAPPED:
            pool.add_unmapped(block)
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


def _oldest_first(chain: Sequence[Block]) -> tuple[int, int]:
    """When a segment was taken is not known: the driver's addresses go down region by region."""
    address = chain[0].address
    return -(address // REGION_BYTES), address


def _freed_twice(block: Block) -> UsageError:
    return UsageError(f"the block at {block.address:#x} is not allocated: it was freed before")


def _captures(pool: BlockPool) -> bool:
    """Whether PyTorch takes it that a graph is captured: then nothing waits, and the cache stays.

    A private pool is asked for memory while it is in use, by a capture or, where its number comes
    second, maybe by `use_mem_pool`, which up to PyTorch 2.12 counts as one.
    """
    if not isinstance(pool.stream, PrivateStream):
        return False
    return pool.stream.pool_id[0] > 0 or torch_release.release() < (2, 13)


def _is_plain_segment(block: Block) -> bool:
    """Whether a free block is a whole segment, which is not expandable."""
    return block.expandable is None and not block.is_split()


def _cached(pools: Mapping[Stream, BlockPool]) -> list[Block]:
    """Free blocks outside of private pools, by stream, size and address."""
    shared = [pool for pool in pools.values() if not pool.private]
    return [block for pool in sorted(shared, key=lambda pool: pool.stream) for block in pool]


def _age(block: Block) -> int:
    return block.pool.tally.lookups - block.age


def _mapped_ranges(first: Block) -> Iterator[list[Block]]:
    """The chain that a block begins, cut at its unmapped blocks."""
    mapped: list[Block] = []
    block: Block | None = first
    while block is not None:
        if block.state is not UNMAPPED:
            mapped.append(block)
        elif mapped:
            yield mapped
            mapped = []
        block = block.next
    if mapped:
        yield mapped


def _segment_state(blocks: Sequence[Block]) -> SegmentState:
    first = blocks[0]
    return SegmentState(
        address=first.address,
        size=sum(block.size for block in blocks),
        stream=first.pool.stream,
        small=first.pool.small,
        expandable=first.expandable is not None,
        blocks=tuple(
            BlockState(b.address, b.size, 0 if b.state is FREE else b.requested, b.state)
            for b in blocks
        ),
    )


def _with_gaps(ranges: Iterable[SegmentState], base: int, end: int) -> Iterator[BlockState]:
    """The blocks of mapped ranges, and an unmapped one wherever nothing is mapped."""
    position = base
    for mapped in ranges:
        if position < mapped.address:
            yield BlockState(position, mapped.address - position, 0, UNMAPPED)
        yield from mapped.blocks
        position = mapped.address + mapped.size
    yield BlockState(position, end - position, 0, UNMAPPED)
