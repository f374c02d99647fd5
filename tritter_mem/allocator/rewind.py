"""The state at the beginning of a recording: its end, with every event undone.

A recording may begin with segments already there, and PyTorch keeps only so many events. What it
does not say of the beginning follows from the rules: a block's size from the bytes asked for, and a
gap behind it that is too small to have been split off belongs to it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from tritter_mem.allocator.blocks import ALLOCATED, FREE, WAITING, State, Stream
from tritter_mem.allocator.ranges import MappedRanges
from tritter_mem.allocator.rules import SMALL_BYTES, SMALL_SEGMENT_BYTES, round_request
from tritter_mem.allocator.segments import BlockState, SegmentState
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.snapshot_in import DeviceSnapshot
from tritter_mem.allocator.trace import (
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    OOM,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    Trace,
)


class _Live(NamedTuple):
    requested: int
    size: int | None  # None: follows from the rules
    state: State


def state_at_start(snapshot: DeviceSnapshot) -> tuple[list[SegmentState], list[str]]:
    """Segments and blocks before the first event, and warnings about what does not add up."""
    rewind = _Rewind(snapshot)
    rewind.run(snapshot.trace)
    segments = rewind.all_segments()
    inside = _inside(segments, rewind.live)
    limits = _limits(segments, inside, snapshot.trace)
    filled = [
        _tile(segment, blocks, limits, snapshot.settings)
        for segment, blocks in zip(segments, inside, strict=True)
    ]
    return filled, rewind.warnings()


def records_completion(snapshot: DeviceSnapshot) -> bool:
    """Whether frees have two events; a recording may skip one kind of them."""
    waiting = any(block.state is WAITING for s in snapshot.segments for block in s.blocks)
    return waiting or FREE_COMPLETED in snapshot.trace.actions


class _Rewind:
    """Undoes a history, from the end to the beginning."""

    def __init__(self, snapshot: DeviceSnapshot) -> None:
        plain = [s for s in snapshot.segments if not s.expandable]
        self.segments = {segment.address: segment for segment in plain}
        page = snapshot.settings.large_segment_bytes
        self.ranges = MappedRanges((s for s in snapshot.segments if s.expandable), page)
        self.live = {
            block.address: _Live(block.requested, block.size, block.state)
            for segment in snapshot.segments
            for block in segment.blocks
            if block.state is not FREE
        }
        self.served: dict[int, int] = {}  # bytes asked for, by address, all through the history
        self.completes = records_completion(snapshot)
        self.lost_blocks = self.lost_segments = 0

    def run(self, trace: Trace) -> None:
        live, served, addresses, sizes = self.live, self.served, trace.addresses, trace.sizes
        for event in range(len(trace) - 1, -1, -1):
            action, address = trace.actions[event], addresses[event]
            if action == ALLOC:
                self.lost_blocks += live.pop(address, None) is None
                served[address] = sizes[event]
            elif action == FREE_COMPLETED:
                live.setdefault(address, _Live(sizes[event], None, WAITING))
            elif action == FREE_REQUESTED:
                self._unrequest(address, sizes[event])
            elif action != OOM:
                self._undo_segment(action, address, sizes[event], trace.stream(event))

    def _unrequest(self, address: int, size: int) -> None:
        found = self.live.get(address)
        if found is not None:
            self.live[address] = found._replace(state=ALLOCATED)
        elif not self.completes:  # the recording skipped one of the two events of a free
            self.live[address] = _Live(size, None, ALLOCATED)

    def _undo_segment(self, action: int, address: int, size: int, stream: Stream) -> None:
        if action == SEGMENT_ALLOC:
            self.lost_segments += self.segments.pop(address, None) is None
        elif action == SEGMENT_FREE:
            self.segments[address] = _released(address, size, stream)
        elif action == SEGMENT_MAP:
            self.lost_segments += not self.ranges.remove(address, size)
        elif action == SEGMENT_UNMAP:
            self.ranges.add(address, size, stream)

    def all_segments(self) -> list[SegmentState]:
        live = {address: block.requested for address, block in self.live.items()}
        found = (*self.segments.values(), *self.ranges.segments(self.served | live))
        return sorted(found, key=lambda segment: segment.address)

    def warnings(self) -> list[str]:
        found = []
        if self.lost_blocks:
            found.append(
                "allocations neither freed in the history nor live at its end: "
                f"{self.lost_blocks:,}"
            )
        if self.lost_segments:
            found.append(
                "segments neither released in the history nor there at its end: "
                f"{self.lost_segments:,}"
            )
        return found


def _released(address: int, size: int, stream: Stream) -> SegmentState:
    small = size == SMALL_SEGMENT_BYTES  # no segment of the large pool is that small
    return SegmentState(address=address, size=size, stream=stream, small=small)


def _inside(
    segments: Sequence[SegmentState], live: dict[int, _Live]
) -> list[list[tuple[int, _Live]]]:
    """The live blocks of each segment, by address. Blocks in no segment are left out."""
    addresses = sorted(live)
    found = []
    for segment in segments:
        first = bisect_left(addresses, segment.address)
        last = bisect_left(addresses, segment.address + segment.size)
        found.append([(address, live[address]) for address in addresses[first:last]])
    return found


def _limits(
    segments: Sequence[SegmentState], inside: Sequence[Sequence[tuple[int, _Live]]], trace: Trace
) -> dict[int, int]:
    """Where each block must end at the latest: the next block, the segment's end, or sooner.

    A free block begins where the live block before it ends. So the first request that is served
    behind a block, while that lives, tells the block's end.
    """
    limits: dict[int, int] = {}
    for segment, blocks in zip(segments, inside, strict=True):
        for (address, _), behind in zip_longest(blocks, blocks[1:]):
            limits[address] = segment.address + segment.size if behind is None else behind[0]
    unknown = {address for blocks in inside for address, block in blocks if block.size is None}
    return limits | _served_behind(trace, limits, unknown)


def _served_behind(trace: Trace, limits: dict[int, int], unknown: set[int]) -> dict[int, int]:
    """The first request served behind each block whose size is unknown, while that lives."""
    starts, found = sorted(limits), {}
    for action, address in zip(trace.actions, trace.addresses, strict=True):
        if not unknown:
            break
        if action == FREE_COMPLETED:
            unknown.discard(address)
        elif action == ALLOC:
            before = starts[bisect_left(starts, address) - 1]
            if before in unknown and before < address < limits[before]:
                found[before] = address
                unknown.discard(before)
    return found


def _tile(segment: SegmentState, inside: Sequence[tuple[int, _Live]], limits: dict[int, int],
          settings: AllocatorSettings) -> SegmentState:  # fmt: skip
    blocks: list[BlockState] = []
    position = segment.address
    end = segment.address + segment.size
    for address, block in inside:
        if address < position:  # overlaps the block before: one of them cannot have been there
            continue
        if address > position:
            blocks.append(BlockState(position, address - position, 0, FREE))
        room = limits[address] - address
        size = block.size or _size_of(block.requested, room, segment, settings)
        blocks.append(BlockState(address, size, block.requested, block.state))
        position = address + size
    if position < end:
        blocks.append(BlockState(position, end - position, 0, FREE))
    return SegmentState(
        address=segment.address,
        size=segment.size,
        stream=segment.stream,
        small=segment.small,
        expandable=segment.expandable,
        blocks=tuple(blocks),
    )


def _size_of(requested: int, room: int, segment: SegmentState, settings: AllocatorSettings) -> int:
    """A block's size by the rules: what would be too small to be split off belongs to it."""
    size = round_request(requested, settings.roundup_power2_divisions)
    if size > room:
        return room
    if segment.small or segment.expandable or settings.expandable_segments:
        return size
    unsplit = size >= (settings.max_split_bytes or room + 1)
    return room if unsplit or room - size <= SMALL_BYTES else size
