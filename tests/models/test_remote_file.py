"""Ranges over HTTP: exact, within bounds, and no secret for anybody else."""

import contextlib
import io
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPMessage

import pytest

from tests.models import hub_server
from tests.models.hub_server import Handler, HubServer, Repository
from tritter_mem.errors import InputError
from tritter_mem.models import remote_file
from tritter_mem.models.byte_source import Cursor
from tritter_mem.models.remote_file import HttpStatusError, RemoteFile, UnreachableError

CONTENT = os.urandom(300_000)
PATH = "/o/n/resolve/main/f"
SECRET = {"Authorization": f"Bearer {hub_server.TOKEN}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HubServer({"o/n": Repository({"f": CONTENT, "empty": b""})}) as server:
        yield server


def test_ranges_are_those_of_the_file(hub: HubServer) -> None:
    with RemoteFile(hub.url + PATH) as source:
        assert source.size is None
        assert source.read(5, 7) == CONTENT[5:12]
        assert source.size == 300_000
        assert source.read_up_to(299_990, 100) == CONTENT[-10:]
        with pytest.raises(InputError, match="truncated: the file ends at byte 300,000"):
            source.read(299_990, 100)
    assert hub.requests[0].headers["Range"] == "bytes=5-11"


def test_a_cursor_asks_for_few_windows(hub: HubServer) -> None:
    cursor = Cursor(RemoteFile(hub.url + PATH))
    parts = [cursor.take(1000) for _ in range(300)]
    assert b"".join(parts) == CONTENT
    assert len(hub.requests) <= 3


def test_a_range_past_the_end_of_a_file_is_empty(hub: HubServer) -> None:
    source = RemoteFile(f"{hub.url}/o/n/resolve/main/empty")
    assert source.read_up_to(0, 8) == b""
    assert source.size == 0


def test_a_server_without_ranges_is_read_from_its_start(hub: HubServer) -> None:
    hub.faults["/f"] = lambda handler: handler.send(CONTENT)
    source = RemoteFile(hub.url + PATH)
    assert source.read(10, 20) == CONTENT[10:30]
    assert source.size == 300_000
    assert source.read_up_to(299_999, 9) == CONTENT[-1:]
    with pytest.raises(InputError, match="the server answers no range requests"):
        RemoteFile(hub.url + PATH, most_bytes=100).read(90, 20)


def test_all_reads_together_stay_within_the_bound(hub: HubServer) -> None:
    source = RemoteFile(hub.url + PATH, most_bytes=100)
    source.read(0, 60)
    with pytest.raises(InputError, match="more than 100 B of it would have to be read"):
        source.read(0, 41)


def test_a_body_that_never_ends_is_left(hub: HubServer) -> None:
    hub.faults["/f"] = hub_server.endless
    source = RemoteFile(hub.url + PATH)
    assert source.read_up_to(0, 3 << 20) == b" " * (3 << 20)


def test_half_a_body_is_named(hub: HubServer) -> None:
    hub.faults["/f"] = hub_server.half(b"x" * 100)
    with pytest.raises(InputError, match="connection ended after 50 of 100 bytes; try again"):
        RemoteFile(hub.url + PATH).read(0, 100)


def test_half_a_chunk_is_named(hub: HubServer) -> None:
    def send(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"40\r\nabc")
        handler.close_connection = True

    hub.faults["/f"] = send
    with pytest.raises(InputError, match="connection ended after 3 of 100 bytes"):
        RemoteFile(hub.url + PATH).read_up_to(0, 100)


def chunked(*chunks: bytes, ends: bool = True) -> Callable[[Handler], None]:
    """An answer without a length, and without ranges."""

    def send(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in (*chunks, *([b""] if ends else [])):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        handler.close_connection = True

    return send


def test_of_a_body_without_a_length_no_more_is_read_than_is_asked_for(hub: HubServer) -> None:
    hub.faults["/f"] = chunked(b"a" * 600, b"b" * 1000)
    assert RemoteFile(hub.url + PATH).read_up_to(0, 1000) == b"a" * 600 + b"b" * 400


def test_a_body_without_a_length_may_be_shorter_than_is_asked_for(hub: HubServer) -> None:
    hub.faults["/f"] = chunked(b"a" * 50)
    assert RemoteFile(hub.url + PATH).read_up_to(0, 100) == b"a" * 50


@pytest.mark.parametrize(
    "content_range",
    ["bytes 1-100/300", "bytes 0-200/300", "bytes 0-49/300", "pages 1-2/3", "", "bytes 0-/9"],
)
def test_a_wrong_range_is_refused(hub: HubServer, content_range: str) -> None:
    headers = {"Content-Range": content_range}
    hub.faults["/f"] = lambda handler: handler.send(b"x" * 100, 206, headers)
    with pytest.raises(InputError, match="the server sent the wrong range"):
        RemoteFile(hub.url + PATH).read(0, 100)


def test_a_file_that_changes_is_refused(hub: HubServer) -> None:
    source = RemoteFile(hub.url + PATH)
    source.read(0, 10)
    hub.repositories["o/n"].files["f"] = CONTENT + b"more"
    with pytest.raises(InputError, match="the file changed while it was read"):
        source.read(10, 10)


def test_a_compressed_answer_is_refused(hub: HubServer) -> None:
    headers = {"Content-Encoding": "gzip"}
    hub.faults["/f"] = lambda handler: handler.send(b"x", 200, headers)
    with pytest.raises(InputError, match="the server compresses"):
        RemoteFile(hub.url + PATH).read(0, 1)
    assert hub.requests[0].headers["Accept-Encoding"] == "identity"


def test_a_refusal_has_its_status(hub: HubServer) -> None:
    hub.faults["/f"] = hub_server.status(503, X_Why="maintenance")
    with pytest.raises(HttpStatusError, match=r"the server answered 503 \(Service") as caught:
        RemoteFile(hub.url + PATH).read(0, 1)
    assert caught.value.status == 503
    assert caught.value.headers["X-Why"] == "maintenance"


def test_a_token_goes_along_on_one_server_and_to_no_other(hub: HubServer) -> None:
    with HubServer({"o/n": Repository({"f": CONTENT})}) as other:
        hub.faults["/moved"] = hub_server.redirect(f"{hub.url}/elsewhere")
        hub.faults["/elsewhere"] = hub_server.redirect(other.url + PATH)
        with RemoteFile(f"{hub.url}/moved", SECRET) as source:
            assert source.read(3, 4) == CONTENT[3:7]
        asked = [request.headers.get("Authorization") for request in hub.requests]
        assert asked == [SECRET["Authorization"]] * 2
        assert "Authorization" not in other.requests[0].headers
        assert other.requests[0].headers["Range"] == "bytes=3-6"


def test_redirects_in_a_circle_end(hub: HubServer) -> None:
    hub.faults["/f"] = hub_server.redirect(hub.url + PATH)
    with pytest.raises(InputError, match="redirects in a circle"):
        RemoteFile(hub.url + PATH).read(0, 1)
    assert len(hub.requests) < 10


@pytest.mark.parametrize(
    ("target", "message"),
    [("file:///etc/passwd", "to no web address"), ("ftp://127.0.0.1/f", "redirects to ftp")],
)
def test_a_redirect_to_no_web_address_is_refused(hub: HubServer, target: str, message: str) -> None:
    hub.faults["/f"] = hub_server.redirect(target)
    with pytest.raises(InputError, match=message):
        RemoteFile(hub.url + PATH).read(0, 1)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://h/f")
    follow = remote_file._Redirects().redirect_request
    with pytest.raises(urllib.error.URLError, match="it redirects to http, not https"):
        follow(request, io.BytesIO(), 302, "", HTTPMessage(), "http://h/f")
    assert follow(request, io.BytesIO(), 302, "", HTTPMessage(), "https://other/f")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/f", "http://h", "https:///f", "f"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="not a web address, expected https://host/path"):
        RemoteFile(url)


def test_nobody_there_is_named(hub: HubServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreachableError, match="no answer from the server: Connection refused"):
        RemoteFile(f"http://127.0.0.1:{port}/f").read(0, 1)


def test_a_server_that_says_nothing_is_left(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_SOCKET_SECONDS", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UnreachableError, match="it took too long"),
    ):
        RemoteFile(f"http://127.0.0.1:{silent.getsockname()[1]}/f").read(0, 1)


def test_a_body_that_takes_too_long_is_left(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_ANSWER_SECONDS", 0.0)
    with pytest.raises(UnreachableError, match="it sent for more than 0 s"):
        RemoteFile(hub.url + PATH).read(0, 100_000)


def test_what_is_no_http_is_named_without_the_token(hub: HubServer) -> None:
    with pytest.raises(InputError, match="is not valid HTTP") as caught:
        RemoteFile(hub.url + PATH, {"Authorization": "Bearer s\ne\ncret"}).read(0, 1)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("head", [b"H", b"HTTP/1.1 200 OK\r\nX: y", b"HTTP/1.1 200 OK\r\nA: 1\r\n"])
def test_a_head_that_comes_drop_by_drop_is_left(
    monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """Each byte comes within the time that a byte may take, and the head never ends."""
    monkeypatch.setattr(remote_file, "_ANSWER_SECONDS", 0.3)

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(head)
            while True:
                time.sleep(0.01)
                connection.sendall(b"z")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        with pytest.raises(InputError, match=r"/f: no answer from the server|is not valid HTTP"):
            RemoteFile(f"http://127.0.0.1:{server.getsockname()[1]}/f").read(0, 1)
