"""Which addresses new segments get."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Literal, Protocol

from tritter_mem.allocator.rules import round_up
from tritter_mem.results.segments import Stream
from tritter_mem.units import MiB

SegmentAction = Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]

TOP_ADDRESS = 0x7F00_0000_0000
"""Regions lie below it."""
ALIGNMENT = 2 * MiB
REGION_BYTES = 32 * MiB
# Free ranges are kept by length in steps of ALIGNMENT; the last list has those of a region or more.
_LONGEST = REGION_BYTES // ALIGNMENT


class Addresses(Protocol):
    """Gives addresses to segments, and to the reservations of expandable ones."""

    def reserve(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The address of a new segment (`segment_alloc`) or reservation (`segment_map`)."""

    def release(self, address: int, size: int) -> None:
        """Take back what a segment or reservation had."""


class AscendingAddresses:
    """Ascending addresses, none of which is given twice."""

    def __init__(self, first: int = TOP_ADDRESS) -> None:
        self._next = first

    def reserve(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The next address, aligned as `cudaMalloc` aligns large blocks."""
        address = self._next
        self._next += round_up(size, ALIGNMENT)
        return address

    def release(self, address: int, size: int) -> None:
        """Nothing: no address is given again."""


class DriverAddresses:
    """Addresses as NVIDIA's driver gives them; how that was found: docs/allocator.md.

    The driver reserves regions of whole 32 MiB, from high addresses to low ones. A segment gets the
    lowest free range of a region that is long enough; a new region, the highest free addresses that
    are enough, where there is no such range. A region that is free as a whole is given up.

    Args:
        top: the end of the first region; a multiple of 32 MiB. Where the addresses below it are
            used up, regions ascend from it.
    """

    def __init__(self, top: int = TOP_ADDRESS) -> None:
        self._regions: list[int] = []  # where they begin, ascending
        self._region_end: dict[int, int] = {}
        self._gaps = [(0, top)]  # between regions, ascending
        self._beyond = top
        self._free: list[list[int]] = [[] for _ in range(_LONGEST + 1)]
        self._free_end: dict[int, int] = {}  # of each free range in a region
        self._free_start: dict[int, int] = {}

    def reserve(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The address of a new segment; a reservation always gets a new region."""
        size = round_up(size, ALIGNMENT)
        address = None if action == "segment_map" else self._lowest_free(size)
        if address is None:
            address, end = self._new_region(round_up(size, REGION_BYTES))
        else:
            end = self._remove(address)
        if address + size < end:
            self._add(address + size, end)
        return address

    def release(self, address: int, size: int) -> None:
        """Free a segment's range, and its region where nothing else is in it.

        A segment that was there before the first was reserved lies in no region: nothing happens.
        """
        at = bisect_right(self._regions, address) - 1
        start = self._regions[at] if at >= 0 else 0
        end = self._region_end.get(start, 0)
        if address >= end:
            return
        first, last = address, address + round_up(size, ALIGNMENT)
        if first > start and first in self._free_start:
            first = self._free_start[first]
            self._remove(first)
        if last < end and last in self._free_end:
            last = self._remove(last)
        if (first, last) == (start, end):
            self._give_up(start, end)
        else:
            self._add(first, last)

    def _lowest_free(self, size: int) -> int | None:
        """Where the lowest free range of a region begins that has room."""
        found = [starts[0] for starts in self._free[size // ALIGNMENT : _LONGEST] if starts]
        for start in self._free[_LONGEST]:
            if self._free_end[start] - start >= size:
                found.append(start)
                break
        return min(found, default=None)

    def _add(self, start: int, end: int) -> None:
        insort(self._like(start, end), start)
        self._free_end[start], self._free_start[end] = end, start

    def _remove(self, start: int) -> int:
        """Remove a free range; returns its end."""
        end = self._free_end.pop(start)
        del self._free_start[end]
        starts = self._like(start, end)
        del starts[bisect_left(starts, start)]
        return end

    def _like(self, start: int, end: int) -> list[int]:
        """Where the free ranges begin that are about as long as this one."""
        return self._free[min((end - start) // ALIGNMENT, _LONGEST)]

    def _new_region(self, size: int) -> tuple[int, int]:
        """Reserve a region; returns its start and end."""
        for at in reversed(range(len(self._gaps))):
            first, end = self._gaps[at]
            if end - first >= size:
                self._gaps[at] = first, end - size  # which may be empty
                break
        else:
            end = self._beyond = self._beyond + size
        insort(self._regions, end - size)
        self._region_end[end - size] = end
        return end - size, end

    def _give_up(self, start: int, end: int) -> None:
        """Leave the addresses of a region to others."""
        self._regions.remove(start)
        del self._region_end[start]
        at = bisect_left(self._gaps, (start, end))
        if at < len(self._gaps) and self._gaps[at][0] == end:
            end = self._gaps.pop(at)[1]
        if at and self._gaps[at - 1][1] == start:
            at -= 1
            start = self._gaps.pop(at)[0]
        self._gaps.insert(at, (start, end))
