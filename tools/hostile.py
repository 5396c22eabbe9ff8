"""Give the command line altered files and requests, thousands of them, and see that it refuses well.

    python tools/hostile.py --cases 10000                  # makes a small pipeline and its bundle
    python tools/hostile.py --cases 1 --first 4711 --show  # that case again, with what it printed

A case is a copy of a pipeline or a bundle with one file altered, or a request to its server, by a
grammar and the case's own seed. A command reads it in a process of its own, forked, with limits of
memory and time, through the function that the command line calls. It must end with code 0, 1 or 2,
without a traceback, with one line that begins with "error: " where it refuses, and leave behind no
process and no file but its output.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from hostile_files import CANARY, SECRET, alter, altered_request, linked_copy, refresh_manifest

__all__ = ["Case", "main", "run_cases"]

MEMORY = 3 * 2**30
"""Address space that a case may take beyond what its process begins with."""
CPU_SECONDS = 60
WALL_SECONDS = 300
BLOCK = 25
"""Every case of this number starts a server, and the next ones ask it."""
REQUESTS = 5
"""To one server, whose bundle is altered or not; each is a case."""
THREADS = 100
"""More in a server are not bounded by anything."""
EXPORT = ("export", "{}", "--method", "fp-rtn", "--no-report", "--no-measure", "-o", "{out}")
ALONE = ("--components", "transformer")
ON_MODEL = {
    ("inspect", "{}"): 45,
    ("inspect", "{}", "--json"): 10,
    (*EXPORT, *ALONE, "--dry-run"): 30,
    (*EXPORT, "--dry-run", "--json"): 14,
    (*EXPORT, *ALONE): 1,
}
"""Commands that read a pipeline, and how often each is tried."""
ON_BUNDLE = {
    ("inspect", "{}"): 45,
    ("convert", "{}", "-o", "{out}", "--target", "standard", "--dry-run"): 20,
    ("convert", "{}", "-o", "{out}", "--target", "inline"): 2,
    ("verify", "{}", "--quick"): 3,
    ("report", "{}", "-o", "{out}.html"): 5,
    ("serve", "{}", "-o", "{out}"): 10,
    ("generate", "{}", "--prompt", "a cube", "--steps", "1", "-o", "{out}.png"): 15,
}
"""Commands that read a bundle."""


@dataclass
class Case:
    """One trial.

    Attributes:
        number: its seed.
        target: model, bundle or server.
        altered: the file, and what was done to it.
        command: the words given.
        code: how the process ended; negative for a signal.
        faults: what should not be.
        seconds: that it took.
        said: what it printed.
    """

    number: int
    target: str
    altered: str = ""
    command: str = ""
    code: int | None = None
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    said: str = ""


@contextmanager
def _stage(root: Path, source: Path) -> Iterator[Path]:
    """A folder with a linked copy of `source` as ``given``, a secret, and empty places to write."""
    stage = Path(tempfile.mkdtemp(prefix="case-", dir=root))
    try:
        for name in ("home", "tmp", "cwd"):
            (stage / name).mkdir()
        (stage / SECRET).write_text(CANARY)
        linked_copy(source, stage / "given")
        yield stage
    finally:
        shutil.rmtree(stage)


def _listing(stage: Path) -> dict[str, tuple[int, int]]:
    """Every file but the output and what the process printed."""
    found = {}
    for path in stage.rglob("*"):
        name = path.relative_to(stage).as_posix()
        if not name.startswith(("out", "printed")):
            stat = path.lstat()
            found[name] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def _alter_given(rng: random.Random, given: Path) -> str:
    files = sorted(p for p in given.rglob("*") if p.is_file())
    plain = [p for p in files if p.suffix in (".json", ".safetensors", ".onnx", ".txt", ".model")]
    path = rng.choice(plain if rng.random() < 0.95 else files)
    name = path.relative_to(given).as_posix()
    what = alter(rng, path, given)
    manifest = given / "quantization.json"
    of_bundle = manifest.is_file() and path != manifest
    if of_bundle and path.is_file() and not path.is_symlink() and rng.random() < 0.7:
        refresh_manifest(given, path)
        what += "; the manifest agrees"
    return f"{name}: {what}"


def _fork(stage: Path, words: Sequence[str]) -> int:
    """Run the command line in a child, in its own session; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        _limit()
        os.chdir(stage / "cwd")
        os.environ |= {"HOME": str(stage / "home"), "TMPDIR": str(stage / "tmp")}
        tempfile.tempdir = None
        for number, name in ((1, "printed.out"), (2, "printed.err")):
            os.dup2(os.open(stage / name, os.O_WRONLY | os.O_CREAT), number)
        from fp4dit_onnx.cli import main as command_line

        try:
            command_line(list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # a traceback is what is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(child: int) -> int | None:
    """The exit code, negative for a signal; None where time ran out."""
    end = time.monotonic() + WALL_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _orphans(child: int) -> str | None:
    """Processes that outlived their session's leader; they are ended."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    else:
        return "a process of its group is left"
    left = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    for process in left:
        os.kill(int(process), signal.SIGKILL)
        os.waitpid(int(process), 0)
    return f"{len(left)} processes are left" if left else None


def _text_faults(out: str, err: str, code: int | None) -> Iterator[str]:
    if code not in (0, 1, 2):
        yield "ran out of time" if code is None else f"exit code {code}"
    if "Traceback (most recent call last)" in err + out:
        yield "a traceback: " + next(iter(reversed(err.strip().splitlines())), "")[:200]
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
        yield (
            f"{len(errors)} lines of error, and {lines[-1][:100]!r} at the end"
            if lines
            else "silent"
        )
    if code == 1 and not errors and not out:
        yield "fails without a word"
    if code == 0 and errors:
        yield "an error and exit code 0"
    strange = {c for c in out + err if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    if strange:
        yield f"control characters {sorted(strange)!r} on the terminal"
    if CANARY in out + err:
        yield "a file outside the folder was read"


def _file_faults(
    stage: Path, before: dict[str, tuple[int, int]], code: int | None
) -> Iterator[str]:
    after = _listing(stage)
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    if changed:
        yield f"files outside the output: {', '.join(changed[:3])}"
    outputs = sorted(stage.glob("out*"))
    if outputs and code == 2:
        yield f"refused, and left {outputs[0].name}"
    written = (p for o in outputs for p in ([o] if o.is_file() else o.rglob("*")) if p.is_file())
    if any(CANARY.encode() in p.read_bytes() for p in written):
        yield "a file outside the folder was copied"


def _run_command(case: Case, root: Path, source: Path, rng: random.Random) -> None:
    table = ON_MODEL if case.target == "model" else ON_BUNDLE
    with _stage(root, source) as stage:
        given = stage / "given"
        case.altered = _alter_given(rng, given)
        (template,) = rng.choices(list(table), list(table.values()))
        words = [word.format(given, out=stage / "out") for word in template]
        case.command = " ".join(words).replace(str(stage), "")
        before, start = _listing(stage), time.monotonic()
        child = _fork(stage, words)
        case.code = _wait(child)
        case.seconds = time.monotonic() - start
        texts = [stage / f"printed.{n}" for n in ("out", "err")]
        out, err = (p.read_text(errors="replace") if p.exists() else "" for p in texts)
        case.said = out[-2000:] + err[-3000:]
        orphans = _orphans(child)
        case.faults += [*_text_faults(out, err, case.code), *([orphans] if orphans else [])]
        case.faults += _file_faults(stage, before, case.code)


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
        _limit()
        os.dup2(os.open(stage / "printed.err", os.O_WRONLY | os.O_CREAT), 2)
        from fp4dit_onnx.bundle import Bundle
        from fp4dit_onnx.errors import Fp4DitError
        from fp4dit_onnx.serving import Server

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
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.settimeout(20)
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            got = b""
            while len(got) < 1 << 16 and (part := connection.recv(1 << 16)):
                got += part
        except (ConnectionResetError, BrokenPipeError):
            return got if "got" in locals() else b""
    return got


def _request_faults(answer: bytes, named: str, host: str) -> Iterator[str]:
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


def _run_requests(first: int, count: int, root: Path, source: Path) -> list[Case]:
    """A server, and as many requests to it."""
    rng = random.Random(first)
    cases = [Case(first + i, "server") for i in range(count)]
    with _stage(root, source) as stage:
        altered = _alter_given(rng, stage / "given") if rng.random() < 0.5 else "nothing"
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
            case.faults += _request_faults(answer, named, host)
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


def run_cases(first: int, count: int, model: Path, bundle: Path) -> Iterator[Case]:
    """Run the cases from number `first`; each depends on its number alone, or on its server's."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: processes that are left become ours
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=model.parent) as root:
        number, end = first, first + count
        while number < end:
            if number % BLOCK == 0:
                asked = min(REQUESTS, end - number)
                yield from _run_requests(number, asked, Path(root), bundle)
                number += asked
                continue
            rng = random.Random(number)
            case = Case(number, "model" if rng.random() < 0.5 else "bundle")
            source = model if case.target == "model" else bundle
            _run_command(case, Path(root), source, rng)
            yield case
            number += 1


def _prepare(model: Path, bundle: Path) -> None:
    """Import now what cases would import each, by running what starts no threads: a fork has it."""
    from fp4dit_onnx.cli import main as command_line

    commands: list[dict[tuple[str, ...], int]] = [ON_MODEL, ON_BUNDLE]
    for given, table in zip((model, bundle), commands, strict=True):
        for template in table:
            if template[0] == "inspect" or "--dry-run" in template:
                with contextlib.suppress(SystemExit), redirect_stdout(io.StringIO()):
                    command_line([word.format(given, out=given / "out") for word in template])
    for name in ("commands.report", "commands.serve", "commands.verify", "runtime", "serving"):
        importlib.import_module(f"fp4dit_onnx.{name}")
    for name in ("facts", "plots", "pages", "writing"):
        importlib.import_module(f"fp4dit_onnx.report.{name}")


def _make(folder: Path) -> tuple[Path, Path]:
    """A small pipeline with random weights, and its bundle."""
    from random_pipeline import make

    from fp4dit_onnx.export import export
    from fp4dit_onnx.request import ExportRequest

    make("pixart-alpha-512", folder / "model", twin=True)
    request = ExportRequest(
        output=folder / "bundle",
        model=folder / "model",
        method="fp-rtn",
        measure=False,
        report=False,
    )
    export(request)
    return folder / "model", folder / "bundle"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 1 where a case shows a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--model", type=Path, help="a small pipeline; by default one is made")
    parser.add_argument("--bundle", type=Path, help="its bundle")
    parser.add_argument("--show", action="store_true", help="print every case")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each fault")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hostile-") as made:
        model, bundle = given.model, given.bundle
        if model is None or bundle is None:
            child = os.fork()  # what an export starts, threads included, is not forked with cases
            if child == 0:
                _make(Path(made))
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit("the pipeline or its bundle cannot be made")
            model, bundle = Path(made) / "model", Path(made) / "bundle"
        _prepare(model, bundle)
        start, codes, faulty = time.monotonic(), Counter[str](), 0
        for case in run_cases(given.first, given.cases, model, bundle):
            codes[f"{case.target} {case.code}"] += 1
            faulty += bool(case.faults)
            if case.faults or given.show:
                print(json.dumps(asdict(case)) if given.json else _shown(case), flush=True)
    counted = ", ".join(f"{what}: {count}" for what, count in sorted(codes.items()))
    seconds = time.monotonic() - start
    print(f"{codes.total()} cases in {seconds:.0f} s, {faulty} with faults ({counted})")
    raise SystemExit(1 if faulty else 0)


def _shown(case: Case) -> str:
    said = case.said if len(case.said) < 1500 else "... " + case.said[-1500:]
    return (
        f"case {case.number}: {case.command}\n  {case.altered}\n  code {case.code}, "
        f"{case.seconds:.2f} s; {'; '.join(case.faults) or 'no fault'}\n  {said.strip()}\n"
    )


if __name__ == "__main__":
    main()
