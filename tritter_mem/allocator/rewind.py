"""The state at the beginning of a recording: its end, with every event undone.

A recording may begin with segments already there, and PyTorch keeps only so many events. What it
does not say of the beginning follows from the rules: a block's size from the bytes asked for, and a
gap behind it that is too small to have been split off belongs to it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from tritter_mem.allocator.blocks import ALLOCATED, FREE, WAITING, State, Stream
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
    filled = _filled(rewind.all_segments(), rewind.live, snapshot.settings)
    return filled, rewind.warnings()


class _Rewind:
    """Undoes a history, from the end to the beginning."""

    def __init__(self, snapshot: DeviceSnapshot) -> None:
        plain = [s for s in snapshot.segments if not s.expandable]
        self.segments = {segment.address: segment for segment in plain}
        self.ranges = _Ranges(s for s in snapshot.segments if s.expandable)
        self.live = {
            block.address: _Live(block.requested, block.size, block.state)
            for segment in snapshot.segments
            for block in segment.blocks
            if block.state is not FREE
        }
        self.completes = FREE_COMPLETED in snapshot.trace.actions
        self.lost_blocks = self.lost_segments = 0

    def run(self, trace: Trace) -> None:
        live, addresses, sizes = self.live, trace.addresses, trace.sizes
        for event in range(len(trace) - 1, -1, -1):
            action, address = trace.actions[event], addresses[event]
            if action == ALLOC:
                self.lost_blocks += live.pop(address, None) is None
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
            self.segments[address] = _bare(address, size, stream, size == SMALL_SEGMENT_BYTES)
        elif action == SEGMENT_MAP:
            self.lost_segments += not self.ranges.remove(address, size)
        elif action == SEGMENT_UNMAP:
            self.ranges.add(address, size, stream)

    def all_segments(self) -> list[SegmentState]:
        found = (*self.segments.values(), *self.ranges)
        return sorted(found, key=lambda segment: segment.address)

    def warnings(self) -> list[str]:
        found = []
        if self.lost_blocks:
            found.append(
                f"{self.lost_blocks:,} allocations are neither freed in the history nor there at "
                "its end"
            )
        if self.lost_segments:
            found.append(
                f"{self.lost_segments:,} segments are neither released in the history nor there "
                "at its end"
            )
        return found


def _bare(address: int, size: int, stream: Stream, small: bool,
          expandable: bool = False) -> SegmentState:  # fmt: skip
    return SegmentState(
        address=address, size=size, stream=stream, small=small, expandable=expandable
    )


class _Ranges:
    """Mapped ranges of expandable segments, sorted; neighbours of one pool are one range."""

    def __init__(self, segments: Iterable[SegmentState]) -> None:
        self._ranges = sorted(segments, key=_address)

    def __iter__(self) -> Iterator[SegmentState]:
        return iter(self._ranges)

    def remove(self, address: int, size: int) -> bool:
        """Take pages out; whether they were there."""
        at = bisect_right(self._ranges, address, key=_address) - 1
        found = self._ranges[at] if at >= 0 else None
        if found is None or address + size > found.address + found.size:
            return False
        before = address - found.address
        after = found.address + found.size - (address + size)
        kept = [(found.address, before), (address + size, after)]
        self._ranges[at : at + 1] = [
            _bare(start, length, found.stream, found.small, expandable=True)
            for start, length in kept
            if length
        ]
        return True

    def add(self, address: int, size: int, stream: Stream) -> None:
        """Put pages back."""
        small = self._pool_beside(address, size, stream)
        new = _bare(address, size, stream, small, expandable=True)
        insort(self._ranges, new, key=_address)
        at = self._ranges.index(new)
        for i in (at, at - 1):
            if i >= 0:
                self._join(i)

    def _join(self, at: int) -> None:
        pair = self._ranges[at : at + 2]
        if len(pair) == 2 and _touch(*pair):
            first, second = pair
            size = first.size + second.size
            joined = _bare(first.address, size, first.stream, first.small, expandable=True)
            self._ranges[at : at + 2] = [joined]

    def _pool_beside(self, address: int, size: int, stream: Stream) -> bool:
        """Events do not say which pool pages are of: take that of the nearest range."""
        own = [r for r in self._ranges if r.stream == stream]
        nearest = min(own, key=lambda r: abs(r.address - address), default=None)
        return size < 10 * SMALL_SEGMENT_BYTES if nearest is None else nearest.small


def _address(segment: SegmentState) -> int:
    return segment.address


def _touch(first: SegmentState, second: SegmentState) -> bool:
    beside = first.address + first.size == second.address
    return beside and (first.stream, first.small) == (second.stream, second.small)


def _filled(
    segments: Sequence[SegmentState], live: dict[int, _Live], settings: AllocatorSettings
) -> list[SegmentState]:
    """Put live blocks into their segments. Blocks in no segment are left out."""
    addresses = sorted(live)
    filled = []
    for segment in segments:
        first = bisect_right(addresses, segment.address - 1)
        last = bisect_right(addresses, segment.address + segment.size - 1)
        inside = [(a, live[a]) for a in addresses[first:last]]
        filled.append(_tile(segment, inside, settings))
    return filled


def _tile(segment: SegmentState, inside: Sequence[tuple[int, _Live]],
          settings: AllocatorSettings) -> SegmentState:  # fmt: skip
    blocks: list[BlockState] = []
    position = segment.address
    end = segment.address + segment.size
    for (address, block), behind in zip_longest(inside, inside[1:]):
        limit = end if behind is None else behind[0]
        if address < position:  # overlaps the block before: one of them cannot have been there
            continue
        if address > position:
            blocks.append(BlockState(position, address - position, 0, FREE))
        size = block.size or _size_of(block.requested, limit - address, segment, settings)
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
    unsplit = size >= (settings.max_split_bytes or room + 1)
    splits_finely = segment.small or segment.expandable or settings.expandable_segments
    if unsplit or size > room or (room - size <= SMALL_BYTES and not splits_finely):
        return room
    return size
