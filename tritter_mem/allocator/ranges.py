"""Mapped ranges of expandable segments while a history is undone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tritter_mem.allocator.blocks import Stream
from tritter_mem.allocator.rules import is_small, round_request
from tritter_mem.allocator.segments import SegmentState


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
