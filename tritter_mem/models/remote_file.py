"""Bytes of a file by range over HTTP, within bounds of size and time, whatever the server does."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any

from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import MAX_READ_BYTES, ByteSource
from tritter_mem.text import printable

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
            raise self.wrong("not a web address, expected https://host/path")
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
            raise self._unreachable(_late(deadline) or _reason(error.reason)) from None
        except ValueError:  # its text may hold a header, and so a token
            raise self.wrong("the request or its answer is not valid HTTP") from None
        except (OSError, HTTPException) as error:
            raise self._unreachable(_late(deadline) or _reason(error)) from None

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
                raise self._unreachable(_late(deadline))
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


class _TimedResponse(HTTPResponse):
    """An answer whose head too has a time limit: each byte of it may come just in time."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self._connection = sock

    def begin(self) -> None:
        """Read the head."""
        late = threading.Event()

        def end() -> None:
            late.set()
            # Of the socket itself: the end of TLS would have to be agreed with the other side.
            with suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

        timer = threading.Timer(_ANSWER_SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            super().begin()
        finally:
            timer.cancel()
        if late.is_set():  # a head that is cut off is taken for a whole one
            raise TimeoutError


def _timed(connection: Any) -> Any:
    return type("TimedConnection", (connection,), {"response_class": _TimedResponse})


class _Http(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, *arguments: Any, **named: Any) -> HTTPResponse:
        return super().do_open(_timed(http_class), *arguments, **named)


class _Https(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, *arguments: Any, **named: Any) -> HTTPResponse:
        return super().do_open(_timed(http_class), *arguments, **named)


def _opener() -> urllib.request.OpenerDirector:
    """An opener of web addresses alone: urllib's default one opens files and FTP too."""
    opener: Any = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener  # type: ignore[no-any-return]


_OPENER = _opener()


def _late(deadline: float) -> str:
    """What is said of an answer that took too long; empty before its deadline."""
    if time.monotonic() <= deadline:
        return ""
    return f"it sent for more than {_ANSWER_SECONDS:.0f} s"
