"""Writing a simulated run as PyTorch writes a recorded one, so that its memory viewer opens it."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritter_mem.allocator.blocks import ALLOCATED, FREE, WAITING, Block, PrivateStream, Stream
from tritter_mem.allocator.rules import round_request
from tritter_mem.allocator.segments import BlockState, SegmentState
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.simulator import Action, CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.trace import (
    ACTIONS,
    ALLOC,
    DEFAULT_POOL,
    FREE_COMPLETED,
    FREE_REQUESTED,
    OOM,
    Trace,
)
from tritter_mem.errors import OutputError

# The viewer refuses protocol 5, and cuts off what lies beyond so many events.
PROTOCOL = 4
MAX_VIEWER_EVENTS = 600_000

_NAMES = {code: name for name, code in ACTIONS.items()}
_STATES = {ALLOCATED: "active_allocated", WAITING: "active_awaiting_free", FREE: "inactive"}


class Recorder:
    """An allocator whose history is kept, as `_record_memory_history` keeps it.

    Args:
        allocator: the allocator to record; its observer is replaced.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.trace = Trace()
        allocator.observer = self._observe

    def malloc(self, size_bytes: int, stream: Stream = 0) -> Block:
        """As `CachingAllocator.malloc`.

        Raises:
            OutOfMemoryError: as there; the event is recorded.
        """
        try:
            block = self.allocator.malloc(size_bytes, stream)
        except OutOfMemoryError as error:
            size = round_request(size_bytes, self.allocator.settings.roundup_power2_divisions)
            self.trace.append(OOM, error.limit_bytes - error.reserved_bytes, size, stream)
            raise
        self.trace.append(ALLOC, block.address, size_bytes, stream)
        return block

    def free(self, block: Block) -> None:
        """As `CachingAllocator.free`."""
        address, requested, stream = block.address, block.requested, block.pool.stream
        self.allocator.free(block)
        self.trace.append(FREE_REQUESTED, address, requested, stream)
        self.trace.append(FREE_COMPLETED, address, requested, stream)

    def request_free(self, block: Block) -> int:
        """As `CachingAllocator.request_free`."""
        self.trace.append(FREE_REQUESTED, block.address, block.requested, block.pool.stream)
        return self.allocator.request_free(block)

    def complete_free(self, ticket: int) -> None:
        """As `CachingAllocator.complete_free`."""
        self.allocator.complete_free(ticket)

    def empty_cache(self) -> None:
        """As `CachingAllocator.empty_cache`."""
        self.allocator.empty_cache()

    def _observe(self, action: Action, address: int, size: int, stream: Stream) -> None:
        self.trace.append(ACTIONS[action], address, size, stream)


def snapshot_of(
    recorder: Recorder, device: int = 0, max_events: int = MAX_VIEWER_EVENTS
) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot` returns, for the recorder's allocator.

    Args:
        recorder: the allocator and its history.
        device: number of the device that it stands for.
        max_events: more are thinned: short of anything else, small requests that were freed go.
    """
    allocator = recorder.allocator
    events = _events(recorder.trace, max_events)
    return {
        "segments": [_segment(segment, device) for segment in allocator.segments()],
        "device_traces": [*([] for _ in range(device)), events],
        "allocator_settings": _settings(allocator.settings),
        "external_annotations": [],
    }


def save_snapshot(path: Path, snapshot: dict[str, Any]) -> None:
    """Write a snapshot whole or not at all.

    Raises:
        OutputError: the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            pickle.dump(snapshot, file, protocol=PROTOCOL)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; name a file in a folder that takes files"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _events(trace: Trace, max_events: int) -> list[dict[str, Any]]:
    return [_event(trace, index) for index in _kept(trace, max_events)]


def _kept(trace: Trace, max_events: int) -> Sequence[int]:
    """Which events to keep, in order.

    What is left out are requests that were freed, with both events of their frees, the smallest
    first: so the picture misses small things and shows nothing wrong. If that is not enough, the
    oldest events go, as in PyTorch's own ring buffer.
    """
    surplus = len(trace) - max_events
    if surplus <= 0:
        return range(len(trace))
    lives = sorted(_freed_requests(trace), key=lambda events: (trace.sizes[events[0]], events))
    dropped = {event for events in lives[: -(-surplus // 3)] for event in events}
    return [event for event in range(len(trace)) if event not in dropped][-max_events:]


def _freed_requests(trace: Trace) -> list[tuple[int, int, int]]:
    """The three events of each request that was freed: alloc, free requested, free completed."""
    live: dict[int, list[int]] = {}
    found = []
    for event, (action, address) in enumerate(zip(trace.actions, trace.addresses, strict=True)):
        if action == ALLOC:
            live[address] = [event]
        elif action in (FREE_REQUESTED, FREE_COMPLETED) and address in live:
            live[address].append(event)
            if action == FREE_COMPLETED and len(live[address]) == 3:
                first, second, third = live.pop(address)
                found.append((first, second, third))
    return found


def _event(trace: Trace, index: int) -> dict[str, Any]:
    action, (stream, pool) = trace.actions[index], _stream(trace.stream(index))
    return {
        "action": _NAMES[action],
        "device_free" if action == OOM else "addr": trace.addresses[index],
        "size": trace.sizes[index],
        "stream": stream,
        "time_us": index,
        "segment_pool_id": pool,
        "frames": [],
    }


def _segment(segment: SegmentState, device: int) -> dict[str, Any]:
    stream, pool = _stream(segment.stream)
    active = [block for block in segment.blocks if block.state is not FREE]
    return {
        "device": device,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": segment.allocated_bytes,
        "active_size": sum(block.size for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": stream,
        "segment_type": "small" if segment.small else "large",
        "segment_pool_id": pool,
        "is_expandable": segment.expandable,
        "frames": [],
        "blocks": [_block(block) for block in segment.blocks],
    }


def _block(block: BlockState) -> dict[str, Any]:
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": 0 if block.state is FREE else block.requested,
        "state": _STATES[block.state],
        "frames": [],
    }


def _stream(stream: Stream) -> tuple[int, tuple[int, int]]:
    if isinstance(stream, PrivateStream):
        return stream.stream, stream.pool_id
    return stream, DEFAULT_POOL


def _settings(settings: AllocatorSettings) -> dict[str, Any]:
    steps = settings.roundup_power2_divisions or (0,) * 16
    return {
        "PYTORCH_CUDA_ALLOC_CONF": settings.conf,
        "max_split_size": settings.max_split_bytes or -1,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "expandable_segments": settings.expandable_segments,
        "roundup_power2_divisions": {str(1 << i): count for i, count in enumerate(steps)},
    }
