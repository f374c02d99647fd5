"""The simulated allocator, driven by the same operations.

When a freed block stops waiting for other streams is not the simulator's to know: what PyTorch does
about events (`insert_events`, `process_events`) is done here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from benchmarks.standin.allocator.operations import (
    CONTEXT_BYTES,
    TOTAL_BYTES,
    Operation,
    Sequence,
)
from benchmarks.standin.allocator.state import Answer, SeenBlock, SeenSegment
from tritter_mem import torch_release
from tritter_mem.allocator.addresses import TOP_ADDRESS, DriverAddresses
from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.results.segments import FREE, PrivateStream, SegmentState, Stream


class SimulatedAllocator:
    """A simulated allocator and the streams that use its blocks."""

    def __init__(self, sequence: Sequence, settings: AllocatorSettings) -> None:
        limited = replace(settings, per_process_memory_fraction=sequence.fraction)
        addresses = DriverAddresses()
        if sequence.held_bytes:
            addresses.reserve("segment_alloc", sequence.held_bytes, 0)
        self.allocator = CachingAllocator(
            limited,
            TOTAL_BYTES,
            CONTEXT_BYTES + sequence.held_bytes,
            addresses=addresses,
        )
        self._blocks: dict[int, Block] = {}
        self._uses: dict[int, set[int]] = {}
        self._recorded, self._finished = Counter[int](), Counter[int]()
        self._waiting: dict[int, dict[int, int]] = {}  # by ticket: the event of each stream
        self._deferred: list[tuple[int, set[int]]] = []
        self._inside: int | None = None

    def do(self, operation: Operation) -> Answer:
        """Do it, and look."""
        result = getattr(self, f"_{operation.what}")(operation)
        return Answer(
            result,
            self.allocator.statistics,
            tuple(_segment(segment) for segment in self.allocator.segments()),
        )

    def _alloc(self, operation: Operation) -> int | str:
        if not self._captures:
            self._process_events()
        stream: Stream = operation.stream
        if self._inside is not None:
            stream = PrivateStream(operation.stream, (0, self._inside))
        try:
            block = self.allocator.malloc(operation.size, stream)
        except OutOfMemoryError:
            return "out of memory"
        self._blocks[operation.slot] = block
        return block.address - TOP_ADDRESS

    def _free(self, operation: Operation) -> None:
        block = self._blocks.pop(operation.slot, None)
        uses = self._uses.pop(operation.slot, set())
        if block is None:
            return
        if not uses:
            self.allocator.free(block)
            return
        ticket = self.allocator.request_free(block)
        if not self._captures:
            self._insert_events(ticket, uses)
        else:
            self._deferred.append((ticket, uses))

    def _record(self, operation: Operation) -> None:
        block = self._blocks.get(operation.slot)
        if block is not None and _stream(block.pool.stream) != operation.stream:
            self._uses.setdefault(operation.slot, set()).add(operation.stream)

    def _finish(self, operation: Operation) -> None:
        self._finished[operation.stream] = self._recorded[operation.stream]

    def _empty(self, operation: Operation) -> None:
        if not self._captures:  # PyTorch releases nothing while a capture is under way
            self.allocator.empty_cache()

    def _enter(self, operation: Operation) -> None:
        if self._inside is None:
            self._inside = operation.slot

    def _leave(self, operation: Operation) -> None:
        self._inside = None

    @property
    def _captures(self) -> bool:
        """Whether PyTorch takes it that a graph is captured: up to 2.12 in any entered pool."""
        return self._inside is not None and torch_release.release() < (2, 13)

    def _insert_events(self, ticket: int, uses: set[int]) -> None:
        self._recorded.update(uses)
        self._waiting[ticket] = {stream: self._recorded[stream] for stream in uses}

    def _process_events(self) -> None:
        for ticket, uses in self._deferred:
            self._insert_events(ticket, uses)
        self._deferred.clear()
        for ticket, events in list(self._waiting.items()):
            if all(number <= self._finished[stream] for stream, number in events.items()):
                self._complete(ticket)

    def _complete(self, ticket: int) -> None:
        del self._waiting[ticket]
        self.allocator.complete_free(ticket)


def _stream(stream: Stream) -> int:
    return stream.stream if isinstance(stream, PrivateStream) else stream


def _segment(segment: SegmentState) -> SeenSegment:
    stream = segment.stream
    return SeenSegment(
        segment.address - TOP_ADDRESS,
        _stream(stream),
        stream.pool_id[1] if isinstance(stream, PrivateStream) else 0,
        segment.small,
        segment.expandable,
        tuple(
            SeenBlock(block.size, 0 if block.state is FREE else block.requested,
                      block.state.name.lower())
            for block in segment.blocks
        ),
    )  # fmt: skip
