"""PyTorch's memory snapshots: reading one, and writing one of a simulated allocator.

`torch.cuda.memory._dump_snapshot` writes a pickle of dicts, lists, strings and numbers, of PyTorch
2.1 to 2.13. What `snapshot_file` found in one is untrusted: a value's type is checked before the
value is hashed, compared or shown, which for nested tuples of a few bytes can take for ever.
"""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import Action, CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.rules import DIVISION_INTERVALS, round_request
from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.errors import ConfigError, InputError
from tritter_mem.results.allocations import Frame
from tritter_mem.results.segments import (
    ALLOCATED,
    FREE,
    WAITING,
    BlockState,
    PrivateStream,
    SegmentState,
    Stream,
)
from tritter_mem.results.writing import open_atomically
from tritter_mem.text import printable

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
_ACTION_NAMES = {action: name for name, action in ACTIONS.items()}
_IGNORED = {"snapshot", "user_defined", "annotate"}  # they change no memory
_STATES = {
    "active_allocated": ALLOCATED,
    "active_pending_free": WAITING,  # as older versions call it
    "active_awaiting_free": WAITING,
    "inactive": FREE,
}
_STATE_NAMES = {state: name for name, state in _STATES.items()}  # of two names the newer one
_DEFAULT_POOL = (0, 0)
NO_STACK = 0
FRAME_TEXT_LIMIT = 500
_POOL_KEYS = ("segment_pool_id", "pool_id")
_UNNAMED = object()

MAX_DEVICES = 1024
# Beyond what any device has: 57 bits of addresses, 128 TiB of memory. Somebody may have asked for
# more than there is, and so may an out-of-memory event.
MAX_ADDRESS, MAX_BYTES, MAX_ASKED_BYTES = 1 << 57, 1 << 47, 1 << 62
MAX_STREAM = 1 << 64
MAX_WARNINGS = 16
DUMP_HINT = "expected the file that torch.cuda.memory._dump_snapshot wrote"

# The viewer refuses protocol 5, and cuts off what lies beyond so many events.
PROTOCOL = 4
MAX_VIEWER_EVENTS = 600_000


class Trace:
    """Events in the order in which they happened: action, address, bytes and stream of each.

    For an out-of-memory event the address is the free memory that the device reported.
    `stack_numbers` says from which of the snapshot's `stacks` each was called.
    """

    __slots__ = (
        "_streams",
        "actions",
        "addresses",
        "sizes",
        "stack_numbers",
        "stream_numbers",
        "streams",
    )

    def __init__(self) -> None:
        self.actions = bytearray()
        self.addresses = array("q")
        self.sizes = array("q")
        self.stream_numbers = array("i")
        self.stack_numbers = array("i")
        self.streams: list[Stream] = []
        self._streams: dict[Stream, int] = {}

    def __len__(self) -> int:
        return len(self.actions)

    def append(
        self, action: int, address: int, size: int, stream: Stream, stack: int = NO_STACK
    ) -> None:
        """Add an event."""
        number = self._streams.get(stream)
        if number is None:
            number = self._streams[stream] = len(self.streams)
            self.streams.append(stream)
        self.actions.append(action)
        self.addresses.append(address)
        self.sizes.append(size)
        self.stream_numbers.append(number)
        self.stack_numbers.append(stack)

    def stream(self, event: int) -> Stream:
        """The stream of an event."""
        return self.streams[self.stream_numbers[event]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSnapshot:
    """One device of a snapshot: its segments when it was dumped, and its history.

    Attributes:
        warnings: what was found and left out, one line each.
        stacks: the call stacks from which memory was asked for, each outermost first. The one of
            number `NO_STACK` is empty.
        labels: for each of `stacks`, what the code called it (`user_metadata`); stacks that
            are alike and called otherwise are two.
        block_stacks: number of the stack of each block in `segments`, by its address, where it is
            recorded.
    """

    device: int
    segments: tuple[SegmentState, ...]
    trace: Trace
    settings: AllocatorSettings
    warnings: tuple[str, ...] = ()
    stacks: Sequence[tuple[Frame, ...]] = ((),)
    labels: Sequence[str] = ("",)
    block_stacks: Mapping[int, int] = field(default_factory=dict)


# Reading


def devices_of(snapshot: Any) -> list[DeviceSnapshot]:
    """Check a snapshot's dict and sort it by device; the dict's histories are used up.

    Raises:
        InputError: the structure is not a snapshot's; names the entry.
    """
    snapshot = _checked_root(snapshot)
    settings, warnings = _read_settings(snapshot.get("allocator_settings"))
    stacks = _Stacks()
    segments = _by_device([
        _read_segment(entry, f"segments[{i}]") for i, entry in enumerate(snapshot["segments"])
    ])  # fmt: skip
    block_stacks = _block_stacks(snapshot["segments"], stacks)
    traces = snapshot.get("device_traces", [])[:MAX_DEVICES]
    found = []
    for device in sorted({*range(len(traces)), *segments}):
        entries = traces[device] if device < len(traces) else []
        if not isinstance(entries, list):
            raise InputError(f"device_traces[{device}]: got {_kind(entries)}, expected a list")
        own = segments.get(device, ())
        if not entries and not own:
            continue
        trace, unknown = _read_trace(entries, f"device_traces[{device}]", own, stacks)
        entries.clear()  # the columns are a tenth of its size
        found.append(
            DeviceSnapshot(
                device=device,
                segments=own,
                trace=trace,
                settings=settings,
                warnings=(*warnings, *unknown),
                stacks=stacks.found,
                labels=stacks.labels,
                block_stacks=block_stacks.get(device, {}),
            )
        )
    return found


class _Stacks:
    """Call stacks by number, as events and blocks name them."""

    def __init__(self) -> None:
        self.found: list[tuple[Frame, ...]] = [()]
        self.labels = [""]
        self._numbers: dict[tuple[tuple[Frame, ...], str], int] = {((), ""): NO_STACK}
        # PyTorch dumps one dict for a frame that many stacks have. The lists are kept, so that no
        # other frame gets the address of one of theirs.
        self._by_identity: dict[tuple[str, tuple[int, ...]], tuple[int, list[Any]]] = {}

    def number_of(self, frames: Any, label: Any = "") -> int:
        """The number of a stack as PyTorch dumps it, innermost frame first, and of its label.

        Raises:
            TypeError, AttributeError: it is no list of frames.
        """
        label = label[:FRAME_TEXT_LIMIT] if isinstance(label, str) else ""
        if not label and (frames is None or frames == []):
            return NO_STACK
        frames = [] if frames is None else frames
        if not isinstance(frames, list):
            raise TypeError(f"'frames' is {_kind(frames)}")
        key = label, tuple(map(id, frames))
        known = self._by_identity.get(key)
        if known is not None:
            return known[0]
        stack = _python_frames([_read_frame(frame) for frame in reversed(frames)])
        number = self._numbers.setdefault((stack, label), len(self.found))
        if number == len(self.found):
            self.found.append(stack)
            self.labels.append(label)
        self._by_identity[key] = number, frames
        return number


def _frame_text(value: Any) -> str:
    return value if isinstance(value, str) else str(None) if value is None else _kind(value)


def _read_frame(entry: Any) -> Frame:
    name, file, line = entry.get("name", ""), entry.get("filename", ""), entry.get("line", 0)
    return Frame(
        name=_frame_text(name)[:FRAME_TEXT_LIMIT],
        file=_frame_text(file)[-FRAME_TEXT_LIMIT:],
        line=line if isinstance(line, int) and 0 <= line < MAX_ADDRESS else 0,
    )


def _python_frames(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Without those of C++, where there are others."""
    python = tuple(frame for frame in frames if frame.file.endswith(".py") or frame.file[:1] == "<")
    return python or tuple(frame for frame in frames if frame.file not in ("", "??"))


def _block_stacks(segments: Sequence[Any], stacks: _Stacks) -> dict[int, dict[int, int]]:
    """By device and address, of segments that were found to be such."""
    found: dict[int, dict[int, int]] = {}
    for index, segment in enumerate(segments):
        address = segment["address"]
        own = found.setdefault(segment.get("device", 0), {})
        for block in segment["blocks"]:
            try:
                number = stacks.number_of(block.get("frames"))
            except (TypeError, AttributeError) as error:
                raise InputError(
                    f"segments[{index}]: not a segment as PyTorch dumps it: {_why(error)}"
                ) from error
            if number:
                own[address] = number
            address += block["size"]
    return found


def _by_device(
    segments: Sequence[tuple[int, SegmentState]],
) -> dict[int, tuple[SegmentState, ...]]:
    found: dict[int, list[SegmentState]] = {}
    for device, segment in segments:
        found.setdefault(device, []).append(segment)
    return {
        device: tuple(sorted(own, key=lambda segment: segment.address))
        for device, own in found.items()
    }


def _read_segment(entry: Any, where: str) -> tuple[int, SegmentState]:
    try:
        address = _read_number(entry["address"], MAX_ADDRESS)
        size = _read_number(entry["total_size"], MAX_BYTES)
        segment = SegmentState(
            address=address,
            size=size,
            stream=_read_stream(entry),
            small=_read_text(entry["segment_type"]) == "small",
            expandable=entry.get("is_expandable", False) is True,
            blocks=tuple(_read_blocks(entry["blocks"], address)),
        )
        device = _read_number(entry.get("device", 0), MAX_DEVICES)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: not a segment as PyTorch dumps it: {_why(error)}") from error
    if not size or any(not block.size for block in segment.blocks):
        raise InputError(f"{where}: it, or a block of it, has no bytes")
    if sum(block.size for block in segment.blocks) != size:
        raise InputError(f"{where}: its blocks do not add up to its size of {size} bytes")
    return device, segment


def _read_blocks(entries: Any, address: int) -> list[BlockState]:
    blocks = []
    for entry in entries:
        size = _read_number(entry["size"], MAX_BYTES)
        state = _STATES[_read_text(entry["state"])]
        requested = _read_number(entry.get("requested_size", size), MAX_BYTES)
        blocks.append(BlockState(address, size, 0 if state is FREE else requested, state))
        address += size
    return blocks


def _read_stream(entry: dict[str, Any]) -> Stream:
    stream = _read_whole(entry.get("stream", 0))
    pool = _read_pool(entry)
    return PrivateStream(stream, pool) if pool else stream


def _read_trace(
    entries: Sequence[Any], where: str, segments: Sequence[SegmentState], stacks: _Stacks
) -> tuple[Trace, tuple[str, ...]]:
    """Turn dumped events into columns; returns them with warnings about unknown ones.

    Args:
        entries: the dicts of one device, oldest first.
        where: what to call the list in an error.
        segments: the segments at the end. In older versions an event's private pool follows from
            its address alone.
        stacks: where the call stacks of events are kept.

    Raises:
        InputError: an entry is no event; names it.
    """
    trace, unknown = Trace(), Counter[str]()
    private = _PrivateRanges(segments)
    append, actions = trace.append, ACTIONS
    for index, entry in enumerate(entries):
        try:
            name = entry["action"]
            if type(name) is not str:
                raise TypeError(f"'action' is {_kind(name)}")
            action = actions.get(name)
            if action is None:
                unknown[repr(name[:40])] += name not in _IGNORED
                continue
            address = entry["device_free" if action == OOM else "addr"]
            size, stream = entry["size"], entry.get("stream", 0)
            if not type(address) is type(size) is type(stream) is int:
                raise TypeError(f"got {_kind(address)}, {_kind(size)} and {_kind(stream)}")
            most = MAX_ASKED_BYTES if action == OOM else MAX_BYTES
            if not (0 <= address < MAX_ADDRESS and 0 <= size < most and abs(stream) < MAX_STREAM):
                raise ValueError("got a number that is too large, or below 0")
            if not size and SEGMENT_ALLOC <= action <= SEGMENT_UNMAP:
                raise ValueError("a segment, or pages, of 0 bytes")
            pool = _read_pool(entry, private.pool_at(address) if private else None)
            stack = stacks.number_of(entry.get("frames"), entry.get("user_metadata"))
            append(action, address, size, PrivateStream(stream, pool) if pool else stream, stack)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where}[{index}]: not an event as PyTorch dumps it: {_why(error)}"
            ) from error
    return trace, tuple(
        f"{where}: events of unknown kind {name}, left out: {count:,}"
        for name, count in unknown.most_common(MAX_WARNINGS)
        if count
    )


class _PrivateRanges:
    """Which addresses belong to a private pool."""

    def __init__(self, segments: Sequence[SegmentState]) -> None:
        private = [(s, s.stream.pool_id) for s in segments if isinstance(s.stream, PrivateStream)]
        self._starts = [segment.address for segment, _ in private]
        self._ends = [segment.address + segment.size for segment, _ in private]
        self._pools = [pool for _, pool in private]

    def __bool__(self) -> bool:
        return bool(self._starts)

    def pool_at(self, address: int) -> tuple[int, int] | None:
        """The pool of the segment that holds an address."""
        at = bisect_right(self._starts, address) - 1
        return self._pools[at] if at >= 0 and address < self._ends[at] else None


def _read_pool(
    entry: dict[str, Any], unnamed: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """The private pool that an event or segment belongs to; None for the default pool.

    Args:
        entry: the event or segment.
        unnamed: the pool of an entry that names none.
    """
    found = unnamed
    for key in _POOL_KEYS:
        pool = entry.get(key, _UNNAMED)
        if pool is _UNNAMED:
            continue
        if not isinstance(pool, tuple | list) or len(pool) != 2:
            raise TypeError(f"'{key}' is {_kind(pool)}")
        found = _read_whole(pool[0]), _read_whole(pool[1])
        if found != _DEFAULT_POOL:
            return found
    return None if found == _DEFAULT_POOL else found


def _read_settings(found: Any) -> tuple[AllocatorSettings, tuple[str, ...]]:
    """The settings that a snapshot was recorded with, and warnings about them.

    Versions before the settings were recorded give PyTorch's defaults.
    """
    if not isinstance(found, dict):
        return AllocatorSettings(), ("no allocator settings recorded: PyTorch's defaults assumed",)
    conf = found.get("PYTORCH_CUDA_ALLOC_CONF")
    try:
        return parse_alloc_conf(conf if isinstance(conf, str) else ""), ()
    except ConfigError as error:
        values = _settings_from_values(found)
        warnings = error.problems[:MAX_WARNINGS]
        return values, tuple(f"recorded {printable(problem, 200)}" for problem in warnings)


def _settings_from_values(found: dict[str, Any]) -> AllocatorSettings:
    """From the values that the snapshot lists beside the text."""
    split = found.get("max_split_size")
    divisions = found.get("roundup_power2_divisions")
    steps: tuple[int, ...] = ()
    if isinstance(divisions, dict):
        steps = tuple(v for v in divisions.values() if type(v) is int and _is_division(v))
    threshold = found.get("garbage_collection_threshold")
    return AllocatorSettings(
        expandable_segments=found.get("expandable_segments") is True,
        max_split_bytes=split if type(split) is int and 0 < split < MAX_BYTES else None,
        roundup_power2_divisions=(
            steps if len(steps) == DIVISION_INTERVALS and any(n > 1 for n in steps) else None
        ),
        garbage_collection_threshold=(
            threshold if isinstance(threshold, float) and 0 < threshold < 1 else 0.0
        ),
    )


def _is_division(steps: int) -> bool:
    return 0 <= steps < 1 << 30 and steps.bit_count() < 2


def _read_number(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"expected a whole number from 0, got {_kind(value)}")
    return value


def _read_whole(value: Any) -> int:
    """A stream, or a part of a pool's id."""
    if type(value) is not int or abs(value) >= MAX_STREAM:
        raise TypeError(f"expected a whole number, got {_kind(value)}")
    return value


def _read_text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected text, got {_kind(value)}")
    return value[:40]


def _checked_root(found: Any) -> dict[str, Any]:
    if isinstance(found, list):
        raise InputError(
            "a list of segments without history, as torch.cuda.memory_snapshot() gives it; "
            "record with torch.cuda.memory._record_memory_history() and use _dump_snapshot()"
        )
    if not isinstance(found, dict):
        raise InputError(f"got {_kind(found)}, no dict with 'segments'; {DUMP_HINT}")
    for key in ("segments", "device_traces"):
        if not isinstance(found.get(key, []), list):
            raise InputError(f"'{key}': got {_kind(found[key])}, expected a list")
    if "segments" not in found:
        keys = ", ".join(sorted(_shown_key(key) for key in islice(found, 8)))
        raise InputError(f"no 'segments' (found: {keys or 'nothing'}); {DUMP_HINT}")
    return found


def _shown_key(key: object) -> str:
    return repr(key[:40]) if isinstance(key, str) else _kind(key)


def _kind(value: object) -> str:
    """What a value is, in words; only numbers that are short are shown."""
    if isinstance(value, int | float) and abs(value) < MAX_STREAM:
        return repr(value)
    names = {dict: "a dict", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def _why(error: Exception) -> str:
    """What is wrong with an entry, in a few words that are safe to print."""
    return f"no {error}" if isinstance(error, KeyError) else repr(str(error)[:80])


# Writing


class RecordingAllocator:
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


def save_snapshot(path: Path, snapshot: dict[str, Any]) -> None:
    """Write a snapshot whole or not at all.

    Raises:
        OutputError: the path cannot be written.
    """
    with open_atomically(path) as file:
        pickle.dump(snapshot, file, protocol=PROTOCOL)


def snapshot_of(
    recording: RecordingAllocator, device: int = 0, max_events: int = MAX_VIEWER_EVENTS
) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot` returns, for a simulated allocator.

    Args:
        recording: the allocator and its history.
        device: number of the device that it stands for.
        max_events: of more, small requests that were freed are left out first.
    """
    allocator = recording.allocator
    events = _events(recording.trace, max_events)
    return {
        "segments": [_segment_entry(segment, device) for segment in allocator.segments()],
        "device_traces": [*([] for _ in range(device)), events],
        "allocator_settings": _settings_entry(allocator.settings),
        "external_annotations": [],
    }


def _segment_entry(segment: SegmentState, device: int) -> dict[str, Any]:
    stream, pool = _stream_and_pool(segment.stream)
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
        "blocks": [_block_entry(block) for block in segment.blocks],
    }


def _block_entry(block: BlockState) -> dict[str, Any]:
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": 0 if block.state is FREE else block.requested,
        "state": _STATE_NAMES[block.state],
        "frames": [],
    }


def _settings_entry(settings: AllocatorSettings) -> dict[str, Any]:
    steps = settings.roundup_power2_divisions or (0,) * 16
    return {
        "PYTORCH_CUDA_ALLOC_CONF": settings.conf,
        "max_split_size": settings.max_split_bytes or -1,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "expandable_segments": settings.expandable_segments,
        "roundup_power2_divisions": {str(1 << i): count for i, count in enumerate(steps)},
    }


def _events(trace: Trace, max_events: int) -> list[dict[str, Any]]:
    return [_event_entry(trace, index) for index in _kept(trace, max_events)]


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


def _event_entry(trace: Trace, index: int) -> dict[str, Any]:
    action, (stream, pool) = trace.actions[index], _stream_and_pool(trace.stream(index))
    return {
        "action": _ACTION_NAMES[action],
        "device_free" if action == OOM else "addr": trace.addresses[index],
        "size": trace.sizes[index],
        "stream": stream,
        "time_us": index,
        "segment_pool_id": pool,
        "frames": [],
    }


def _stream_and_pool(stream: Stream) -> tuple[int, tuple[int, int]]:
    if isinstance(stream, PrivateStream):
        return stream.stream, stream.pool_id
    return stream, _DEFAULT_POOL
