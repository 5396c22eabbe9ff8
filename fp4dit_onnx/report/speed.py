"""Time and memory of one denoising step: the float model, and the bundle in both ways."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

from fp4dit_onnx.benchmark.backend import Backend, Loaded
from fp4dit_onnx.benchmark.run import Settings, run_case
from fp4dit_onnx.benchmark.step import PEERS, StepCase, ours
from fp4dit_onnx.report import memory
from fp4dit_onnx.report.data import FLOAT, FUNCTIONS, LIBRARY, Memory, Speed, Timing
from fp4dit_onnx.runtime.library import Library
from fp4dit_onnx.system.progress import Reporter

__all__ = [
    "StepSetting",
    "measure_speed",
    "measuring_memory",
]

KINDS = {FLOAT: "torch", LIBRARY: "library", FUNCTIONS: "functions"}
"""Who computes -> kind of `memory.Subject`."""
MemoryFound = tuple[tuple[Memory, ...], str | None]
SECONDS = 1.0
"""For all rounds together."""


@dataclass(frozen=True)
class StepSetting:
    """The step that is measured.

    Attributes:
        model: the bundle's transformer.
        pipeline: folder of the float pipeline.
        batch: rows; two per image where guidance is used.
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
    backends = (
        Backend(FLOAT, "the float transformer in torch", _float(setting), "torch"),
        replace(ours(isa), name=LIBRARY, about=f"ONNX Runtime with the library, {isa} kernels"),
        replace(functions, name=FUNCTIONS, about="ONNX Runtime alone, function bodies"),
    )
    case = StepCase(setting.model, None, setting.batch, setting.tokens)
    with _torch_threads_kept():
        found = run_case(case, backends, FLOAT, Settings(setting.threads, SECONDS), reporter)
    timings = tuple(Timing(o.name, o.about, o.seconds, o.rounds) for o in found.outcomes)
    return Speed(setting.batch, setting.tokens, setting.threads, isa, timings, found.absent)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Torch's number of threads belongs to the process: sums depend on it, in the last bits."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _float(setting: StepSetting) -> Callable[[StepCase, int], Loaded]:
    def load(case: StepCase, threads: int) -> Loaded:
        from fp4dit_onnx.report.float_step import float_step

        run = float_step(setting.pipeline, case.model, case.batch, case.tokens, threads)
        return Loaded(run, run)

    return load


@contextmanager
def measuring_memory(setting: StepSetting) -> Iterator[Callable[[], MemoryFound]]:
    """Meanwhile, measure each model's memory in their own processes, one at a time.

    Yields a function that waits for what was found, and for the first reason why something was not.
    """
    begun: list[Popen[str]] = []
    ended = threading.Event()

    def measure_all() -> MemoryFound:
        found: list[Memory | str] = []
        for name, kind in KINDS.items():
            if not ended.is_set():
                begun.append(memory.start(_subject(setting, name, kind)))
                found.append(memory.finish(begun[-1]))
        failed = next((one for one in found if isinstance(one, str)), None)
        return tuple(one for one in found if isinstance(one, Memory)), failed

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(measure_all)
        try:
            yield future.result
        finally:
            ended.set()
            for process in begun:
                if process.poll() is None:
                    process.kill()


def _subject(setting: StepSetting, name: str, kind: str) -> memory.Subject:
    return memory.Subject(
        name=name,
        kind=kind,
        model=str(setting.model),
        pipeline=str(setting.pipeline),
        batch=setting.batch,
        tokens=setting.tokens,
        threads=setting.threads,
    )
