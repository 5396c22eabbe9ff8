"""What requests a local server answers: well formed, for this machine, a bounded number at a time."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from typing import NamedTuple

__all__ = ["Clients", "KnownHosts", "Problem", "byte_range", "request_problem"]

MOST_CLIENTS = 32
"""Threads, one per connection. A browser opens up to 6."""
SECONDS_FOR_REQUEST = 10.0
"""From the connection, or from the last answer, to the end of a request's head."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::([0-9]{0,5}))?")
_LAST_PORT = 65535
_TARGET = re.compile(r"/(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")
"""Printable ASCII, more than RFC 3986 allows: browsers send brackets as they are."""
_RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
_LARGEST = 1 << 62


class Problem(NamedTuple):
    """Why a request is refused: status and what is wrong."""

    status: HTTPStatus
    text: str


class KnownHosts:
    """The names under which a browser reaches a server.

    Any port will do: one may be forwarded to another. An address is safe, since no other site can
    have it resolve to something else.

    Args:
        host: that the server was told to listen on.
        address: that it listens on.

    Attributes:
        open_to_others: whether other machines are let in.
    """

    def __init__(self, host: str, address: str) -> None:
        self.open_to_others = not ipaddress.ip_address(address.partition("%")[0]).is_loopback
        names = {*LOOPBACK, host, address, f"[{host}]", f"[{address}]"}
        if self.open_to_others:  # by whatever name they have for this machine
            own = socket.gethostname()
            names |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        self._names = {name.lower() for name in names}

    def include(self, header: str) -> bool:
        """Whether a Host header, already well formed, names this machine."""
        name, _ = _host_and_port(header)
        return name in self._names or (self.open_to_others and _is_address(name))


def _host_and_port(header: str) -> tuple[str, int]:
    """Name, in lower case and empty for what is malformed, and port, 0 for none."""
    match = _HOST.fullmatch(header.strip(" \t"))
    return (match[1].lower(), int(match[2] or 0)) if match else ("", 0)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def request_problem(target: str, version: str, headers: Message) -> Problem | None:
    """What is malformed in the head of a request, or in its URL or range; None if nothing is."""
    text = _malformed(target, version, headers)
    return None if text is None else Problem(HTTPStatus.BAD_REQUEST, text)


def _malformed(target: str, version: str, headers: Message) -> str | None:
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        return "expected HTTP/1.1"
    if headers.defects:
        return "expected a name and a value in each line of the headers"
    lengths = headers.get_all("Content-Length", [])
    if lengths not in ([], ["0"]) or "Transfer-Encoding" in headers:
        return "expected a request without a body"
    hosts = headers.get_all("Host", [])
    name, port = _host_and_port(hosts[0]) if len(hosts) == 1 else ("", 0)
    if not name or port > _LAST_PORT:
        return "expected one Host header, with a name and a port"
    if not _TARGET.fullmatch(target) or not _is_text(target):
        return "expected a path, with %XX for the bytes of UTF-8 text"
    if any(byte_range(value, 1) is None for value in headers.get_all("Range", [])):
        return "expected a range such as bytes=0-99"
    return None


def _is_text(target: str) -> bool:
    """Whether what is escaped is UTF-8 without control characters."""
    escaped = re.sub(r"%(..)", lambda found: chr(int(found[1], 16)), target)
    try:
        return re.search(r"[\x00-\x1f\x7f]", escaped.encode("latin-1").decode()) is None
    except UnicodeDecodeError:
        return False


def byte_range(header: str | None, size: int) -> tuple[HTTPStatus, int, int] | None:
    """Status, start and end (exclusive) of an answer; None for a malformed range.

    Several ranges at once, and units other than bytes, are answered whole.
    """
    unit, _, text = (header or "").partition("=")
    if unit.strip().lower() != "bytes":
        return HTTPStatus.OK, 0, size
    found = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
    spans = [_span(match, size) for match in found if match is not None]
    if len(spans) < len(found) or None in spans:
        return None
    if len(spans) > 1 or spans[0] is None:
        return HTTPStatus.OK, 0, size
    start, end = spans[0]
    if start >= end:
        return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, 0
    return HTTPStatus.PARTIAL_CONTENT, start, end


def _span(match: re.Match[str], size: int) -> tuple[int, int] | None:
    """Start and end of one range of a file; None where it begins after its end, or is empty."""
    first, last = (_number(text) for text in match.groups())
    if first is None:
        return None if last is None else (max(size - last, 0), size)
    if last is not None and last < first:
        return None
    return first, size if last is None else min(last + 1, size)


def _number(text: str) -> int | None:
    """As many digits as a client likes; more than any file has are as good as any."""
    digits = text.lstrip("0")
    return (int(digits or 0) if len(digits) < 19 else _LARGEST) if text else None


class Clients:
    """The connections of a server: so many at a time, and none that waits for ever.

    A full server ends the connection that has waited longest for its request to make room: what only
    holds a connection keeps nobody out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, float] = {}
        self._free = threading.Semaphore(MOST_CLIENTS)
        self._inside: set[socket.socket] = set()

    def enter(self, client: socket.socket) -> bool:
        """Let a connection in; False where all are busy with answers."""
        if not self._free.acquire(blocking=False):
            with self._lock:
                longest = min(self._waiting, key=self._waiting.__getitem__, default=None)
                if longest is not None:
                    self._end(longest)
            if longest is None or not self._free.acquire(timeout=1.0):
                return False
        with self._lock:
            self._inside.add(client)
        return True

    def leave(self, client: socket.socket) -> None:
        """Note that a connection is over; one that was not let in is none."""
        with self._lock:
            self._waiting.pop(client, None)
            was_inside = client in self._inside
            self._inside.discard(client)
        if was_inside:
            self._free.release()

    def waits(self, client: socket.socket, *, waiting: bool) -> None:
        """Note that a connection waits for a request from now on, or no longer."""
        with self._lock:
            if waiting:
                self._waiting[client] = time.monotonic()
            else:
                self._waiting.pop(client, None)

    def expire(self) -> None:
        """End the connections that have waited too long."""
        oldest = time.monotonic() - SECONDS_FOR_REQUEST
        with self._lock:
            for client in [c for c, since in self._waiting.items() if since < oldest]:
                self._end(client)

    def _end(self, client: socket.socket) -> None:
        """Have its thread, which reads, find the end."""
        self._waiting.pop(client, None)
        with suppress(OSError):  # it has left by itself
            client.shutdown(socket.SHUT_RDWR)
