"""Snapshot files: an untrusted pickle, read by a child process within limits.

Every global in it is refused, so that nothing in it runs. What is left can still take all memory
and time, or crash Python's unpickler. So a child process reads it, whose memory and processor time
are limited by how much of the file it has read, and answers with numbers alone.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.snapshot import DUMP_HINT, DeviceSnapshot, Trace, devices_of
from tritter_mem.child_process import end_with, python_path, python_running
from tritter_mem.errors import InputError
from tritter_mem.input_files import is_file, open_input
from tritter_mem.results.allocations import Frame
from tritter_mem.results.from_json import from_plain, parse_json
from tritter_mem.results.segments import (
    BlockState,
    PrivateStream,
    SegmentState,
    State,
    Stream,
)
from tritter_mem.text import printable
from tritter_mem.units import GiB, MiB, format_bytes

MAX_FILE_BYTES = 4 * GiB
# An honest snapshot takes up to 11 bytes of memory for each of the file, and 30 ns.
BASE_BYTES, BYTES_PER_BYTE = 512 * MiB, 16
BASE_SECONDS, SECONDS_PER_BYTE = 3.0, 150e-9
STACK_BYTES = 8 * MiB
_PIECE_BYTES = 1 * MiB
_OUT_OF_MEMORY = 12  # an exit code
# What else people pass: first bytes, what it is, what to do.
_LOOKALIKES = (
    (b"{", "JSON", DUMP_HINT),
    (b"[", "JSON", DUMP_HINT),
    (b"<", "HTML or XML", f"{DUMP_HINT}, not what the viewer made of it"),
    (b"PK\x03\x04", "a zip archive, such as torch.save writes", DUMP_HINT),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip FILE"),
)
_TRUNCATED = "the pickle is truncated: it ends before its end; copy it again"
_NO_PICKLE = f"no pickle, or a damaged one; {DUMP_HINT}"
_TOO_MUCH = (
    "reading it takes more {what} than a snapshot of its size does: it is damaged, or was made to "
    "take long"
)


def load_snapshot(path: Path, max_bytes: int = MAX_FILE_BYTES) -> list[DeviceSnapshot]:
    """Read a snapshot file; one entry for each device that has segments or history.

    Raises:
        InputError: the file cannot be read, is too large, or is no snapshot.
    """
    try:
        with _opened(path, max_bytes) as file, _reader(file) as answer:
            return _decoded(answer)
    except InputError as error:
        problems = (f"{printable(path)}: {problem}" for problem in error.problems)
        raise InputError(*problems) from error


def read_pickle(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Read what a file of one's own holds, in this process and without limits.

    Raises:
        InputError: says what was found instead of a pickle of plain data.
    """
    try:
        with _opened(path, max_bytes) as file:
            return _unpickled(file)
    except MemoryError as error:
        raise InputError(_TOO_MUCH.format(what="memory")) from error


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    try:
        with open_input(path) as file:
            if not is_file(path):
                raise InputError("cannot be read: it is not a regular file")
            _refuse_unfit(file, os.fstat(file.fileno()).st_size, max_bytes)
            yield file
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error


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


# The child process


@contextmanager
def _reader(file: BinaryIO) -> Iterator[IO[bytes]]:
    """The answer of a child process that reads the file; whatever happens, it ends with the block.

    Raises:
        InputError: the child ended without an answer.
    """
    process = subprocess.Popen(  # noqa: S603  (our own module)
        python_running(__name__, str(os.getpid())),
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,  # Ctrl-C is for this process, which then ends the child
    )
    try:
        with process, process.stdout as answer:  # type: ignore[union-attr]
            try:
                yield answer
            except EOFError:
                process.wait()
                raise
            finally:
                process.kill()
    except EOFError:
        raise InputError(_why_ended(process.returncode)) from None


def _why_ended(code: int) -> str:
    if code == -signal.SIGXCPU:
        return _TOO_MUCH.format(what="time")
    if code in (_OUT_OF_MEMORY, -signal.SIGKILL):
        return _TOO_MUCH.format(what="memory")
    return _NO_PICKLE


def main(parent: int) -> None:
    """Read the snapshot on standard input, and write its numbers to standard output."""
    end_with(parent)
    gc.disable()  # a snapshot has no cycles, and looking for some takes half of the time
    try:
        with os.fdopen(os.dup(1), "wb") as out:
            out.writelines(_answer())
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    os._exit(0)  # without a walk through all objects, which nested ones can make a deep one


def _answer() -> Iterator[bytes]:
    """The parts of an answer; where anything is wrong, the problems alone."""
    try:
        with _LimitedFile() as file:
            found = _unpickled(io.BufferedReader(file, _PIECE_BYTES))
            file.allow(file.size)
            devices = devices_of(found)
    except InputError as error:
        return _packed({"problems": [printable(problem) for problem in error.problems]})
    return _encoded(devices)


class _LimitedFile(io.FileIO):
    """Standard input. Every piece that is read of it raises this process's limits."""

    def __init__(self) -> None:
        super().__init__(0, "rb")
        self.seek(0)  # the parent has looked at the beginning
        self.size = os.fstat(0).st_size
        self._read = 0
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self._before_bytes = pages * resource.getpagesize()
        _limit(resource.RLIMIT_STACK, STACK_BYTES)
        _limit(resource.RLIMIT_CORE, 0)
        self.allow(0)

    def readinto(self, buffer: Any) -> int:
        """Read a piece."""
        count = super().readinto(buffer) or 0
        self._read += count
        self.allow(self._read)
        return count

    def allow(self, count: int) -> None:
        """Let this process use what an honest snapshot of `count` bytes needs."""
        _limit(resource.RLIMIT_AS, self._before_bytes + BASE_BYTES + BYTES_PER_BYTE * count)
        _limit(resource.RLIMIT_CPU, int(BASE_SECONDS + SECONDS_PER_BYTE * count))


def _limit(what: int, soft: int) -> None:
    """Set a limit of this process, as far as it may."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _unpickled(file: IO[bytes]) -> Any:
    try:
        return _DataUnpickler(file).load()
    except (InputError, MemoryError, OSError):
        raise
    except EOFError as error:
        raise InputError(_TRUNCATED) from error
    except Exception as error:  # a broken pickle can make the unpickler raise almost anything
        if isinstance(error, pickle.UnpicklingError) and "truncated" in str(error):
            raise InputError(_TRUNCATED) from error
        raise InputError(_NO_PICKLE) from error


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


# What the child answers: JSON, and then the arrays that it counts


def _packed(head: dict[str, Any]) -> Iterator[bytes]:
    text = json.dumps(head).encode()
    yield len(text).to_bytes(8, "little")
    yield text


def _encoded(devices: list[DeviceSnapshot]) -> Iterator[bytes]:
    stacks = devices[0].stacks if devices else ()  # all devices of a snapshot share them
    frames = {frame: number for number, frame in enumerate({f: None for s in stacks for f in s})}
    yield from _packed(
        {
            "devices": [_head(device) for device in devices],
            "frames": [[frame.name, frame.file, frame.line] for frame in frames],
            "stacks": [len(stack) for stack in stacks],
            "labels": list(devices[0].labels) if devices else [],
        }
    )
    yield array("i", (frames[frame] for stack in stacks for frame in stack)).tobytes()
    for device in devices:
        trace = device.trace
        yield bytes(trace.actions)
        for column in (trace.addresses, trace.sizes, trace.stream_numbers, trace.stack_numbers):
            yield column.tobytes()
        yield _blocks(device.segments).tobytes()
        yield array("q", (n for pair in device.block_stacks.items() for n in pair)).tobytes()


def _head(device: DeviceSnapshot) -> dict[str, Any]:
    return {
        "device": device.device,
        "events": len(device.trace),
        "block_stacks": len(device.block_stacks),
        "streams": [_plain_stream(stream) for stream in device.trace.streams],
        "segments": [
            [s.address, s.size, _plain_stream(s.stream), s.small, s.expandable, len(s.blocks)]
            for s in device.segments
        ],
        "settings": asdict(device.settings),
        "warnings": device.warnings,
    }


def _plain_stream(stream: Stream) -> list[int]:
    return [stream.stream, *stream.pool_id] if isinstance(stream, PrivateStream) else [stream]


def _blocks(segments: tuple[SegmentState, ...]) -> array[int]:
    """Bytes, bytes asked for and state of each block, one segment after another."""
    blocks = (block for segment in segments for block in segment.blocks)
    return array("q", (n for b in blocks for n in (b.size, b.requested, b.state.value)))


def _decoded(answer: IO[bytes]) -> list[DeviceSnapshot]:
    """Read an answer.

    Raises:
        EOFError: it ends too soon.
        InputError: it names a problem.
    """
    length = int.from_bytes(_exactly(answer, 8), "little")
    head = parse_json(_exactly(answer, length))
    if "problems" in head:
        raise InputError(*head["problems"])
    frames = [Frame(name=name, file=file, line=line) for name, file, line in head["frames"]]
    numbers = iter(_column(answer, "i", sum(head["stacks"])))
    stacks = [tuple(frames[n] for n in islice(numbers, length)) for length in head["stacks"]]
    labels = head["labels"]
    return [_device(one, stacks, labels, answer) for one in head["devices"]]


def _exactly(answer: IO[bytes], count: int) -> bytes:
    found = answer.read(count)
    if len(found) < count:
        raise EOFError
    return found


def _column(answer: IO[bytes], kind: str, count: int) -> array[int]:
    column = array(kind)
    column.frombytes(_exactly(answer, count * column.itemsize))
    return column


def _device(
    head: dict[str, Any], stacks: list[tuple[Frame, ...]], labels: list[str], answer: IO[bytes]
) -> DeviceSnapshot:
    trace, events = Trace(), head["events"]
    trace.actions = bytearray(_exactly(answer, events))
    trace.addresses = _column(answer, "q", events)
    trace.sizes = _column(answer, "q", events)
    trace.stream_numbers = _column(answer, "i", events)
    trace.stack_numbers = _column(answer, "i", events)
    trace.streams = [_stream(plain) for plain in head["streams"]]
    numbers = iter(_column(answer, "q", 3 * sum(segment[-1] for segment in head["segments"])))
    segments = tuple(_segment(segment, numbers) for segment in head["segments"])
    of_blocks = iter(_column(answer, "q", 2 * head["block_stacks"]))
    return DeviceSnapshot(
        device=head["device"],
        segments=segments,
        trace=trace,
        settings=from_plain(AllocatorSettings, head["settings"]),
        warnings=tuple(head["warnings"]),
        stacks=stacks,
        labels=labels,
        block_stacks=dict(zip(of_blocks, of_blocks, strict=True)),
    )


def _stream(plain: list[int]) -> Stream:
    stream, *pool = plain
    return PrivateStream(stream, (pool[0], pool[1])) if pool else stream


def _segment(head: list[Any], numbers: Iterator[int]) -> SegmentState:
    address, size, stream, small, expandable, count = head
    blocks, at = [], address
    for _ in range(count):
        block_size, requested, state = islice(numbers, 3)
        blocks.append(BlockState(at, block_size, requested, State(state)))
        at += block_size
    return SegmentState(
        address=address,
        size=size,
        stream=_stream(stream),
        small=small,
        expandable=expandable,
        blocks=tuple(blocks),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
