"""Give the command line altered files and requests, thousands of them, and see that it refuses well.

    python tools/hostile.py --cases 10000                  # makes a small pipeline and its bundle
    python tools/hostile.py --cases 1 --first 4711 --show  # that case again, with what it printed

A case is a copy of a pipeline or a bundle with one file altered, or a request to its server, by a
grammar and the case's own seed. A command reads it in its own process, forked, with limits of
memory and time, through the function that the command line calls. It must end with code 0, 1 or 2,
without a traceback, with one line that begins with "error: " where it refuses, and leave behind no
process and no file but its output.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from hostile_cases import Case, alter_given, limit, staged
from hostile_files import CANARY
from hostile_server import REQUESTS, run_requests

__all__ = ["main", "run_cases", "text_faults"]

WALL_SECONDS = 300
BLOCK = 25
"""Every case of this number starts a server, and the next ones ask it."""
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


def _listing(stage: Path) -> dict[str, tuple[int, int]]:
    """Every file but the output and what the process printed."""
    found = {}
    for path in stage.rglob("*"):
        name = path.relative_to(stage).as_posix()
        if not name.startswith(("out", "printed")):
            stat = path.lstat()
            found[name] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def _fork(stage: Path, words: Sequence[str]) -> int:
    """Run the command line in a child, in its own session; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        limit()
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


def text_faults(out: str, err: str, code: int | None) -> Iterator[str]:
    """What should not be in what a process printed and in its exit code, None where it did not end."""
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
    with staged(root, source) as stage:
        given = stage / "given"
        case.altered = alter_given(rng, given)
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
        case.faults += [*text_faults(out, err, case.code), *([orphans] if orphans else [])]
        case.faults += _file_faults(stage, before, case.code)


def run_cases(first: int, count: int, model: Path, bundle: Path) -> Iterator[Case]:
    """Run the cases from number `first`; each depends on its number alone, or on its server's."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: processes that are left become ours
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=model.parent) as root:
        number, end = first, first + count
        while number < end:
            if number % BLOCK == 0:
                asked = min(REQUESTS, end - number)
                yield from run_requests(number, asked, Path(root), bundle)
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
    for name in (
        "commands.report",
        "commands.serve",
        "commands.verify",
        "runtime",
        "serve.serving",
    ):
        importlib.import_module(f"fp4dit_onnx.{name}")
    for name in ("facts", "plots", "pages", "writing"):
        importlib.import_module(f"fp4dit_onnx.report.{name}")


def _make(folder: Path) -> tuple[Path, Path]:
    """A small pipeline with random weights, and its bundle."""
    from random_pipeline import make

    from fp4dit_onnx.exporting.export import export
    from fp4dit_onnx.exporting.request import ExportRequest

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
        gc.freeze()  # else each child copies what its collector looks at
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
