"""A web server for this machine's own browser: the files it was told of, and nothing else.

No path from outside reaches the file system: a URL is looked up in a table.
"""

from __future__ import annotations

import errno
import http.server
import re
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from fp4dit_onnx.errors import UsageError

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

_BLOCK = 1 << 20


class FileServer(http.server.ThreadingHTTPServer):
    """Serves files over HTTP.

    Args:
        files: what to serve, a file or its content, by the path in the URL.
        headers: of every answer.
        host: name or address to listen on.
        port: 0 takes a free one.
        handler: answers requests.

    Raises:
        UsageError: the port is in use or may not be used, or the host is none of this machine.
    """

    daemon_threads = True

    def __init__(
        self,
        files: Mapping[str, Path | bytes],
        headers: Mapping[str, str],
        host: str,
        port: int,
        handler: type[Handler] | None = None,
    ) -> None:
        self.files, self.headers = files, headers
        try:
            super().__init__((host, port), handler or Handler)
        except (OSError, OverflowError) as cause:
            raise UsageError(_unavailable(host, port, cause)) from cause

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

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
    server: FileServer

    def do_GET(self) -> None:
        """Send what the URL names."""
        try:
            self.answer(unquote(urlsplit(self.path).path), urlsplit(self.path).query)
        except (BrokenPipeError, ConnectionResetError):  # the browser has left
            self.close_connection = True

    def do_HEAD(self) -> None:
        """Say what GET would send."""
        self.do_GET()

    def answer(self, path: str, query: str) -> None:
        """Send the file of `path`; to be widened by what is no file."""
        found = self.server.files.get(path)
        if found is None:
            self.send_body(HTTPStatus.NOT_FOUND, f"{path} is no file of this page\n".encode())
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
        try:
            stream = path.open("rb")
        except OSError:
            self.send_body(
                HTTPStatus.NOT_FOUND, f"{path} is gone: copy or export it again\n".encode()
            )
            return
        with stream:
            stat = path.stat()
            size, tag = stat.st_size, f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
            headers = {"ETag": tag, "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
            kind = MEDIA_TYPES.get(Path(url).suffix or path.suffix, BYTES)
            if self.headers.get("If-None-Match") == tag:
                self._send_head(HTTPStatus.NOT_MODIFIED, kind, None, headers)
                return
            status, start, end = _range(self.headers.get("Range"), size)
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


def _range(header: str | None, size: int) -> tuple[HTTPStatus, int, int]:
    """Status, start and end (exclusive) of an answer; several ranges at once are answered whole."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return HTTPStatus.OK, 0, size
    if match[1]:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
    else:
        start, end = max(size - int(match[2]), 0), size
    if start >= end:
        return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, 0
    return HTTPStatus.PARTIAL_CONTENT, start, end
