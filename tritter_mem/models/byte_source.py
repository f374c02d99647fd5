"""Bytes of a file by range and within bounds, for readers of headers of files of many gigabytes.

A file's origin is unknown: its reader never waits for ever, and holds at most what it asked for.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from tritter_mem.errors import InputError
from tritter_mem.input_files import note_input
from tritter_mem.text import printable
from tritter_mem.units import MiB, format_bytes

MAX_READ_BYTES = 256 * MiB
_FIRST_WINDOW = 128 << 10
_LAST_WINDOW = 4 * MiB


class ByteSource(ABC):
    """A file whose bytes are read by range; a context manager.

    Attributes:
        label: what messages call the file.
        size: bytes of the whole file; None where that is not known (before the first read of a
            remote file).
    """

    def __init__(self, label: str, size: int | None, most_bytes: int) -> None:
        self.label = printable(label, 300)
        self.size = size
        self._most_bytes = most_bytes
        self._left = most_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  (a source may hold nothing)
        """Release what the source holds; it is not read afterwards."""

    def read(self, start: int, count: int) -> bytes:
        """Read `count` bytes from byte `start` on.

        Raises:
            InputError: the file ends before, cannot be read, or all that was read of it is more
                than the source's bound.
        """
        content = self.read_up_to(start, count)
        if len(content) < count:
            raise self.wrong(
                f"truncated: the file ends at byte {start + len(content):,}, and its header needs "
                f"{start + count:,}; copy or download it again"
            )
        return content

    def read_up_to(self, start: int, count: int) -> bytes:
        """Read as `read` does, but fewer bytes where the file ends before."""
        if self.size is not None:
            count = max(0, min(count, self.size - start))
        if count > self._left:
            most = format_bytes(self._most_bytes)
            raise self.wrong(
                f"more than {most} of it would have to be read; no header is that long"
            )
        content = self._fetch(start, count) if count else b""
        self._left -= len(content)
        return content

    @property
    def left(self) -> int:
        """Bytes that may still be read."""
        return self._left

    @abstractmethod
    def _fetch(self, start: int, count: int) -> bytes:
        """Get the bytes; fewer than `count` (at least 1) only where the file ends."""

    def wrong(self, problem: str) -> InputError:
        """An error about this file."""
        return InputError(f"{self.label}: {problem}")


class LocalFile(ByteSource):
    """A regular file on disk."""

    def __init__(
        self, path: Path, label: str | None = None, most_bytes: int = MAX_READ_BYTES
    ) -> None:
        """Open a file.

        Args:
            path: the file.
            label: what messages call it; default: its path.
            most_bytes: that all reads together may take.

        Raises:
            InputError: there is no such file, it is no regular file (a directory, a pipe, a
                device), its symbolic links form a loop, or it cannot be read.
        """
        super().__init__(label or str(path), None, most_bytes)
        try:
            # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise self.wrong(_cannot_open(error)) from None
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise self.wrong(f"got {_kind(found.st_mode)}, expected a regular file")
        self.size = found.st_size
        note_input(path)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _fetch(self, start: int, count: int) -> bytes:
        try:
            return os.pread(self._file, count, start)
        except OSError as error:
            raise self.wrong(f"cannot be read: {error.strerror}") from None


def _cannot_open(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return "no such file: its name holds a null byte"
    named = {
        errno.ENOENT: "no such file",
        errno.ENOTDIR: "no such file",
        errno.ELOOP: "its symbolic links form a loop",
        errno.ENXIO: "got a socket, expected a regular file",
    }
    return named.get(error.errno or 0, f"cannot be read: {error.strerror}")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


class Cursor:
    """Reads a source from its start, a window at a time, so that small reads are cheap.

    Attributes:
        position: bytes read or skipped so far.
    """

    def __init__(self, source: ByteSource) -> None:
        self.position = 0
        self._source = source
        self._window = b""
        self._window_start = 0
        self._next_window = _FIRST_WINDOW

    def take(self, count: int) -> bytes:
        """Read the next `count` bytes.

        Raises:
            InputError: as `ByteSource.read`.
        """
        size = self._source.size
        if size is not None and self.position + count > size:
            self._source.read(size, self.position + count - size)  # says where the file ends
        content = self.look(count)
        if len(content) < count:
            self._source.read(self.position + len(content), count - len(content))
        self.position += count
        return content

    def look(self, count: int) -> bytes:
        """Read ahead: the next `count` bytes, fewer where the file ends before."""
        offset = self.position - self._window_start
        if offset + count > len(self._window):
            self._move(count)
            offset = 0
        return self._window[offset : offset + count]

    def skip(self, count: int) -> None:
        """Pass over bytes without reading those that are not in the window."""
        self.position += count

    def peek(self) -> bytes:
        """What the window holds from here on; empty at its end."""
        return self._window[self.position - self._window_start :]

    def _move(self, count: int) -> None:
        """Let the window start here, and hold `count` bytes where the file does."""
        kept = self.peek()
        wanted = max(count - len(kept), min(self._next_window, self._source.left))
        kept += self._source.read_up_to(self.position + len(kept), wanted)
        self._window, self._window_start = kept, self.position
        self._next_window = min(2 * self._next_window, _LAST_WINDOW)


def description(head: bytes) -> str:
    """What a file is by its first bytes, for messages about one of the wrong kind."""
    text = head.lstrip()[:64].lower()
    known = {
        b"version https://git-lfs": "a Git LFS pointer, not the file itself; run: git lfs pull",
        b"<!doctype": "a web page, not the file itself; download it again",
        b"<html": "a web page, not the file itself; download it again",
        b"gguf": "a GGUF file",
        b"pk\x03\x04": "a ZIP archive, as PyTorch saves",
        b"\x80\x02": "a pickle, as PyTorch saves",
        b"{": "JSON",
    }
    for start, what in known.items():
        if text.startswith(start):
            return what
    if not head:
        return "an empty file"
    return f"a file that starts with {head[:8].hex(' ')}"
