"""A recorded history in compact columns, read from the dicts that PyTorch dumps."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tritter_mem.allocator.blocks import PrivateStream, Stream
from tritter_mem.allocator.segments import SegmentState
from tritter_mem.errors import InputError

ALLOC, FREE_REQUESTED, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE = range(5)
SEGMENT_MAP, SEGMENT_UNMAP, OOM = range(5, 8)
ACTIONS = {
    "alloc": ALLOC,
    "free_requested": FREE_REQUESTED,
    "free_completed": FREE_COMPLETED,
    "segment_alloc": SEGMENT_ALLOC,
    "segment_free": SEGMENT_FREE,
    "segment_map": SEGMENT_MAP,
    "segment_unmap": SEGMENT_UNMAP,
    "oom": OOM,
}
IGNORED = {"snapshot", "user_defined"}  # marks, which change no memory
LIMIT = 1 << 63
DEFAULT_POOL = (0, 0)
POOL_KEYS = ("segment_pool_id", "pool_id")


class Trace:
    """Events in the order in which they happened: action, address, bytes and stream of each.

    For an out-of-memory event the address is the free memory that the device reported.
    """

    __slots__ = ("_streams", "actions", "addresses", "sizes", "stream_numbers", "streams")

    def __init__(self) -> None:
        self.actions = bytearray()
        self.addresses = array("q")
        self.sizes = array("q")
        self.stream_numbers = array("i")
        self.streams: list[Stream] = []
        self._streams: dict[Stream, int] = {}

    def __len__(self) -> int:
        return len(self.actions)

    def append(self, action: int, address: int, size: int, stream: Stream) -> None:
        """Add an event."""
        number = self._streams.get(stream)
        if number is None:
            number = self._streams[stream] = len(self.streams)
            self.streams.append(stream)
        self.actions.append(action)
        self.addresses.append(address)
        self.sizes.append(size)
        self.stream_numbers.append(number)

    def stream(self, event: int) -> Stream:
        """The stream of an event."""
        return self.streams[self.stream_numbers[event]]


def read_trace(
    entries: Sequence[Any], where: str, segments: Sequence[SegmentState]
) -> tuple[Trace, tuple[str, ...]]:
    """Turn dumped events into columns; returns them with warnings about unknown ones.

    Args:
        entries: the dicts of one device, oldest first.
        where: what to call the list in an error.
        segments: the segments at the end. Older versions tell an event's private pool by address
            alone.

    Raises:
        InputError: an entry is no event; names it.
    """
    trace, unknown = Trace(), Counter[str]()
    private = _PrivateRanges(segments)
    append, actions = trace.append, ACTIONS
    for index, entry in enumerate(entries):
        try:
            name = entry["action"]
            action = actions.get(name)
            if action is None:
                unknown[repr(name)[:40]] += name not in IGNORED
                continue
            address = entry["device_free" if action == OOM else "addr"]
            size, stream = entry["size"], entry.get("stream", 0)
            if not 0 <= address < LIMIT or not 0 <= size < LIMIT:
                raise ValueError(f"address {address}, size {size}")
            pool = pool_of(entry) or (private and private.pool_at(address))
            append(action, address, size, PrivateStream(stream, pool) if pool else stream)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{where}[{index}]: not an event as PyTorch dumps it: {why(error)}"
            ) from error
    return trace, tuple(
        f"{where}: events of unknown kind {name}, left out: {count:,}"
        for name, count in unknown.items()
        if count
    )


def pool_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    """The private pool that an event or segment belongs to; None for the default pool."""
    for key in POOL_KEYS:
        pool = entry.get(key, DEFAULT_POOL)
        if pool is not DEFAULT_POOL and tuple(pool) != DEFAULT_POOL:
            first, second = pool
            return int(first), int(second)
    return None


class _PrivateRanges:
    """Which addresses belong to a private pool."""

    def __init__(self, segments: Sequence[SegmentState]) -> None:
        own = [s for s in segments if isinstance(s.stream, PrivateStream)]
        self._starts = [segment.address for segment in own]
        self._segments = own

    def __bool__(self) -> bool:
        return bool(self._starts)

    def pool_at(self, address: int) -> tuple[int, int] | None:
        """The pool of the segment that holds an address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        segment = self._segments[at]
        inside = address < segment.address + segment.size
        return segment.stream.pool_id if inside and isinstance(
            segment.stream, PrivateStream) else None  # fmt: skip


def why(error: Exception) -> str:
    """What is wrong with an entry, in a few words that are safe to print."""
    return f"no {error}" if isinstance(error, KeyError) else repr(str(error)[:80])
