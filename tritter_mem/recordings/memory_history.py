"""A recorded history made ready to be replayed: the state at its beginning, and what to do next."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tritter_mem.allocator.blocks import Ties
from tritter_mem.allocator.caching_allocator import Starts
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.snapshot import (
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    NO_STACK,
    OOM,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    DeviceSnapshot,
)
from tritter_mem.recordings.rewind import records_completion, reservation_starts, state_at_start
from tritter_mem.results.allocations import Frame
from tritter_mem.results.replay import Recorded
from tritter_mem.results.segments import FREE, WAITING, SegmentState, Stream

# What a replay does: serve a request, free a block, let a freed block wait and let it go, release
# cached segments, try the request that failed in the recording, map pages that were mapped for a
# request which then got no further, serve one from new memory once the cache was released for it.
DO_ALLOC, DO_FREE, DO_REQUEST, DO_COMPLETE, DO_RELEASE, DO_TRY, DO_MAP, DO_RETRY = range(8)


class NewSegment(NamedTuple):
    """A segment, or pages, that the recording took from the driver for the operation `step`."""

    step: int
    address: int
    size: int
    stream: Stream
    mapped: bool


@dataclass(slots=True)
class Release:
    """Segments, or pages, that the recording gave back in one go.

    Attributes:
        segments: address and bytes of each.
        pages: whether pages of expandable segments are among them.
        complete: whether that was all that could be released, as `empty_cache` does; a replay
            with the recorded settings finds out.
    """

    segments: list[tuple[int, int]]
    pages: bool = False
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFailure:
    """An out-of-memory event: which operation it is, and what the device had left."""

    step: int
    reserved_bytes: int
    device_free_bytes: int


@dataclass(slots=True, kw_only=True)
class History:
    """What to replay on one device.

    Requests are numbered: first the blocks that are live at the beginning, by address, then the
    recorded ones in order. `steps[i]` is what to do, `numbers[i]` with which request (or, for a
    release, with which entry of `releases`, for pages with which of `new_segments`), and
    `events[i]` the recorded event that it stands for. `starts` are the lowest addresses of the
    expandable segments that are there at the beginning. `stack_numbers` says from which of `stacks`
    each request was made, and `labels` what the code called that. Which of several equal blocks was
    taken (`ties`) depends on the release of PyTorch, which no recording names: `verify` finds it.
    """

    device: int
    settings: AllocatorSettings
    start: list[SegmentState]
    starts: Starts
    steps: bytearray
    numbers: array[int]
    events: array[int]
    sizes: array[int]
    addresses: array[int]
    stream_numbers: array[int]
    streams: list[Stream]
    stack_numbers: array[int]
    stacks: Sequence[tuple[Frame, ...]]
    labels: Sequence[str]
    live_at_start: int
    waiting_at_start: list[int]
    new_segments: list[NewSegment]
    releases: list[Release]
    failures: list[RecordedFailure]
    recorded: Recorded
    recorded_events: int
    warnings: list[str]
    ties: Ties = Ties.LOWEST

    def stream(self, number: int) -> Stream:
        """The stream of a request."""
        return self.streams[self.stream_numbers[number]]

    def stack(self, number: int) -> tuple[Frame, ...]:
        """The call stack of a request, outermost first; empty where it is not recorded."""
        return self.stacks[self.stack_numbers[number]]

    def label(self, number: int) -> str:
        """What the code called a request (`user_metadata`); empty where it called it nothing."""
        return self.labels[self.stack_numbers[number]]


def make_history(snapshot: DeviceSnapshot) -> History:
    """Rebuild the state at the beginning, and turn events into steps."""
    start, problems = state_at_start(snapshot)
    builder = _Builder(snapshot, start)
    builder.run()
    return builder.history((*snapshot.warnings, *problems, *builder.warnings()))


class _Builder:
    """Turns events into steps, in order."""

    def __init__(self, snapshot: DeviceSnapshot, start: list[SegmentState]) -> None:
        self._snapshot = snapshot
        self._trace = snapshot.trace
        self._start = start
        self._steps, self._numbers, self._events = bytearray(), array("q"), array("q")
        self._sizes, self._addresses, self._streams = array("q"), array("q"), array("i")
        self._stacks = array("i")
        self._stream_list = list(snapshot.trace.streams)
        self._number_at: dict[int, int] = {}
        self._waiting_at: dict[int, int] = {}
        self._new_segments: list[NewSegment] = []
        self._releases: list[Release] = []
        self._failures: list[RecordedFailure] = []
        self._reserved = self._reserved_peak = sum(segment.size for segment in start)
        self._settled = 0  # new segments up to here were taken for requests that were served
        self._unknown_frees = self._overwritten = 0
        self._completes = records_completion(snapshot)
        self._start_numbers()

    def _start_numbers(self) -> None:
        waiting = []
        for segment in self._start:
            if segment.stream not in self._stream_list:
                self._stream_list.append(segment.stream)
            stream = self._stream_list.index(segment.stream)
            for block in segment.blocks:
                if block.state is FREE:
                    continue
                number = self._request(block.address, block.requested, stream)
                if block.state is WAITING:
                    self._waiting_at[block.address] = number
                    waiting.append(number)
                else:
                    self._number_at[block.address] = number
        self._live_at_start = len(self._sizes)
        self._waiting_at_start = waiting

    def _request(self, address: int, size: int, stream: int, stack: int = NO_STACK) -> int:
        self._sizes.append(size)
        self._addresses.append(address)
        self._streams.append(stream)
        self._stacks.append(stack)
        return len(self._sizes) - 1

    def _step(self, step: int, number: int, event: int) -> None:
        self._steps.append(step)
        self._numbers.append(number)
        self._events.append(event)

    def run(self) -> None:
        """Go through all events once."""
        trace, event = self._trace, 0
        while event < len(trace):
            action = trace.actions[event]
            if action not in (ALLOC, SEGMENT_ALLOC, SEGMENT_MAP):
                self._settle(event)
            if action == ALLOC:
                self._alloc(event)
            elif action == FREE_REQUESTED:
                event += self._free(event)
            elif action == FREE_COMPLETED:
                self._complete(event)
            elif action == OOM:
                self._fail(event)
            elif action in (SEGMENT_ALLOC, SEGMENT_MAP):
                self._take(event, mapped=action == SEGMENT_MAP)
            else:
                event += self._release(event)
            event += 1
        self._name_those_that_stayed()

    def _name_those_that_stayed(self) -> None:
        """What was there at the beginning and at the end has its stack in the segments."""
        for address, number in self._number_at.items():
            if number < self._live_at_start:
                self._stacks[number] = self._snapshot.block_stacks.get(address, NO_STACK)

    def _alloc(self, event: int) -> None:
        trace = self._trace
        address = trace.addresses[event]
        before = self._number_at.get(address)
        if before is not None:  # its free is missing in the history
            self._overwritten += 1
            self._step(DO_FREE, before, event)
        number = self._request(
            address, trace.sizes[event], trace.stream_numbers[event], trace.stack_numbers[event]
        )
        self._number_at[address] = number
        self._step(DO_RETRY if self._in_retry() else DO_ALLOC, number, event)
        self._settled = len(self._new_segments)

    def _in_retry(self) -> bool:
        """Whether a request took new memory right after a release.

        That is the allocator's retry, or `empty_cache` and then a request without a fit. The retry
        does not look again at free blocks, though waiting for streams may have freed one that fits.
        """
        new_memory = self._settled < len(self._new_segments)
        return new_memory and self._steps[-1:] == bytes([DO_RELEASE])

    def _settle(self, event: int) -> None:
        """Pages that were mapped for no request that was served: each gets its own step."""
        for number in range(self._settled, len(self._new_segments)):
            new = self._new_segments[number]
            if new.mapped:
                self._new_segments[number] = new._replace(step=len(self._steps))
                self._step(DO_MAP, number, event)
        self._settled = len(self._new_segments)

    def _free(self, event: int) -> int:
        """A free; returns how many further events belong to it."""
        trace = self._trace
        address = trace.addresses[event]
        at_once = (
            event + 1 < len(trace)
            and trace.actions[event + 1] == FREE_COMPLETED
            and trace.addresses[event + 1] == address
        )
        number = self._number_at.pop(address, None)
        if number is None:
            self._unknown_frees += 1
        elif at_once or not self._completes:
            self._step(DO_FREE, number, event)
        else:
            self._waiting_at[address] = number
            self._step(DO_REQUEST, number, event)
        return int(at_once)

    def _complete(self, event: int) -> None:
        address = self._trace.addresses[event]
        if (number := self._waiting_at.pop(address, None)) is not None:
            self._step(DO_COMPLETE, number, event)
        elif (number := self._number_at.pop(address, None)) is not None:
            self._step(DO_FREE, number, event)
        else:
            self._unknown_frees += 1

    def _take(self, event: int, *, mapped: bool) -> None:
        trace = self._trace
        size = trace.sizes[event]
        self._new_segments.append(
            NewSegment(len(self._steps), trace.addresses[event], size, trace.stream(event), mapped)
        )
        self._reserved += size
        self._reserved_peak = max(self._reserved_peak, self._reserved)

    def _release(self, event: int) -> int:
        """A run of released segments; returns how many further events belong to it."""
        trace = self._trace
        release = Release([])
        first = event
        while event < len(trace) and trace.actions[event] in (SEGMENT_FREE, SEGMENT_UNMAP):
            release.segments.append((trace.addresses[event], trace.sizes[event]))
            release.pages |= trace.actions[event] == SEGMENT_UNMAP
            self._reserved -= trace.sizes[event]
            event += 1
        self._releases.append(release)
        self._step(DO_RELEASE, len(self._releases) - 1, first)
        return event - first - 1

    def _fail(self, event: int) -> None:
        trace = self._trace
        self._failures.append(
            RecordedFailure(
                step=len(self._steps),
                reserved_bytes=self._reserved,
                device_free_bytes=trace.addresses[event],
            )
        )
        number = self._request(
            -1, trace.sizes[event], trace.stream_numbers[event], trace.stack_numbers[event]
        )
        self._step(DO_TRY, number, event)

    def warnings(self) -> list[str]:
        found = []
        if self._unknown_frees:
            found.append(
                f"frees of memory that was never allocated, ignored: {self._unknown_frees:,}"
            )
        if self._overwritten:
            found.append(
                "allocations at the address of an allocated block, whose missing free was added: "
                f"{self._overwritten:,}"
            )
        return found

    def history(self, warnings: Sequence[str]) -> History:
        recorded = Recorded(
            reserved_start_bytes=sum(segment.size for segment in self._start),
            reserved_peak_bytes=self._reserved_peak,
            reserved_end_bytes=self._reserved,
            allocations=self._trace.actions.count(ALLOC),
            segment_allocations=len(self._new_segments),
            segment_releases=sum(len(release.segments) for release in self._releases),
        )
        return History(
            device=self._snapshot.device,
            settings=self._snapshot.settings,
            start=self._start,
            starts=reservation_starts(self._start, self._trace),
            steps=self._steps,
            numbers=self._numbers,
            events=self._events,
            sizes=self._sizes,
            addresses=self._addresses,
            stream_numbers=self._streams,
            streams=self._stream_list,
            stack_numbers=self._stacks,
            stacks=self._snapshot.stacks,
            labels=self._snapshot.labels,
            live_at_start=self._live_at_start,
            waiting_at_start=self._waiting_at_start,
            new_segments=self._new_segments,
            releases=self._releases,
            failures=self._failures,
            recorded=recorded,
            recorded_events=len(self._trace),
            warnings=list(warnings),
        )
