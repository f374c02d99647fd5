"""Reading a PyTorch memory snapshot: untrusted input, from PyTorch 2.1 to 2.13.

`torch.cuda.memory._dump_snapshot` writes a pickle of dicts, lists, strings and numbers. Nothing
else is needed to read one, so every global in the file is refused: it could run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tritter_mem.allocator.blocks import ALLOCATED, FREE, WAITING, PrivateStream, Stream
from tritter_mem.allocator.rules import DIVISION_INTERVALS
from tritter_mem.allocator.segments import BlockState, SegmentState
from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.allocator.trace import Trace, pool_of, read_trace, why
from tritter_mem.errors import ConfigError, InputError
from tritter_mem.units import GiB, format_bytes

MAX_FILE_BYTES = 4 * GiB
MAX_DEVICES = 1024
MAX_ADDRESS = 1 << 63
DUMP_HINT = "expected the file that torch.cuda.memory._dump_snapshot wrote"

# What else people hand over: first bytes, what it is, what to do.
_LOOKALIKES = (
    (b"{", "JSON", DUMP_HINT),
    (b"[", "JSON", DUMP_HINT),
    (b"<", "HTML or XML", f"{DUMP_HINT}, not what the viewer made of it"),
    (b"PK\x03\x04", "a zip archive, such as torch.save writes", DUMP_HINT),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip FILE"),
)
_STATES = {
    "active_allocated": ALLOCATED,
    "active_awaiting_free": WAITING,
    "active_pending_free": WAITING,  # as older versions call it
    "inactive": FREE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSnapshot:
    """One device of a snapshot: its segments when it was dumped, and its history.

    Attributes:
        warnings: what was found and left out, one line each.
    """

    device: int
    segments: tuple[SegmentState, ...]
    trace: Trace
    settings: AllocatorSettings
    warnings: tuple[str, ...] = ()


class _DataUnpickler(pickle.Unpickler):
    """Takes dicts, lists, strings and numbers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> NoReturn:
        wanted = f"{module}.{name}"[:80]
        raise InputError(
            f"the pickle asks for {wanted!r}: refused, as loading it could run code; "
            "a memory snapshot needs no such thing"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise InputError("the pickle refers to objects outside of it; a memory snapshot does not")


def load_snapshot(path: Path, max_bytes: int = MAX_FILE_BYTES) -> list[DeviceSnapshot]:
    """Read a snapshot file; one entry for each device that has segments or history.

    Raises:
        InputError: the file cannot be read, is too large, or is no snapshot.
    """
    try:
        return devices_of(read_pickle(path, max_bytes))
    except InputError as error:
        raise InputError(*(f"{path}: {problem}" for problem in error.problems)) from error


def read_pickle(path: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """Read the file's dict with every global refused.

    Raises:
        InputError: says what was found instead.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            _refuse_unfit(file, size, max_bytes)
            found = _unpickle(file)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    return _checked_root(found)


def _refuse_unfit(file: BinaryIO, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputError(f"too large: {format_bytes(size)}; at most {format_bytes(max_bytes)}")
    first = file.read(8)
    file.seek(0)
    if not first:
        raise InputError(f"the file is empty; {DUMP_HINT}")
    for prefix, what, hint in _LOOKALIKES:
        if first.startswith(prefix):
            raise InputError(f"no snapshot: this is {what}; {hint}")


def _unpickle(file: BinaryIO) -> Any:
    try:
        return _DataUnpickler(file).load()
    except InputError:
        raise
    except EOFError as error:
        raise InputError(
            "the pickle is truncated: it ends before its end; copy it again"
        ) from error
    except Exception as error:  # a broken pickle can make the unpickler raise almost anything
        if "truncated" in str(error):
            raise InputError("the pickle is truncated; copy it again") from error
        why = repr(str(error)[:80])
        raise InputError(f"no pickle, or a damaged one ({why}); {DUMP_HINT}") from error


def _checked_root(found: Any) -> dict[str, Any]:
    if isinstance(found, list):
        raise InputError(
            "a list of segments without history, as torch.cuda.memory_snapshot() gives it; "
            "record with torch.cuda.memory._record_memory_history() and use _dump_snapshot()"
        )
    if not isinstance(found, dict):
        raise InputError(f"found {_kind(found)}, no dict with 'segments'; {DUMP_HINT}")
    for key in ("segments", "device_traces"):
        if not isinstance(found.get(key, []), list):
            raise InputError(f"'{key}': found {_kind(found[key])}, expected a list")
    if "segments" not in found:
        keys = ", ".join(sorted(repr(key)[:40] for key in found)[:8])
        raise InputError(f"no 'segments' (found: {keys or 'nothing'}); {DUMP_HINT}")
    return found


def devices_of(snapshot: dict[str, Any]) -> list[DeviceSnapshot]:
    """Check a snapshot's dict and sort it by device; the dict's histories are used up.

    Raises:
        InputError: the structure is not a snapshot's; names the entry.
    """
    settings, warnings = recorded_settings(snapshot.get("allocator_settings"))
    segments = _by_device([
        _segment(entry, f"segments[{i}]") for i, entry in enumerate(snapshot["segments"])
    ])  # fmt: skip
    traces = snapshot.get("device_traces", [])
    count = max(len(traces), *segments, -1) + 1 if segments else len(traces)
    found = []
    for device in range(count):
        entries = traces[device] if device < len(traces) else []
        if not isinstance(entries, list):
            raise InputError(f"device_traces[{device}]: found {_kind(entries)}, expected a list")
        own = segments.get(device, ())
        if not entries and not own:
            continue
        trace, unknown = read_trace(entries, f"device_traces[{device}]", own)
        entries.clear()  # the columns are a tenth of its size
        found.append(
            DeviceSnapshot(
                device=device,
                segments=own,
                trace=trace,
                settings=settings,
                warnings=(*warnings, *unknown),
            )
        )
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


def _segment(entry: Any, where: str) -> tuple[int, SegmentState]:
    try:
        address = _number(entry["address"], MAX_ADDRESS)
        size = _number(entry["total_size"], MAX_ADDRESS)
        segment = SegmentState(
            address=address,
            size=size,
            stream=_stream(entry),
            small=entry["segment_type"] == "small",
            expandable=bool(entry.get("is_expandable", False)),
            blocks=tuple(_blocks(entry["blocks"], address)),
        )
        device = _number(entry.get("device", 0), MAX_DEVICES)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: not a segment as PyTorch dumps it: {why(error)}") from error
    if sum(block.size for block in segment.blocks) != size:
        raise InputError(f"{where}: its blocks do not add up to its size of {size} bytes")
    return device, segment


def _blocks(entries: Any, address: int) -> list[BlockState]:
    blocks = []
    for entry in entries:
        size = _number(entry["size"], MAX_ADDRESS)
        state = _STATES[entry["state"]]
        requested = _number(entry.get("requested_size", size), MAX_ADDRESS)
        blocks.append(BlockState(address, size, 0 if state is FREE else requested, state))
        address += size
    return blocks


def _stream(entry: dict[str, Any]) -> Stream:
    stream = entry.get("stream", 0)
    if not isinstance(stream, int):
        raise TypeError(f"'stream' is {_kind(stream)}")
    pool = pool_of(entry)
    return PrivateStream(stream, pool) if pool else stream


def _number(value: Any, limit: int) -> int:
    if not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"expected a whole number from 0, found {_kind(value)}")
    return value


def recorded_settings(found: Any) -> tuple[AllocatorSettings, tuple[str, ...]]:
    """The settings that a snapshot was recorded with, and warnings about them.

    Versions before the settings were recorded give PyTorch's defaults.
    """
    if not isinstance(found, dict):
        return AllocatorSettings(), ("no allocator settings recorded: PyTorch's defaults assumed",)
    conf = str(found.get("PYTORCH_CUDA_ALLOC_CONF") or "")
    try:
        return parse_alloc_conf(conf), ()
    except ConfigError as error:
        values = _settings_by_value(found)
        return values, tuple(f"recorded {problem}" for problem in error.problems)


def _settings_by_value(found: dict[str, Any]) -> AllocatorSettings:
    """From the values that the snapshot lists beside the text."""
    split = found.get("max_split_size")
    divisions = found.get("roundup_power2_divisions")
    steps: tuple[int, ...] = ()
    if isinstance(divisions, dict):
        steps = tuple(v for v in divisions.values() if isinstance(v, int))
    threshold = found.get("garbage_collection_threshold")
    return AllocatorSettings(
        expandable_segments=found.get("expandable_segments") is True,
        max_split_bytes=split if isinstance(split, int) and split > 0 else None,
        roundup_power2_divisions=(
            steps if len(steps) == DIVISION_INTERVALS and any(n > 1 for n in steps) else None
        ),
        garbage_collection_threshold=threshold if isinstance(threshold, float) else 0.0,
    )


def _kind(value: object) -> str:
    names = {dict: "a dict", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), repr(value)[:40])
