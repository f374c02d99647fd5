"""Bytes of a file by range, from disk or over HTTP, within bounds, whatever the other side does.

A reader of headers asks for a few megabytes of a file of many gigabytes, of an unknown origin: it
waits for nothing for ever, and holds no more than it asked for.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tritter_mem.errors import InputError
from tritter_mem.text import printable
from tritter_mem.units import MiB, format_bytes

MAX_READ_BYTES = 256 * MiB
_FIRST_WINDOW = 128 << 10
_LAST_WINDOW = 4 * MiB
_SOCKET_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_MAX_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(?:(\d{1,19})|\*)")


class HttpStatusError(InputError):
    """A server refused a request.

    Attributes:
        status: of the answer, such as 404.
        headers: of the answer.
    """

    def __init__(self, problem: str, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(problem)
        self.status = status
        self.headers = headers


class UnreachableError(InputError):
    """A server did not answer: no network, no such host, or nothing within the time allowed.

    Attributes:
        reason: why, as the system says it.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


class ByteSource(ABC):
    """A file whose bytes are read by range; a context manager.

    Attributes:
        label: what messages call the file.
        size: bytes of the whole file; None where that is not known (yet: see `RemoteFile`).
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
            raise self.wrong(f"more than {most} of it would have to be read; that is no header")
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
            raise self.wrong(f"found {_kind(found.st_mode)}; allowed: a regular file")
        self.size = found.st_size

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
        errno.ENXIO: "found a socket; allowed: a regular file",
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


class RemoteFile(ByteSource):
    """A file that a server gives by range requests; its size is known after the first read.

    Redirects are followed. `Authorization` goes to the first server only, and to nobody over plain
    HTTP where the first address is HTTPS.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        label: str | None = None,
        most_bytes: int = MAX_READ_BYTES,
    ) -> None:
        """Name a file; nothing is sent before the first read.

        Args:
            url: an http or https address.
            headers: to send, such as `Authorization`.
            label: what messages call it; default: the address without its query.
            most_bytes: that all reads together may take.

        Raises:
            InputError: the address is of another kind.
        """
        super().__init__(label or url.partition("?")[0], None, most_bytes)
        if not re.match(r"https?://[^/\s]+/\S*\Z", url, re.IGNORECASE):
            raise self.wrong("found no web address; allowed: https://host/path")
        self._url = url
        self._headers = {**(headers or {}), "Accept-Encoding": "identity"}

    def _fetch(self, start: int, count: int) -> bytes:
        last = start + count - 1
        request = urllib.request.Request(  # noqa: S310  (the scheme was checked)
            self._url, headers={**self._headers, "Range": f"bytes={start}-{last}"}
        )
        deadline = time.monotonic() + _ANSWER_SECONDS
        try:
            with _OPENER.open(request, timeout=_SOCKET_SECONDS) as answer:
                return self._content(answer, start, count, deadline)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:
                    return self._nothing_there(error.headers)
                raise self._refused(error) from None
        except urllib.error.URLError as error:
            raise self._unreachable(_reason(error.reason)) from None
        except ValueError:  # its text may hold a header, and so a token
            raise self.wrong("the request or its answer is not valid HTTP") from None
        except (OSError, HTTPException) as error:
            raise self._unreachable(_reason(error)) from None

    def _content(self, answer: HTTPResponse, start: int, count: int, deadline: float) -> bytes:
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self.wrong("the server compresses what was asked for as it is")
        skipped = 0
        if answer.status == 206:
            count = self._promised(answer, start, count)
            whole = count
        else:  # the server answers no ranges: it sends the file from its start
            self.size = answer.length
            skipped = start
            if start + count > self._left:
                raise self.wrong("the server answers no range requests")
            self._left -= start
            whole = start + count if self.size is None else min(self.size, start + count)
        content = self._body(answer, whole, deadline)
        if len(content) < whole and (answer.status == 206 or self.size is not None):
            raise self._half(len(content), whole)
        return content[skipped:]

    def _promised(self, answer: HTTPResponse, start: int, count: int) -> int:
        """Bytes that a partial answer says it holds; learns the file's size."""
        text = answer.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text.strip())
        if match is None or match[1] is None or int(match[1]) != start:
            raise self.wrong(f"the server sent the wrong range ({printable(text, 60) or 'none'})")
        promised = int(match[2]) - start + 1
        total = int(match[3]) if match[3] else None
        ends = total is not None and int(match[2]) + 1 == total
        if not 0 < promised <= count or (promised < count and not ends):
            raise self.wrong(f"the server sent the wrong range ({printable(text, 60)})")
        if self.size is not None and total is not None and total != self.size:
            raise self.wrong("the file changed while it was read; try again")
        self.size = self.size if total is None else total
        return promised

    def _body(self, answer: HTTPResponse, count: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < count:
            # One system call at a time: a server that sends a byte now and then is cut off too.
            try:
                part = answer.read1(min(count - len(content), 1 << 20))
            except HTTPException:
                raise self._half(len(content), count) from None
            if not part:
                break
            content += part
            if time.monotonic() > deadline:
                raise self._unreachable(f"it sent for more than {_ANSWER_SECONDS:.0f} s")
        return bytes(content)

    def _unreachable(self, reason: str) -> UnreachableError:
        return UnreachableError(f"{self.label}: no answer from the server: {reason}", reason)

    def _half(self, got: int, wanted: int) -> InputError:
        return self.wrong(f"the connection ended after {got:,} of {wanted:,} bytes; try again")

    def _nothing_there(self, headers: Message) -> bytes:
        """Learn the size of a file that ends before the range."""
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is not None and match[3] is not None:
            self.size = int(match[3])
        return b""

    def _refused(self, error: urllib.error.HTTPError) -> HttpStatusError:
        problem = f"{self.label}: the server answered {error.code} ({printable(error.reason, 80)})"
        if 300 <= error.code < 400:
            problem = f"{self.label}: the server redirects in a circle, or to no web address"
        return HttpStatusError(problem, error.code, dict(error.headers.items()))


def _reason(error: object) -> str:
    """Why a connection failed, without numbers of system errors."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    return printable(text, 120) or type(error).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses, and hands a secret to nobody else."""

    max_redirections = _MAX_REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if after.scheme not in {"https", before.scheme}:
            raise urllib.error.URLError(f"it redirects to {after.scheme}, not {before.scheme}")
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _origin(before) != _origin(after):
            for name in [
                name for name in new.headers if name.lower() in {"authorization", "cookie"}
            ]:
                new.remove_header(name)
        return new


def _origin(url: urllib.parse.SplitResult) -> tuple[str, str | None, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.hostname, url.port or default


def _opener() -> urllib.request.OpenerDirector:
    """An opener of web addresses alone: urllib's default one opens files and FTP too."""
    opener: Any = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener  # type: ignore[no-any-return]


_OPENER = _opener()


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
        offset = self.position - self._window_start
        if offset + count > len(self._window):
            self._move(count)
            offset = 0
        self.position += count
        return self._window[offset : offset + count]

    def skip(self, count: int) -> None:
        """Pass over bytes without reading those that are not in the window."""
        self.position += count

    def peek(self) -> bytes:
        """What the window holds from here on; empty at its end."""
        return self._window[self.position - self._window_start :]

    def _move(self, count: int) -> None:
        """Let the window start here and hold `count` bytes at least."""
        kept = self.peek()
        start, missing = self.position + len(kept), count - len(kept)
        size = self._source.size
        if size is not None and start + missing > size:
            self._source.read(size, start + missing - size)  # says that the file ends
        wanted = max(missing, min(self._next_window, self._source.left))
        got = self._source.read_up_to(start, wanted)
        if len(got) < missing:
            self._source.read(start + len(got), missing - len(got))
        self._window, self._window_start = kept + got, self.position
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
