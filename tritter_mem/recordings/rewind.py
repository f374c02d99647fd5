"""The state at the beginning of a recording: its end, with every event undone.

A recording may begin with segments already there, and PyTorch keeps only so many events. What it
does not say of the beginning follows from the rules: a block's size from the bytes asked for, and a
gap behind it that is too small to have been split off belongs to it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from tritter_mem.allocator.caching_allocator import PoolKey
from tritter_mem.allocator.rules import SMALL_BYTES, SMALL_SEGMENT_BYTES, is_small, round_request
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.snapshot import (
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    OOM,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    DeviceSnapshot,
    Trace,
)
from tritter_mem.results.segments import (
    ALLOCATED,
    FREE,
    WAITING,
    BlockState,
    SegmentState,
    State,
    Stream,
)


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


def _apart(segments: Sequence[SegmentState]) -> tuple[list[SegmentState], int]:
    """Segments, by address, without those that begin inside of another one; and how many did.

    No allocator has such. A history does that was damaged, or whose beginning is missing.
    """
    kept: list[SegmentState] = []
    for segment in segments:
        if not kept or kept[-1].address + kept[-1].size <= segment.address:
            kept.append(segment)
    return kept, len(segments) - len(kept)


def records_completion(snapshot: DeviceSnapshot) -> bool:
    """Whether frees have two events; a recording may skip one kind of them."""
    waiting = any(block.state is WAITING for s in snapshot.segments for block in s.blocks)
    return waiting or FREE_COMPLETED in snapshot.trace.actions


# Events undone


class _Live(NamedTuple):
    requested: int
    size: int | None  # None: follows from the rules
    state: State


class _Rewind:
    """Undoes a history, from the end to the beginning."""

    def __init__(self, snapshot: DeviceSnapshot) -> None:
        segments, self.overlapping = _apart(snapshot.segments)
        self.segments = {segment.address: segment for segment in segments if not segment.expandable}
        page = snapshot.settings.large_segment_bytes
        self.ranges = _MappedRanges((s for s in segments if s.expandable), page)
        self.live = {
            block.address: _Live(block.requested, block.size, block.state)
            for segment in segments
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
        kept, overlapping = _apart(sorted(found, key=lambda segment: segment.address))
        self.overlapping += overlapping
        return kept

    def warnings(self) -> list[str]:
        found = []
        if self.lost_blocks:
            found.append(
                "allocations neither freed in the history nor allocated at its end: "
                f"{self.lost_blocks:,}"
            )
        if self.lost_segments:
            found.append(
                "segments neither released in the history nor there at its end: "
                f"{self.lost_segments:,}"
            )
        if self.overlapping:
            found.append(f"segments that overlap another one, ignored: {self.overlapping:,}")
        return found


def _released(address: int, size: int, stream: Stream) -> SegmentState:
    small = size == SMALL_SEGMENT_BYTES  # no segment of the large pool is that small
    return SegmentState(address=address, size=size, stream=stream, small=small)


# Segments tiled with blocks


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
    behind a block, while that lives, shows the block's end.
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


# Mapped pages of expandable segments


class _Range(NamedTuple):
    address: int
    size: int
    stream: Stream
    small: bool | None  # None: events do not say which pool pages are of

    @property
    def end(self) -> int:
        return self.address + self.size


class _MappedRanges:
    """Contiguous mapped pages, by address."""

    def __init__(self, segments: Iterable[SegmentState], large_page_bytes: int) -> None:
        """Begin with the pages of segments that are given by address."""
        self._page = large_page_bytes
        self._ranges = [_Range(s.address, s.size, s.stream, s.small) for s in segments]

    def remove(self, address: int, size: int) -> bool:
        """Take pages out; whether they were there."""
        at = bisect_right(self._ranges, address, key=_address) - 1
        if at < 0 or address + size > self._ranges[at].end:
            return False
        found = self._ranges[at]
        before = found._replace(size=address - found.address)
        after = found._replace(address=address + size, size=found.end - (address + size))
        self._ranges[at : at + 1] = [part for part in (before, after) if part.size]
        return True

    def add(self, address: int, size: int, stream: Stream) -> None:
        """Put pages back; they become one with the pages beside them."""
        insort(self._ranges, _Range(address, size, stream, None), key=_address)
        at = bisect_left(self._ranges, address, key=_address)
        self._join(at)
        if at:
            self._join(at - 1)

    def _join(self, at: int) -> None:
        pair = self._ranges[at : at + 2]
        if len(pair) < 2:
            return
        first, second = pair
        if first.end == second.address and first.stream == second.stream:
            small = second.small if first.small is None else first.small
            size = first.size + second.size
            self._ranges[at : at + 2] = [_Range(first.address, size, first.stream, small)]

    def segments(self, requested: Mapping[int, int]) -> list[SegmentState]:
        """The ranges as segments without blocks.

        Args:
            requested: the bytes asked for of blocks that were ever served, by address. A range
                that only events mention is of the pool that serves such requests; one that never
                served any is of the large pool where it is whole large pages.
        """
        if not self._ranges:
            return []
        addresses = sorted(requested)
        known = [_with_pool(found, addresses, requested) for found in self._ranges]
        return [
            SegmentState(
                address=found.address,
                size=found.size,
                stream=found.stream,
                small=found.size % self._page != 0 if found.small is None else found.small,
                expandable=True,
            )
            for found in known
        ]


def _with_pool(found: _Range, addresses: list[int], requested: Mapping[int, int]) -> _Range:
    at = bisect_left(addresses, found.address)
    if found.small is not None or at == len(addresses) or addresses[at] >= found.end:
        return found
    return found._replace(small=is_small(round_request(requested[addresses[at]])))


def _address(found: _Range) -> int:
    return found.address


# Where expandable segments begin


def reservation_starts(segments: Iterable[SegmentState], trace: Trace) -> dict[PoolKey, int]:
    """The lowest address of each expandable segment that is there at the beginning.

    A snapshot shows mapped ranges only. Where a segment's first pages were unmapped before the
    recording began, pages that are mapped below the others later show where it starts.
    """
    found = _Reservations(segments)
    for event, action in enumerate(trace.actions) if found.starts else ():
        if action == SEGMENT_MAP:
            found.map(trace.stream(event), trace.addresses[event], trace.sizes[event])
        elif action == SEGMENT_UNMAP:
            found.unmap(trace.stream(event), trace.addresses[event], trace.sizes[event])
    return found.starts


class _Reservations:
    """The expandable segments at the beginning, while a history goes on."""

    def __init__(self, segments: Iterable[SegmentState]) -> None:
        self.starts: dict[PoolKey, int] = {}
        self._mapped = Counter[PoolKey]()
        for segment in segments:
            if segment.expandable:
                key = segment.stream, segment.small
                self.starts[key] = min(segment.address, self.starts.get(key, segment.address))
                self._mapped[key] += segment.size

    def map(self, stream: Stream, address: int, size: int) -> None:
        """Pages come: they may be the lowest ones."""
        # The small pool maps one page at a time, and no large page is that small.
        key = stream, size == SMALL_SEGMENT_BYTES
        if self._mapped[key]:
            self.starts[key] = min(self.starts[key], address)
            self._mapped[key] += size

    def unmap(self, stream: Stream, address: int, size: int) -> None:
        """Pages go. After its last page a segment ends: what is mapped next begins another."""
        own = [key for key in self.starts if key[0] == stream and self.starts[key] <= address]
        if own:
            key = max(own, key=self.starts.__getitem__)
            self._mapped[key] = max(self._mapped[key] - size, 0)
