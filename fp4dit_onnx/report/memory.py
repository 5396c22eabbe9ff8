"""What a transformer takes of memory, measured in its own process; also that process's program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.files import GIVEN, decoded, parse_object
from fp4dit_onnx.report.data import Memory
from fp4dit_onnx.system.resources import peak_rss

__all__ = ["Subject", "finish", "start"]

_FORGET = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""Written there, makes Linux count the peak from now on."""


@dataclass(frozen=True)
class Subject:
    """A transformer, and how it is run.

    Attributes:
        name: as tables show it.
        kind: ``library``, ``functions`` or ``torch``.
        model: the bundle's ONNX file, which also gives the inputs.
        pipeline: folder of the float pipeline, for ``torch``.
        batch: rows of a step.
        tokens: of the text.
        threads: of one operator.
    """

    name: str
    kind: str
    model: str
    pipeline: str
    batch: int
    tokens: int
    threads: int


def start(subject: Subject) -> subprocess.Popen[str]:
    """Begin to measure; `finish` waits for the result."""
    command = [sys.executable, "-m", "fp4dit_onnx.report.memory", json.dumps(asdict(subject))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(subject.threads),
        "PYTHONSAFEPATH": "1",  # a checkout in the current folder is another package
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str]) -> Memory | str:
    """What a process that `start` began has found, or why it failed."""
    out, err = process.communicate()
    if process.returncode != 0:
        return (err.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
    return decoded(
        Memory, parse_object(out.splitlines()[-1].encode(), "a measurement", "memory", GIVEN)
    )


def _session(library: bool) -> Callable[[Subject], Callable[[], object]]:
    def load(subject: Subject) -> Callable[[], object]:
        from fp4dit_onnx.benchmark.step import StepCase
        from fp4dit_onnx.runtime.session import session

        model = Path(subject.model)
        feed = StepCase(model, None, subject.batch, subject.tokens).feed
        loaded = session(model, library=library, threads=subject.threads)
        return lambda: loaded.run(None, feed)

    return load


def _torch(subject: Subject) -> Callable[[], object]:
    from fp4dit_onnx.report.float_step import float_step

    return float_step(
        Path(subject.pipeline),
        Path(subject.model),
        subject.batch,
        subject.tokens,
        subject.threads,
    )


LOADERS = {"library": _session(True), "functions": _session(False), "torch": _torch}


def _import(kind: str) -> None:
    """All packages that the kind needs, before memory counts."""
    import onnxruntime  # noqa: F401

    import fp4dit_onnx.benchmark.step  # noqa: F401

    if kind == "torch":
        import fp4dit_onnx.report.float_step as step

        step.import_networks()


def measure(subject: Subject) -> Memory:
    """Load the transformer into this process, run it once; for a fresh process.

    Raises:
        Fp4DitError: the transformer does not load, or the system does not tell.
    """
    _import(subject.kind)
    with suppress(OSError):  # elsewhere the peak of the imports hides a smaller one
        _FORGET.write_text(_FORGET_PEAK)
    before = peak_rss()
    run = LOADERS[subject.kind](subject)
    loaded = peak_rss()
    run()
    after = peak_rss()
    if before is None or loaded is None or after is None:
        raise Fp4DitError("this system does not report the memory of a process")
    loaded = max(loaded, before)  # each counts pages that the one before it may have missed
    return Memory(subject.name, before, loaded - before, max(after, loaded) - before)


def main() -> None:
    """Be the process that is measured; its one argument is a `Subject` as JSON."""
    try:
        given = parse_object(sys.argv[1].encode(), "the argument", "a subject", GIVEN)
        print(json.dumps(asdict(measure(decoded(Subject, given)))))
    except Fp4DitError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
