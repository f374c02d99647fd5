"""What reading a snapshot file takes, in time and memory: as `replay` does, and without a child.

`python -m benchmarks.snapshot_reading` makes an honest snapshot of `--bytes` (1 GB), with the stack
frames that PyTorch records and without, reads it in the child process with limits and in a process
without, and prints a row for each and their ratio. Then it reads files that were made to take long.
Every reading is a process of its own, so that time and memory are its alone. Exit code 1 where an
honest file takes more than 1.3 times as long, or another one more than 10 s or 2 GiB.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tritter_mem.units import GiB, MiB, format_bytes

BATCH = 1000
FRAMES, DEPTH = 400, 30
MOST_RATIO = 1.3
MOST_SECONDS, MOST_BYTES = 10.0, 2 * GiB
IN_A_CHILD = "from tritter_mem.allocator.snapshot_file import load_snapshot as read"
WITHOUT = """
import gc
from tritter_mem.allocator.snapshot import devices_of
from tritter_mem.allocator.snapshot_file import read_pickle
gc.set_threshold(100_000)  # as the command line sets it
read = lambda path: devices_of(read_pickle(path))
"""
_MEASURED = """
import resource, sys, time
from pathlib import Path
exec(sys.argv[1])
begin = time.monotonic()
try:
    said = f"{sum(len(device.trace) for device in read(Path(sys.argv[2]))):,} events"
except Exception as error:
    said = "refused" + str(error).partition(":")[2]
seconds = time.monotonic() - begin
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
processor = sum(one.ru_utime + one.ru_stime for one in used)
print(seconds, processor, sum(one.ru_maxrss for one in used) * 1024, said, sep="|")
"""


class Reading(NamedTuple):
    """What reading a file took; memory is that of this process and of its child together."""

    seconds: float
    processor_seconds: float
    memory_bytes: int
    said: str


def reading(how: str, path: Path) -> Reading:
    """Read a file in a fresh process."""
    command = [sys.executable, "-c", _MEASURED, how, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, processor, memory, said = done.stdout.strip().split("|", 3)
    return Reading(float(seconds), float(processor), int(memory), said)


class Memoizing:
    """Writes what Python's pickler writes, piece by piece: nothing of it is held in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._count = 0
        self._texts: dict[str, int] = {}

    def memoize(self, opcode: bytes) -> bytes:
        """An opcode, and that its object is kept in the memo."""
        self._count += 1
        return opcode + pickle.MEMOIZE

    def text(self, text: str) -> bytes:
        """A text; the second time by its number in the memo."""
        if text in self._texts:
            return self.known(self._texts[text])
        self._texts[text] = self._count
        encoded = text.encode()
        return self.memoize(pickle.SHORT_BINUNICODE + bytes([len(encoded)]) + encoded)

    @staticmethod
    def known(number: int) -> bytes:
        """An object by its number in the memo."""
        if number < 256:
            return pickle.BINGET + bytes([number])
        return pickle.LONG_BINGET + struct.pack("<I", number)

    @staticmethod
    def whole(number: int) -> bytes:
        """An integer."""
        return pickle.dumps(number, protocol=2)[2:-1]

    def frame(self, number: int) -> bytes:
        """A stack frame; returns how it is referred to from then on."""
        opened, reference = self.memoize(pickle.EMPTY_DICT), self.known(self._count - 1)
        pairs = (
            self.text("name") + self.text(f"function_{number}")
            + self.text("filename") + self.text(f"/site-packages/package/module_{number % 40}.py")
            + self.text("line") + self.whole(number)
        )  # fmt: skip
        self._file.write(opened + pickle.MARK + pairs + pickle.SETITEMS + pickle.POP)
        return reference


def write_honest(path: Path, size: int, depth: int) -> None:
    """Write a snapshot of about `size` bytes whose requests come and go, `depth` frames deep."""
    with path.open("wb") as file:
        out = Memoizing(file)
        file.write(pickle.PROTO + b"\4" + out.memoize(pickle.EMPTY_DICT) + pickle.MARK)
        frames = [out.frame(number) for number in range(FRAMES)]
        file.write(out.text("segments") + out.memoize(pickle.EMPTY_LIST))
        file.write(out.text("device_traces") + out.memoize(pickle.EMPTY_LIST) + pickle.MARK)
        file.write(out.memoize(pickle.EMPTY_LIST))
        events = _events()
        while file.tell() < size:
            batch = (_event(out, frames, depth, *next(events)) for _ in range(BATCH))
            file.write(pickle.MARK + b"".join(batch) + pickle.APPENDS)
        file.write(pickle.APPENDS + pickle.SETITEMS + pickle.STOP)


def _events() -> Iterator[tuple[str, int, int, int]]:
    """Action, address, bytes and time: a segment, and requests in it, one after another."""
    base, time_us = 0x7F00_0000_0000, 1_700_000_000_000_000
    yield "segment_alloc", base, 20 * MiB, time_us
    while True:
        for place in range(1000):
            address, size = base + place * 2048, 1025 + place
            for action in ("alloc", "free_requested", "free_completed"):
                time_us += 7
                yield action, address, size, time_us


def _event(out: Memoizing, frames: list[bytes], depth: int, *event: Any) -> bytes:
    action, address, size, time_us = event
    opened = out.memoize(pickle.EMPTY_DICT) + pickle.MARK
    pairs = (
        out.text("action") + out.text(action) + out.text("addr") + out.whole(address)
        + out.text("size") + out.whole(size) + out.text("stream") + out.whole(0)
        + out.text("time_us") + out.whole(time_us)
        + out.text("compile_context") + out.text("N/A") + out.text("frames")
    )  # fmt: skip
    first = size % (FRAMES - DEPTH)
    stack = b"".join(frames[first : first + depth])
    filled = out.memoize(pickle.EMPTY_LIST) + pickle.MARK + stack + pickle.APPENDS
    return opened + pairs + filled + pickle.SETITEMS


# A pair of a pair of …, each of one object twice: whoever walks it never ends.
_DOUBLED = b"N\x940" + b"".join(b"h%ch%c\x86\x940" % (i, i) for i in range(90)) + b"hZ"
HOSTILE = {
    "a huge index of the memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a memo of 2 GiB": b"\x80\x04Nr" + struct.pack("<I", 1 << 27) + b".",
    "a key of shared tuples": b"\x80\x04}" + _DOUBLED + b"Ns.",
    "a key of nested tuples": b"\x80\x04}N" + b"\x85" * 200_000 + b"Ns.",
    "empty dicts": b"\x80\x04" + b"}" * 20_000_000 + b".",
}


def main() -> int:
    """Make the files, read them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=10**9, help="of an honest file")
    size, right = parser.parse_args().bytes, True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        for depth in (DEPTH, 0):
            write_honest(path, size, depth)
            right &= _compare(f"{depth} frames deep", path)
        for name, data in HOSTILE.items():
            path.write_bytes(data)
            found = reading(IN_A_CHILD, path)
            right &= found.processor_seconds < MOST_SECONDS and found.memory_bytes < MOST_BYTES
            _print(name, path, found)
    return 0 if right else 1


def _compare(name: str, path: Path) -> bool:
    without, child = reading(WITHOUT, path), reading(IN_A_CHILD, path)
    _print(f"{name}, without limits", path, without)
    _print(f"{name}, in a child", path, child)
    ratio = child.seconds / without.seconds
    print(f"{name}: {ratio:.2f} times as long, at most {MOST_RATIO}")
    return ratio <= MOST_RATIO and child.said == without.said


def _print(name: str, path: Path, found: Reading) -> None:
    size, memory = format_bytes(path.stat().st_size), format_bytes(found.memory_bytes)
    print(f"{name:36} {size:>10}  {found.seconds:6.2f} s ({found.processor_seconds:.2f} s of the "
          f"processor)  {memory:>10}  {found.said[:60]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
