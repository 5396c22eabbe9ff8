"""Time and memory of one denoising step: the float model, and the bundle in both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

from fp4dit_onnx.benchmark.contestant import Contestant, Loaded
from fp4dit_onnx.benchmark.run import Settings, run_case
from fp4dit_onnx.benchmark.step import PEERS, StepCase, ours
from fp4dit_onnx.library import Library
from fp4dit_onnx.progress import Reporter
from fp4dit_onnx.report import memory
from fp4dit_onnx.report.data import FLOAT, FUNCTIONS, LIBRARY, Memory, Speed, Timing

__all__ = [
    "StepSetting",
    "collected",
    "measure_speed",
    "measuring_memory",
]

KINDS = {FLOAT: "torch", LIBRARY: "library", FUNCTIONS: "functions"}
"""Who computes -> kind of `memory.Subject`."""
SECONDS = 1.0
"""For all rounds together."""


@dataclass(frozen=True)
class StepSetting:
    """The step that is measured.

    Attributes:
        model: the bundle's transformer.
        pipeline: folder of the float pipeline.
        batch: rows; two a picture where guidance is used.
        tokens: of the text.
        threads: of each model.
    """

    model: Path
    pipeline: Path
    batch: int
    tokens: int
    threads: int


def measure_speed(setting: StepSetting, reporter: Reporter) -> Speed:
    """Time all models in turns.

    Raises:
        LibraryError: the custom-op library cannot be used.
    """
    isa = Library().isa
    functions = next(peer for peer in PEERS if peer.name == "ort-functions")
    contestants = (
        Contestant(FLOAT, "the float transformer in torch", _float(setting), "torch"),
        replace(ours(isa), name=LIBRARY, about=f"ONNX Runtime with the library, {isa} kernels"),
        replace(functions, name=FUNCTIONS, about="ONNX Runtime alone, function bodies"),
    )
    case = StepCase(setting.model, None, setting.batch, setting.tokens)
    found = run_case(case, contestants, FLOAT, Settings(setting.threads, SECONDS), reporter)
    timings = tuple(Timing(o.name, o.about, o.seconds, o.rounds) for o in found.outcomes)
    return Speed(setting.batch, setting.tokens, setting.threads, isa, timings, found.absent)


def _float(setting: StepSetting) -> Callable[[StepCase, int], Loaded]:
    def load(case: StepCase, threads: int) -> Loaded:
        from fp4dit_onnx.report.float_step import float_step

        run = float_step(setting.pipeline, case.model, case.batch, case.tokens, threads)
        return Loaded(run, run)

    return load


@contextmanager
def measuring_memory(setting: StepSetting) -> Iterator[dict[str, Popen[str]]]:
    """Processes that measure each model's memory, by name; none is left behind."""
    processes: dict[str, Popen[str]] = {}
    try:
        for name, kind in KINDS.items():
            subject = memory.Subject(
                name=name,
                kind=kind,
                model=str(setting.model),
                pipeline=str(setting.pipeline),
                batch=setting.batch,
                tokens=setting.tokens,
                threads=setting.threads,
            )
            processes[name] = memory.start(subject)
        yield processes
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


def collected(processes: dict[str, Popen[str]]) -> tuple[tuple[Memory, ...], str | None]:
    """What the processes found, and the first reason why one found nothing."""
    found = [memory.finish(process) for process in processes.values()]
    failed = (one for one in found if isinstance(one, str))
    return tuple(one for one in found if isinstance(one, Memory)), next(failed, None)
