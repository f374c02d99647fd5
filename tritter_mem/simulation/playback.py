"""A recorded run, played through the simulated allocator."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.results.run import Fragmentation, OutOfMemory, Segment, SegmentBlock
from tritter_mem.results.segments import PrivateStream, Stream
from tritter_mem.simulation.events import Event, EventLog
from tritter_model.labels import GRAPH_POOL, SIDE_STREAM

_STREAMS: dict[str, Stream] = {"": 0, SIDE_STREAM: 1, GRAPH_POOL: PrivateStream(1, (1, 0))}


class Places:
    """Gives each place its stream, and does what PyTorch does where a capture begins.

    Before it captures, `torch.cuda.graph` gives the cache back to the driver: segments that are one
    free block go (torch/cuda/graphs.py). Those of a private pool never do, as long as it lives.

    Args:
        allocator: what the allocations are to be served by.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        self._allocator, self._capturing = allocator, False

    def stream(self, place: str) -> Stream:
        """The stream to ask for, in front of an allocation from a place."""
        begins = place == GRAPH_POOL and not self._capturing
        self._capturing = place == GRAPH_POOL
        if begins:
            self._allocator.empty_cache()
        return _STREAMS[place]


@dataclass(frozen=True)
class Played:
    """What came of a run.

    Attributes:
        log: the run, each storage with the bytes of the block that it got.
        reserved_peak_bytes: of each phase by name, and of the whole run under the empty name.
        reserved: (event number, reserved bytes) wherever reserved changed.
        fragmentation: at the reserved peak.
        releases: how often the cache was given back to the driver to serve a request.
    """

    log: EventLog
    reserved_peak_bytes: dict[str, int]
    reserved: list[tuple[int, int]]
    fragmentation: Fragmentation
    releases: int = 0


@dataclass(frozen=True)
class Limit:
    """What PyTorch may reserve of a device.

    Attributes:
        capacity_bytes: the card's memory, or a cap on it.
        context_bytes: the part of it that the CUDA context takes.
    """

    capacity_bytes: int
    context_bytes: int

    def allocator(self, settings: AllocatorSettings) -> CachingAllocator:
        """An allocator that keeps to it."""
        return CachingAllocator(settings, self.capacity_bytes, self.context_bytes)


def play(log: EventLog, settings: AllocatorSettings, limit: Limit | None = None) -> Played:
    """Play a run through an allocator.

    Args:
        log: the run.
        settings: of the allocator.
        limit: what it may reserve; None: as much as it asks for.

    Raises:
        OutOfMemoryError: the limit does not suffice, even with the cache released.
    """
    allocator = CachingAllocator(settings) if limit is None else limit.allocator(settings)
    player = _Player(log, allocator)
    peaks: dict[str, int] = {}
    for name, start, end in _stretches(log):
        allocator.lap()
        player.run(start, end)
        peaks[name] = max(peaks.get(name, 0), allocator.lap().reserved_peak_bytes)
    return Played(
        log=log.with_storage_bytes(player.block_bytes),
        reserved_peak_bytes={**peaks, "": allocator.counters.reserved.peak},
        reserved=player.reserved,
        fragmentation=allocator.peak_moment.fragmentation,
        releases=allocator.counters.num_alloc_retries,
    )


def segments_at(
    log: EventLog, settings: AllocatorSettings, level: int, limit: Limit | None = None
) -> tuple[Segment, ...]:
    """The allocator's segments, by address, after so many events of a run."""
    allocator = CachingAllocator(settings) if limit is None else limit.allocator(settings)
    player = _Player(log, allocator)
    player.run(0, level)
    components = {block.address: log.category(of) for of, block in player.blocks.items()}
    return tuple(
        Segment(
            size_bytes=segment.size,
            blocks=tuple(
                SegmentBlock(size_bytes=block.size, component=components.get(block.address, ""))
                for block in segment.blocks
            ),
        )
        for segment in allocator.segments()
    )


def surely_fits(played: Played, settings: AllocatorSettings, limit: Limit) -> bool:
    """Whether a run without a limit tells that it fits within one.

    Below its limit the allocator decides as without any, unless it collects garbage, which it does
    by the capacity. Then, and where more was reserved, `find_out_of_memory` tells.

    Args:
        played: the run without a limit.
        settings: of the allocator.
        limit: the card's memory, or a cap on it.
    """
    limited = limit.allocator(settings)
    return not limited.collects_garbage and played.reserved_peak_bytes[""] <= limited.limit_bytes


def find_out_of_memory(
    log: EventLog, settings: AllocatorSettings, limit: Limit
) -> OutOfMemory | None:
    """The request that a card cannot serve, even with the cache released; None where all are.

    Args:
        log: the run.
        settings: of the allocator.
        limit: the card's memory, or a cap on it.
    """
    player = _Player(log, limit.allocator(settings))
    try:
        player.run(0, len(log))
    except OutOfMemoryError as error:
        return _described(log.event(player.at), error)
    return None


def _described(event: Event, error: OutOfMemoryError) -> OutOfMemory:
    return OutOfMemory(
        operator=event.operator,
        module=event.module,
        phase=event.phase,
        requested_bytes=error.requested_bytes,
        allocated_bytes=error.allocated_bytes,
        reserved_bytes=error.reserved_bytes,
        limit_bytes=error.limit_bytes,
    )


def _stretches(log: EventLog) -> Iterator[tuple[str, int, int]]:
    """The phases, and what lies between them under the empty name."""
    position = 0
    for span in log.spans:
        yield "", position, span.start
        yield span.name, span.start, span.end
        position = span.end
    yield "", position, len(log)


class _Player:
    """Plays stretches of a log, in order.

    Attributes:
        at: the event that is being played.
        blocks: of the live storages.
        block_bytes: bytes of the block of each storage.
        reserved: (events played, reserved bytes) wherever reserved changed.
    """

    def __init__(self, log: EventLog, allocator: CachingAllocator) -> None:
        self.at = 0
        self.block_bytes = array("q", bytes(8 * log.storages))
        self.reserved: list[tuple[int, int]] = [(0, 0)]
        self._log, self._allocator = log, allocator
        self._places = Places(allocator)
        self.blocks: dict[int, Block] = {}

    def run(self, start: int, end: int) -> None:
        """Play the events from `start` up to, not including, `end`.

        Raises:
            OutOfMemoryError: the allocator has a capacity and it does not suffice.
        """
        for at in [at for at in self._log.emptied if start < at <= end]:
            self._run(start, at)
            self._allocator.empty_cache()
            self.reserved.append((at, self._allocator.reserved_bytes))
            start = at
        self._run(start, end)

    def _run(self, start: int, end: int) -> None:
        allocator, blocks = self._allocator, self.blocks
        requests, places = self._log.requests(start, end), self._log.places
        for at, (storage, is_alloc, nbytes) in enumerate(requests, start):
            self.at = at
            if is_alloc:
                stream = self._places.stream(places.get(storage, "")) if places else 0
                block = blocks[storage] = allocator.malloc(nbytes, stream)
                self.block_bytes[storage] = block.size
                if allocator.reserved_bytes != self.reserved[-1][1]:
                    self.reserved.append((at + 1, allocator.reserved_bytes))
            else:
                allocator.free(blocks.pop(storage))
