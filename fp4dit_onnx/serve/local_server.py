"""A web server for this machine's own browser: the files it was told of, and nothing else.

No path from outside reaches the file system: a URL is looked up in a table.
"""

from __future__ import annotations

import errno
import http.server
import os
import socket
import socketserver
import stat
import sys
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.serve.http_requests import (
    Clients,
    KnownHosts,
    Problem,
    byte_range,
    request_problem,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MEDIA_TYPES", "FileServer", "Handler"]

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
BYTES = "application/octet-stream"
"""Of what the table does not have: models, icons."""

SECONDS_TO_SEND = 30
"""That a client may take to receive a block."""
_BLOCK = 1 << 20


class FileServer(http.server.ThreadingHTTPServer):
    """Serves files over HTTP, to requests that name this machine as their host.

    A page of another site can have its own name resolve to this machine, and its scripts would then
    read what is served as theirs (DNS rebinding). The browser still sends that site's name.

    Args:
        files: what to serve, a file or its content, by the path in the URL. A file is where its
            path leads to now: it is not followed should it become a link later.
        headers: of every answer.
        host: name or address to listen on.
        port: 0 takes a free one.
        handler: answers requests.

    Raises:
        UsageError: the port is in use or may not be used, or the host is none of this machine.
    """

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = os.name == "posix"
    """Elsewhere the option would let another program listen on the same port."""

    def __init__(
        self,
        files: Mapping[str, Path | bytes],
        headers: Mapping[str, str],
        host: str,
        port: int,
        handler: type[Handler] | None = None,
    ) -> None:
        self.files = {url: f if isinstance(f, bytes) else _real(f) for url, f in files.items()}
        self.headers = headers
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._clients = Clients()
        try:
            super().__init__((host, port), handler or Handler)
        except (OSError, OverflowError) as cause:
            raise UsageError(_unavailable(host, port, cause)) from cause
        self.hosts = KnownHosts(host, str(self.server_address[0]))

    def server_bind(self) -> None:
        """Bind, without the look-up of a name that takes long where there is no network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in its own thread, if one is free."""
        if self._clients.enter(request):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self._clients.leave(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between connections: end those whose request does not come."""
        self._clients.expire()

    def waits(self, request: Any, *, waiting: bool) -> None:
        """Note that a connection waits for a request, or that the request is there."""
        self._clients.waits(request, waiting=waiting)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that broke."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else host
        return f"http://{shown!s}:{port}/"

    def run(self, announce: Callable[[], None], *, browse: bool) -> None:
        """Answer until Ctrl-C.

        Args:
            announce: called once requests are answered.
            browse: open the page in the web browser.
        """
        try:
            announce()
            if browse:
                # a browser in the terminal returns when it is closed
                Thread(target=webbrowser.open, args=(self.url,), daemon=True).start()
            self.serve_forever()
        except KeyboardInterrupt:
            return

    @contextmanager
    def in_background(self) -> Iterator[Self]:
        """Answer in a thread while the block runs, then close."""
        with self:
            thread = Thread(target=self.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()


def _unavailable(host: str, port: int, cause: Exception) -> str:
    number = getattr(cause, "errno", None)
    if number == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use: expected a free one; "
            "choose another with --port, or --port 0 for any"
        )
    if number == errno.EACCES:
        return f"port {port} may not be used: expected one from 1024; choose another with --port"
    return (
        f"cannot listen on {host}, port {port} ({cause}): expected an address of this machine "
        "and a port from 0 to 65535; leave --host out for 127.0.0.1"
    )


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    default_request_version = (
        "HTTP/1.0"  # in answers to what is not a request, which have a head too
    )
    timeout = SECONDS_TO_SEND
    server: FileServer

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        self.server.waits(self.request, waiting=True)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the head of a request; refuses what is malformed or meant for another host."""
        if not super().parse_request():
            return False
        self.server.waits(self.request, waiting=False)
        problem = request_problem(self.path, self.request_version, self.headers)
        if problem is None and not self.server.hosts.include(self.headers["Host"]):
            problem = Problem(
                HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address only"
            )
        if problem is not None:
            self.request_version = (
                self.default_request_version
            )  # HTTP/0.9 has answers without head
            self.send_error(*problem)
            return False
        return True

    def do_GET(self) -> None:
        """Send what the URL names."""
        path, _, query = self.path.partition("?")
        try:
            self.answer(unquote(path, errors="strict"), query)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):  # the browser has left
            self.close_connection = True

    def do_HEAD(self) -> None:
        """Say what GET would send."""
        self.do_GET()

    def answer(self, path: str, query: str) -> None:
        """Send the file of `path`; to be widened by what is not a file."""
        found = self.server.files.get(path)
        if found is None:
            self.send_body(HTTPStatus.NOT_FOUND, f"{path} is not a file of this page\n".encode())
        elif isinstance(found, bytes):
            self.send_body(HTTPStatus.OK, found, MEDIA_TYPES[".html"])
        else:
            self._send_file(path, found)

    def send_body(
        self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8"
    ) -> None:
        """Send what is at hand."""
        self._send_head(status, kind, len(body), {"Cache-Control": "no-store"})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, url: str, path: Path) -> None:
        """Stream a file, or the range asked for, or say that the browser has it already."""
        stream = _opened(path)
        if stream is None:
            self.send_body(
                HTTPStatus.NOT_FOUND, f"{url} no longer exists: copy or export it again\n".encode()
            )
            return
        with stream:
            found = os.fstat(stream.fileno())
            size, tag = found.st_size, f'"{found.st_size:x}-{found.st_mtime_ns:x}"'
            headers = {"ETag": tag, "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
            kind = MEDIA_TYPES.get(Path(url).suffix or path.suffix, BYTES)
            if self.headers.get("If-None-Match") == tag:
                self._send_head(HTTPStatus.NOT_MODIFIED, kind, None, headers)
                return
            asked = byte_range(self.headers.get("Range"), size)
            status, start, end = asked or (HTTPStatus.OK, 0, size)
            if status != HTTPStatus.OK:
                shown = f"{start}-{end - 1}" if status == HTTPStatus.PARTIAL_CONTENT else "*"
                headers["Content-Range"] = f"bytes {shown}/{size}"
            self._send_head(status, kind, end - start, headers)
            if self.command != "HEAD":
                self._copy(stream, start, end)

    def _copy(self, stream: BinaryIO, start: int, end: int) -> None:
        stream.seek(start)
        left = end - start
        while left > 0 and (block := stream.read(min(_BLOCK, left))):
            self.wfile.write(block)
            left -= len(block)
        self.close_connection |= left > 0  # the file shrank on the way: the answer is short

    def _send_head(
        self, status: HTTPStatus, kind: str, length: int | None, headers: Mapping[str, str]
    ) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
        for name, value in {**self.server.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _opened(path: Path) -> BinaryIO | None:
    """A regular file that is not a link and lies behind none; None for anything else."""
    if _real(path) != path:
        return None
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        number = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    return None
