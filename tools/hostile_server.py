"""Requests of tools/hostile.py to a bundle's server: what is asked, what must not be answered."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from hostile_cases import Case, alter_given, limit, staged
from hostile_files import CANARY, SECRET

__all__ = ["REQUESTS", "request_faults", "run_requests"]

REQUESTS = 5
"""To one server, whose bundle is altered or not; each is a case."""
THREADS = 100
"""More in a server are not bounded by anything."""


def altered_request(rng: random.Random, paths: list[str], host: str) -> tuple[bytes, str]:
    """A request of HTTP with one or more parts altered, and the host it names."""
    method = rng.choice(
        (*(["GET"] * 6), "HEAD", "POST", "get", "", "G" * 9000, "GET\0", "OPTIONS")
    )
    target = rng.choice(
        (
            *(rng.choice(paths) for _ in range(6)),
            *("*", "", "//", "/%00", "/%ff", "/../" + SECRET, "/%2e%2e/" + SECRET, "/" * 70_000),
            *(
                "/bundle/../../" + SECRET,
                "http://evil.example/",
                "/bundle/step_table.json?steps=-1",
            ),
            *(
                "/bundle/step_table.json?steps=999999",
                "/bundle/step_table.json?steps=" + "9" * 5000,
            ),
        )
    )
    version = rng.choice((*(["HTTP/1.1"] * 6), "HTTP/1.0", "HTTP/9.9", "HTTP/x", "", "HTTP/1.1 x"))
    named = rng.choice((*([host] * 6), "evil.example", "evil.example:80", "", "[::1", "a" * 5000))
    size = rng.choice((0, 1, 5, 10**18, 10**30))
    lines = [
        f"Host: {named}",
        f"Range: bytes={size}-",
        f"Range: bytes=-{size}",
        f"Range: bytes={size}-{size // 2}",
        "Range: bytes=0-1,2-3",
        "Range: bytes=" + "9" * 5000 + "-",
        "Content-Length: -1",
        f"Content-Length: {size}",
        "Transfer-Encoding: chunked",
        "If-None-Match: " + '"' * rng.choice((1, 5000)),
        "no colon",
        ": no name",
        "X: \x00\x1b[31m\xff",
        *(f"X-{i}: {i}" for i in range(rng.choice((1, 150)))),
    ]
    chosen = [lines[0], *rng.sample(lines[1:13], rng.choice((0, 0, 1, 2))), *lines[13:14]]
    if rng.random() < 0.05:
        chosen += lines[13:]
    end = rng.choice((*(["\r\n"] * 8), "\n", "\r"))
    text = end.join([f"{method} {target} {version}", *chosen]) + 2 * end
    raw = text.encode("latin-1", "replace")
    if rng.random() < 0.1:
        raw = rng.randbytes(rng.choice((1, 100))) + raw[rng.randrange(10) :]
    return raw, named


def _serve(stage: Path) -> tuple[int, int]:
    """Start a server of the bundle in a child; returns its process id and port, 0 if it refuses."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            return child, int(pipe.readline() or 0)
    try:
        os.setsid()
        limit()
        os.dup2(os.open(stage / "printed.err", os.O_WRONLY | os.O_CREAT), 2)
        from fp4dit_onnx.bundle.bundle import Bundle
        from fp4dit_onnx.errors import Fp4DitError
        from fp4dit_onnx.serve.serving import Server

        try:
            server = Server(Bundle.open(stage / "given"), "127.0.0.1", 0)
        except Fp4DitError:
            os._exit(2)
        os.write(writing, f"{server.server_address[1]}\n".encode())
        server.serve_forever()
    except BaseException:  # a traceback is what is looked for
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(70)


def _answer(port: int, request: bytes) -> bytes:
    """What the server answers, the first of it; whoever asks half a request waits a moment only."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.settimeout(20)
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while len(got) < 1 << 16 and (part := connection.recv(1 << 16)):
                got += part
        except OSError as error:  # the server may close while we still talk
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
    return got


def request_faults(answer: bytes, named: str) -> Iterator[str]:
    """What should not be in an answer to a request that names the host `named`."""
    status = answer[9:12]
    if answer and not (answer.startswith(b"HTTP/1.") and status.isdigit()):
        plain = b"Error response" in answer  # to a request of HTTP 0.9
        if not plain:
            yield f"no answer of HTTP: {answer[:60]!r}"
    if status == b"500":
        yield "status 500"
    if CANARY.encode() in answer:
        yield "a file outside the bundle is served"
    if status == b"200" and named.startswith("evil"):
        yield f"an answer to the host {named}"


def run_requests(first: int, count: int, root: Path, source: Path) -> list[Case]:
    """A server, and as many requests to it."""
    rng = random.Random(first)
    cases = [Case(first + i, "server") for i in range(count)]
    with staged(root, source) as stage:
        altered = alter_given(rng, stage / "given") if rng.random() < 0.5 else "nothing"
        child, port = _serve(stage)
        paths = ["/", "/js/page.js", "/bundle/quantization.json", "/bundle/nothing"]
        paths += [f"/bundle/{p.relative_to(source).as_posix()}" for p in source.rglob("*.*")]
        host = f"127.0.0.1:{port}"
        for case in cases if port else ():
            request, named = altered_request(random.Random(case.number), paths, host)
            case.altered, case.command = altered, repr(request[:200])
            start = time.monotonic()
            try:
                answer = _answer(port, request)
            except OSError as error:
                case.faults.append(f"the server does not answer: {error}")
                break
            case.seconds, case.said = time.monotonic() - start, repr(answer[:300])
            case.code = 0
            case.faults += request_faults(answer, named)
        if port:
            status = Path(f"/proc/{child}/status").read_text()
            threads = int(status.partition("Threads:")[2].split()[0])
            if threads > THREADS:
                cases[-1].faults.append(f"{threads} threads")
            os.kill(child, signal.SIGKILL)
        else:
            for case in cases:
                case.altered, case.code = altered, 2
        os.waitpid(child, 0)
        printed = stage / "printed.err"
        if printed.exists() and "Traceback" in (text := printed.read_text(errors="replace")):
            cases[-1].faults.append("the server printed a traceback")
            cases[-1].said = text[-3000:]
    return cases
