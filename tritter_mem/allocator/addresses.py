"""Where new segments of a replay lie: where the recording had them, or beyond all of that."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from tritter_mem.allocator.blocks import Stream
from tritter_mem.allocator.history import History, NewSegment
from tritter_mem.allocator.rules import round_up
from tritter_mem.allocator.simulator import (
    ALIGNMENT,
    FIRST_ADDRESS,
    Action,
    Ascending,
    SegmentAction,
)
from tritter_mem.units import TiB


class RecordedAddresses:
    """Gives new segments the addresses that the recording gave segments of the same size.

    Where there is none left, or another segment lies there now, ascending ones beyond all that
    were recorded.
    """

    def __init__(self, history: History) -> None:
        self._free: dict[tuple[SegmentAction, int, Stream], list[int]] = {}
        for new in reversed(history.new_segments):
            self._free.setdefault(_key(new), []).append(new.address)
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        for segment in history.start:
            self._insert(segment.address, segment.size)
        self._beyond = ascending_beyond(history)

    def place(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The next recorded address that is free, of a segment alike."""
        # A reservation is larger than the pages that were recorded: only their address counts.
        wanted = 0 if action == "segment_map" else size
        left = self._free.get((action, wanted, stream), [])
        while left:
            address = left.pop()
            if not self._overlaps(address, max(wanted, 1)):
                return address
        return self._beyond(action, size, stream)

    def observe(self, action: Action, address: int, size: int, stream: Stream) -> None:
        """Keep track of what is where."""
        if action in ("segment_alloc", "segment_map"):
            self._insert(address, size)
        elif action == "segment_free":
            del self._starts[bisect_left(self._starts, address)]
            del self._sizes[address]

    def _insert(self, address: int, size: int) -> None:
        if address not in self._sizes:
            insort(self._starts, address)
        self._sizes[address] = max(size, self._sizes.get(address, 0))

    def _overlaps(self, address: int, size: int) -> bool:
        at = bisect_right(self._starts, address + size - 1) - 1
        if at < 0:
            return False
        start = self._starts[at]
        return start + self._sizes[start] > address


def _key(new: NewSegment) -> tuple[SegmentAction, int, Stream]:
    if new.mapped:
        return ("segment_map", 0, new.stream)
    return ("segment_alloc", new.size, new.stream)


def ascending_beyond(history: History) -> Ascending:
    """Ascending addresses above all that were recorded."""
    ends = [segment.address + segment.size for segment in history.start]
    ends += [new.address + new.size for new in history.new_segments]
    return Ascending(round_up(max((FIRST_ADDRESS, *ends)) + TiB, ALIGNMENT))
