"""Mapped ranges of expandable segments while a history is undone, and where segments begin."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tritter_mem.allocator.blocks import Stream
from tritter_mem.allocator.rules import SMALL_SEGMENT_BYTES, is_small, round_request
from tritter_mem.allocator.segments import SegmentState
from tritter_mem.allocator.trace import SEGMENT_MAP, SEGMENT_UNMAP, Trace

Key = tuple[Stream, bool]  # a stream, and whether the pool is the small one


class _Range(NamedTuple):
    address: int
    size: int
    stream: Stream
    small: bool | None  # None: events do not say which pool pages are of

    @property
    def end(self) -> int:
        return self.address + self.size


class MappedRanges:
    """Contiguous mapped pages, by address."""

    def __init__(self, segments: Iterable[SegmentState], large_page_bytes: int) -> None:
        self._page = large_page_bytes
        self._ranges = sorted(_Range(s.address, s.size, s.stream, s.small) for s in segments)

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
                that events alone tell of is of the pool that serves such requests; one that never
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


class _Reservations:
    """The expandable segments at the beginning, while a history goes on."""

    def __init__(self, segments: Iterable[SegmentState]) -> None:
        self.starts: dict[Key, int] = {}
        self._mapped = Counter[Key]()
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
        """Pages go. A segment without any is given up: what is mapped next begins another."""
        own = [key for key in self.starts if key[0] == stream and self.starts[key] <= address]
        if own:
            key = max(own, key=self.starts.__getitem__)
            self._mapped[key] = max(self._mapped[key] - size, 0)


def reservation_starts(segments: Iterable[SegmentState], trace: Trace) -> dict[Key, int]:
    """The lowest address of each expandable segment that is there at the beginning.

    A snapshot shows mapped ranges only. Where a segment's first pages were unmapped before the
    recording began, pages that are mapped below the others later tell of them.
    """
    found = _Reservations(segments)
    for event, action in enumerate(trace.actions) if found.starts else ():
        if action == SEGMENT_MAP:
            found.map(trace.stream(event), trace.addresses[event], trace.sizes[event])
        elif action == SEGMENT_UNMAP:
            found.unmap(trace.stream(event), trace.addresses[event], trace.sizes[event])
    return found.starts
