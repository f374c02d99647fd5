"""Segments as plain data: the allocator's state read out, and read in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tritter_mem.allocator.blocks import (
    ALLOCATED,
    FREE,
    UNMAPPED,
    WAITING,
    Block,
    ExpandableSegment,
    State,
    Stream,
)
from tritter_mem.allocator.growth import reservation_bytes
from tritter_mem.allocator.rules import SMALL_SEGMENT_BYTES, round_up

if TYPE_CHECKING:
    from tritter_mem.allocator.simulator import CachingAllocator


class BlockState(NamedTuple):
    """A block as data: `state` is FREE, ALLOCATED or WAITING."""

    address: int
    size: int
    requested: int
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentState:
    """A segment, or a contiguous mapped range of an expandable one, and the blocks that tile it."""

    address: int
    size: int
    stream: Stream
    small: bool
    expandable: bool = False
    blocks: tuple[BlockState, ...] = ()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of its live blocks."""
        return sum(block.size for block in self.blocks if block.state is ALLOCATED)


def read(firsts: Iterable[Block]) -> list[SegmentState]:
    """Segments by address, from the first block of each chain."""
    ranges = (mapped for first in firsts for mapped in _mapped_ranges(first))
    return sorted((_state(blocks) for blocks in ranges), key=lambda segment: segment.address)


def _mapped_ranges(first: Block) -> Iterator[list[Block]]:
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


def _state(blocks: Sequence[Block]) -> SegmentState:
    first = blocks[0]
    return SegmentState(
        address=first.address,
        size=sum(block.size for block in blocks),
        stream=first.pool.stream,
        small=first.pool.small,
        expandable=first.expandable is not None,
        blocks=tuple(_block(block) for block in blocks),
    )


def _block(block: Block) -> BlockState:
    requested = 0 if block.state is FREE else block.requested
    return BlockState(block.address, block.size, requested, block.state)


Starts = Mapping[tuple[Stream, bool], int]  # by stream and whether it is of the small pool


def load(
    allocator: CachingAllocator, segments: Sequence[SegmentState], starts: Starts
) -> dict[int, Block]:
    """Give an empty allocator its first segments; returns live and waiting blocks by address."""
    plain = [segment for segment in segments if not segment.expandable]
    chains = [_chain(allocator, segment.blocks, segment) for segment in plain]
    chains += _reservations(allocator, [s for s in segments if s.expandable], starts)
    for chain in chains:
        allocator.adopt(chain)
    return {
        block.address: block
        for chain in chains
        for block in chain
        if block.state in (ALLOCATED, WAITING)
    }


def _chain(allocator: CachingAllocator, blocks: Iterable[BlockState], like: SegmentState,
           reservation: ExpandableSegment | None = None) -> list[Block]:  # fmt: skip
    pool = allocator.pool(like.stream, small=like.small)
    chain = []
    for state in blocks:
        block = Block(state.address, state.size, pool, reservation)
        block.requested, block.state = state.requested, state.state
        chain.append(block)
    for block, after in pairwise(chain):
        block.next, after.previous = after, block
    return chain


def _reservations(
    allocator: CachingAllocator, ranges: Sequence[SegmentState], starts: Starts
) -> Iterator[list[Block]]:
    """One reservation a stream and pool, from where it starts to the end.

    A snapshot shows mapped ranges only: the lowest of them counts as the start where nothing tells
    of another one.
    """
    for stream, small in dict.fromkeys((r.stream, r.small) for r in ranges):
        own = sorted((r for r in ranges if (r.stream, r.small) == (stream, small)),
                     key=lambda r: r.address)  # fmt: skip
        page = SMALL_SEGMENT_BYTES if small else allocator.settings.large_segment_bytes
        base, end = starts.get((stream, small), own[0].address), own[-1].address + own[-1].size
        length = max(reservation_bytes(allocator, page), round_up(end - base, page) + page)
        reservation = ExpandableSegment(base, length, page)
        yield _chain(allocator, _with_gaps(own, base, base + length), own[0], reservation)


def _with_gaps(ranges: Iterable[SegmentState], base: int, end: int) -> Iterator[BlockState]:
    position = base
    for mapped in ranges:
        if position < mapped.address:
            yield BlockState(position, mapped.address - position, 0, UNMAPPED)
        yield from mapped.blocks
        position = mapped.address + mapped.size
    yield BlockState(position, end - position, 0, UNMAPPED)
