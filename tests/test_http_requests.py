"""What a local server answers: to whom, to what, and how many at a time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp4dit_onnx.serve import http_requests
from fp4dit_onnx.serve.http_requests import MOST_CLIENTS, SECONDS_FOR_REQUEST, KnownHosts
from fp4dit_onnx.serve.local_server import FileServer

PAGE = b"<p>page"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "file.txt").write_text("content")
    files: dict[str, Path | bytes] = {"/": PAGE, "/file.txt": tmp_path / "file.txt"}
    with FileServer(files, {}, "127.0.0.1", 0).in_background() as running:
        yield running


def connect(server: FileServer) -> socket.socket:
    return socket.create_connection(server.server_address[:2], timeout=20)


def exchange(server: FileServer, request: bytes) -> bytes:
    """All that is answered before the connection ends; it is told that nothing more comes."""
    with connect(server) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def status(answer: bytes) -> int:
    version, number, *_ = answer.split(None, 2)
    assert version.startswith(b"HTTP/1.")
    return int(number)


def get(host: str, path: str = "/", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode("latin-1")


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:9", "127.0.0.1", "[::1]:80", "localhost:", "\tlocalhost\t"]
)
def test_names_of_this_machine_are_answered(server: FileServer, host: str) -> None:
    assert exchange(server, get(host)).endswith(PAGE)
    assert exchange(server, get(f"127.0.0.1:{server.server_address[1]}")).endswith(PAGE)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "192.0.2.1", "[::2]"]
)
def test_a_name_that_another_site_gave_this_machine_is_not(server: FileServer, host: str) -> None:
    answer = exchange(server, get(host))
    assert status(answer) == 421
    assert PAGE not in answer


def test_who_reaches_a_server_that_lets_others_in() -> None:
    hosts = KnownHosts("0.0.0.0", "0.0.0.0")
    assert hosts.open_to_others
    for name in ("192.0.2.1:8000", "[2001:db8::1]", socket.gethostname(), "localhost:1"):
        assert hosts.include(name), name
    assert not hosts.include("evil.example:8000")
    named = KnownHosts("box.lan", "192.0.2.1")
    assert named.include("box.lan:8000")
    assert not KnownHosts("localhost", "127.0.0.1").open_to_others


MALFORMED = {
    "no request": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "words": b"GET / / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version": b"GET / HTTP/x\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": get("localhost", headers="Host: localhost\r\n"),
    "host and user": get("user@localhost"),
    "a line without a colon": get("localhost", headers="nonsense\r\n"),
    "absolute": get("localhost", "http://localhost/"),
    "brackets": get("localhost", "//["),
    "half an escape": get("localhost", "/%f"),
    "no escape": get("localhost", "/%zz"),
    "no text": get("localhost", "/%ff"),
    "nul": get("localhost", "/%00"),
    "a line": get("localhost", "/%0d%0aA:b"),
    "no text in a query": get("localhost", "/?steps=%ff"),
    "not escaped": get("localhost", "/\xfc"),
    "body": get("localhost", headers="Content-Length: 5\r\n") + b"GET /",
    "chunks": get("localhost", headers="Transfer-Encoding: chunked\r\n"),
    "length": get("localhost", headers="Content-Length: -1\r\n"),
    "two lengths": get("localhost", headers="Content-Length: 0\r\nContent-Length: 5\r\n")
    + b"GET /",
    "port": get("localhost:65536"),
    "version without headers": b"GET / HTTP/0.9\r\nHost: localhost\r\n\r\n",
    **{
        f"range {text}": get("localhost", "/file.txt", f"Range: bytes={text}\r\n")
        for text in ("", "-", "a-b", "5-2", "1-2,", "1-2,x", "--1", "1-2-3", "\xb2-")
    },
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_refused(
    server: FileServer, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = exchange(server, MALFORMED[case])
    if case == "brackets":  # a path like another: two slashes count as one
        assert status(answer) == 404
    else:
        assert status(answer) == 400
        assert answer.count(b"\r\nServer:") == 1  # what follows is not a request of its own
    assert exchange(server, get("localhost")).endswith(PAGE)
    assert capfd.readouterr().err == ""


def test_a_file_that_becomes_a_link_is_gone(server: FileServer, tmp_path: Path) -> None:
    assert exchange(server, get("localhost", "/file.txt")).endswith(b"content")
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "file.txt").unlink()
    (tmp_path / "file.txt").symlink_to(tmp_path / "secret")
    answer = exchange(server, get("localhost", "/file.txt"))
    assert status(answer) == 404
    assert b"a key" not in answer
    assert str(tmp_path).encode() not in answer


def closed(client: socket.socket) -> bool:
    """Whether the server has ended a connection, within the client's patience."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: loc", get("localhost")])
def test_who_waits_too_long_is_left(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Before a request, in it, and after an answer; byte by byte is no way around it."""
    monkeypatch.setattr(http_requests, "SECONDS_FOR_REQUEST", 0.2)
    with connect(server) as client:
        client.sendall(sent)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    if sent == get("localhost"):
        assert answer.endswith(PAGE)
    else:
        assert answer == b""


def wait_for_threads(most: int) -> None:
    """Until there are no more than that; for far less time than a silent client has."""
    until = time.monotonic() + SECONDS_FOR_REQUEST / 2
    while threading.active_count() > most:
        assert time.monotonic() < until, f"{threading.active_count()} threads: expected {most}"
        time.sleep(0.01)


def test_many_who_say_nothing_keep_nobody_out(server: FileServer) -> None:
    before = threading.active_count()
    clients = [connect(server) for _ in range(4 * MOST_CLIENTS)]
    try:
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\n")
        assert exchange(server, get("localhost")).endswith(PAGE)
        # a thread whose connection is over, and counts no more, takes a moment to end
        wait_for_threads(before + MOST_CLIENTS)
        assert closed(clients[0])
    finally:
        for client in clients:
            client.close()
    wait_for_threads(before)  # each finds the end
