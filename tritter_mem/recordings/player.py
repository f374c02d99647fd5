"""Playing a history on a simulated allocator."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable

from tritter_mem.allocator.addresses import (
    ALIGNMENT,
    TOP_ADDRESS,
    AscendingAddresses,
    SegmentAction,
)
from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import Action, CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.rules import round_up
from tritter_mem.recordings.memory_history import (
    DO_ALLOC,
    DO_COMPLETE,
    DO_FREE,
    DO_MAP,
    DO_RELEASE,
    DO_REQUEST,
    DO_RETRY,
    DO_TRY,
    History,
    NewSegment,
    Release,
)
from tritter_mem.results.segments import Stream
from tritter_mem.units import TiB

Progress = Callable[[int], None]  # called with how many steps are done since the last call
STEPS_A_CALL = 4096
SERVING = (DO_ALLOC, DO_RETRY, DO_TRY)


class HistoryPlayer:
    """One history on one allocator.

    Attributes:
        blocks: live blocks by the number of their request.
        failed_step: the step that ran out of memory; -1: the beginning; None: none did.
    """

    def __init__(self, history: History, allocator: CachingAllocator) -> None:
        self.history = history
        self.allocator = allocator
        self.blocks: dict[int, Block] = {}
        self.failed_step: int | None = None
        self._tickets: dict[int, int] = {}
        self._as_recorded = False

    def start_recorded(self) -> None:
        """Begin with the recorded segments.

        Raises:
            OutOfMemoryError: they are more than the capacity, even with the cache released.
        """
        self._as_recorded = True
        allocator, addresses = self.allocator, self.history.addresses
        found = allocator.load(self.history.start, self.history.starts)
        tickets = {block.address: ticket for ticket, block in allocator.waiting.items()}
        waiting = set(self.history.waiting_at_start)
        for number in range(self.history.live_at_start):
            if number in waiting:
                self._tickets[number] = tickets[addresses[number]]
            else:
                self.blocks[number] = found[addresses[number]]
        self._refuse_too_large()

    def _refuse_too_large(self) -> None:
        allocator = self.allocator
        if allocator.reserved_bytes > allocator.limit_bytes:
            allocator.empty_cache()
        if allocator.reserved_bytes > allocator.limit_bytes:
            self.failed_step = -1
            raise allocator.out_of_memory(0, 0)

    def start_fresh(self) -> None:
        """Begin with an empty cache: the blocks live at the beginning, allocated by address.

        Raises:
            OutOfMemoryError: they are more than the capacity.
        """
        history = self.history
        try:
            for number in range(history.live_at_start):
                stream = history.stream(number)
                self.blocks[number] = self.allocator.malloc(history.sizes[number], stream)
        except OutOfMemoryError:
            self.failed_step = -1
            raise
        for number in history.waiting_at_start:
            self._tickets[number] = self.allocator.request_free(self.blocks.pop(number))

    def play(self, first: int, last: int) -> None:
        """Do the steps from number `first` up to, not including, number `last`.

        Raises:
            OutOfMemoryError: a request could not be served; `failed_step` says which.
        """
        history, blocks = self.history, self.blocks
        malloc, free = self.allocator.malloc, self.allocator.free
        sizes, streams, of = history.sizes, history.streams, history.stream_numbers
        number = -1
        try:
            for step, number in zip(
                history.steps[first:last], history.numbers[first:last], strict=True
            ):
                if step == DO_ALLOC:
                    blocks[number] = malloc(sizes[number], streams[of[number]])
                elif step == DO_FREE:
                    free(blocks.pop(number))
                else:
                    self.play_rare(step, number)
        except OutOfMemoryError:
            self.failed_step = self._step_of(number, first)
            raise

    def play_rare(self, step: int, number: int) -> None:
        """Do a step that is neither DO_ALLOC nor DO_FREE."""
        if step == DO_REQUEST:
            self._tickets[number] = self.allocator.request_free(self.blocks.pop(number))
        elif step == DO_COMPLETE:
            self.allocator.complete_free(self._tickets.pop(number))
        elif step == DO_RETRY:
            self.blocks[number] = self._serve_again(number)
        elif step == DO_TRY:
            history = self.history
            self.allocator.free(
                self.allocator.malloc(history.sizes[number], history.stream(number))
            )
        elif step == DO_RELEASE:
            self._release(self.history.releases[number])
        elif step == DO_MAP and self._as_recorded:
            new = self.history.new_segments[number]
            self.allocator.map_at(new.stream, new.address, new.size)

    def try_until(self, step: int, allocated_bytes: int) -> bool:
        """Do a step; whether it stopped inside, where live blocks have this sum.

        A request that failed in the recording can be served under other settings; its block is
        freed in the same step.
        """
        if self.history.steps[step] != DO_TRY:
            self.play(step, step + 1)
            return False
        number = self.history.numbers[step]
        block = self.allocator.malloc(self.history.sizes[number], self.history.stream(number))
        if self.allocator.allocated_bytes == allocated_bytes:
            self.blocks[number] = block
            return True
        self.allocator.free(block)
        return False

    def _serve_again(self, number: int) -> Block:
        """Without cached blocks only as recorded: other settings may have one that fits."""
        history = self.history
        return self.allocator.malloc(
            history.sizes[number], history.stream(number), new_memory=self._as_recorded
        )

    def _release(self, release: Release) -> None:
        """Empty the cache where the recording did; a part goes only under the recorded settings."""
        if release.complete:
            self.allocator.empty_cache()
        elif self._as_recorded:
            for address, _ in release.segments:
                self.allocator.release_at(address)

    def _step_of(self, number: int, first: int) -> int:
        """The first step from `first` on that serves a request."""
        history = self.history
        return next(
            step
            for step in range(first, len(history.steps))
            if history.numbers[step] == number and history.steps[step] in SERVING
        )


class RecordedAddresses:
    """Gives new segments the addresses that the recording gave segments of the same size.

    Where all are used, or another segment lies there now, it gives ascending ones beyond all that
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

    def reserve(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The next recorded address that is free, of a segment alike."""
        # A reservation is larger than the pages that were recorded: only their address counts.
        wanted = 0 if action == "segment_map" else size
        left = self._free.get((action, wanted, stream), [])
        while left:
            address = left.pop()
            if not self._overlaps(address, max(wanted, 1)):
                break
        else:
            address = self._beyond.reserve(action, size, stream)
        self._insert(address, wanted)
        return address

    def release(self, address: int, size: int) -> None:
        """Forget what began there."""
        if self._sizes.pop(address, None) is not None:
            del self._starts[bisect_left(self._starts, address)]

    def observe(self, action: Action, address: int, size: int, stream: Stream) -> None:
        """Keep track of the pages that are mapped."""
        if action == "segment_map":
            self._insert(address, size)

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


def ascending_beyond(history: History) -> AscendingAddresses:
    """Ascending addresses above all that were recorded."""
    ends = [segment.address + segment.size for segment in history.start]
    ends += [new.address + new.size for new in history.new_segments]
    return AscendingAddresses(round_up(max((TOP_ADDRESS, *ends)) + TiB, ALIGNMENT))
