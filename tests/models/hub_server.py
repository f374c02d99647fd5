"""A small server on this machine that answers as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_of_a_test"  # noqa: S105


@dataclass
class Repository:
    """Files by name, with who may read them."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


Fault = Callable[["Handler"], None]


@dataclass
class HubServer:
    """A Hub; a context manager that runs it in a thread.

    Attributes:
        repositories: by name.
        faults: what answers instead, by the end of a path.
        requests: that it got.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


def use(server: HubServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set huggingface_hub up for a server, with an empty cache in the folder and no token."""
    constants: Any = import_module("huggingface_hub.constants")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: HubServer = self.server.hub
        hub.requests.append(Request(self.command, self.path, dict(self.headers.items())))
        path = unquote(urlsplit(self.path).path)
        try:
            for end, fault in hub.faults.items():
                if path.endswith(end):
                    fault(self)
                    return
            self._answer(hub, path)
        except OSError:  # whoever asked has gone
            self.close_connection = True

    def _answer(self, hub: HubServer, path: str) -> None:
        if path == "/api/models":
            self._list(hub, parse_qs(urlsplit(self.path).query))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self.refuse(404)

    def _list(self, hub: HubServer, query: dict[str, list[str]]) -> None:
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        found = [
            {"id": name}
            for name, repository in hub.repositories.items()
            if name.startswith(f"{author}/" if author else "")
            and search.lower() in name.lower()
            and not repository.private
        ]
        self.send(json.dumps(found).encode())

    def _info(self, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is not None:
            siblings = [{"rfilename": file} for file in repository.files]
            info = {"id": name, "sha": repository.commit, "siblings": siblings}
            self.send(json.dumps(info).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.gated and not self._is_known:
            self.refuse(401, "GatedRepo", "Access to this model is restricted.")
        elif file not in repository.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = repository.files[file]
            self.send_range(
                content,
                {
                    "ETag": f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"',
                    "X-Repo-Commit": repository.commit,
                    "X-Linked-Size": str(len(content)),
                },
            )

    def _repository(self, name: str, revision: str) -> Repository | None:
        """The repository; None after a refusal."""
        sent = self.headers.get("Authorization")
        if sent is not None and not self._is_known:
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repository = self.server.hub.repositories.get(name)
        if repository is None or (repository.private and not self._is_known):
            # The Hub says nothing about what it does not show.
            self.refuse(404 if self._is_known else 401, "RepoNotFound", "Repository not found")
            return None
        if revision not in {*repository.revisions, repository.commit}:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository  # type: ignore[no-any-return]

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def refuse(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        if code:
            named["X-Error-Code"] = code
        if message:
            named["X-Error-Message"] = message
        self.send(b"{}", status, named)

    def send_range(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        """Answer a file or, where one was asked for, a range of it."""
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            self.send(content, 200, headers)
            return
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        if first >= len(content):
            self.send(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(content[first : last + 1], 206, headers)

    def send(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing on standard error."""


def status(number: int, code: str = "", **headers: str) -> Fault:
    """A fault: refuse with a status."""
    return lambda handler: handler.refuse(number, code, **headers)


def redirect(url: str, code: int = 302) -> Fault:
    """A fault: send elsewhere."""
    return lambda handler: handler.send(b"", code, {"Location": url})


def half(content: bytes) -> Fault:
    """A fault: promise a body and send half of it."""

    def send(handler: Handler) -> None:
        length = {"Content-Length": str(len(content))}
        last = f"bytes 0-{len(content) - 1}/{len(content)}"
        handler.send(content[: len(content) // 2], 206, {**length, "Content-Range": last})
        handler.close_connection = True

    return send


def endless(handler: Handler) -> None:
    """A fault: a body that never ends, in chunks, whatever range was asked for."""
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
