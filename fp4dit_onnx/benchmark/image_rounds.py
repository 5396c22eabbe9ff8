"""Images in turns: each turn is a process of its own, which loads, makes one image and ends.

So a backend has the machine's memory to itself, the peak is its own, and loading is measured as often
as the image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fp4dit_onnx.benchmark.backend import Absent, Backend
from fp4dit_onnx.benchmark.cold import drop_pages
from fp4dit_onnx.benchmark.image import ImageCase
from fp4dit_onnx.benchmark.image_process import PREPARE
from fp4dit_onnx.benchmark.rounds import Spread, interleave, ratios
from fp4dit_onnx.benchmark.run import Settings
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.files import GIVEN, read_json, write_text
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.progress import Reporter

__all__ = ["ROUNDS", "ImageOutcome", "ImageReport", "run_image"]

ROUNDS = 3
"""Unless another number is asked for."""


@dataclass(frozen=True)
class ImageOutcome:
    """The result of one backend; seconds and bytes are spreads over rounds.

    Attributes:
        name: of the backend.
        about: what it computed.
        isa: its instruction set, of ours only.
        threads: how many.
        rounds: that it took part in.
        load: seconds from the start of loading until it is ready, imports included.
        seconds: from the prompt to the file.
        stages: stage -> seconds of all its calls; ``rest`` is tokenizer, scheduler and file.
        step: seconds of a call of the transformer, the mean of an image.
        peak_bytes: largest resident set of the process; None where the system does not say.
        ratio: how many times as fast as the baseline it was, round by round; None without baseline.
        memory_ratio: its peak over the baseline's, medians; None without.
        psnr_db: of its image against the baseline's; None of the baseline itself.
    """

    name: str
    about: str
    isa: str | None
    threads: int
    rounds: int
    load: Spread
    seconds: Spread
    stages: Mapping[str, Spread]
    step: Spread
    peak_bytes: Spread | None
    ratio: Spread | None
    memory_ratio: float | None = None
    psnr_db: float | None = None


@dataclass(frozen=True)
class ImageReport:
    """A case and the results of all backends; fields as `run.Report` has them."""

    kind: str
    name: str
    prompt: str
    baseline: str
    outcomes: tuple[ImageOutcome, ...]
    absent: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class _Turns:
    """The turns of one backend."""

    case: ImageCase
    backend: Backend[Any]
    settings: Settings
    found: list[dict[str, Any]]

    @property
    def image(self) -> Path:
        """The file that its turns write."""
        return self.case.work / f"{self.backend.name}.png"

    def prepare(self) -> None:
        """Make its files, if it has some; raises as calling it does."""
        if reason := self.backend.why_absent():
            raise Absent(reason)
        if self.backend.prepare is not None:
            self._ask(**{PREPARE: True})

    def __call__(self) -> float:
        """Take a turn; seconds from the prompt to the file.

        Raises:
            Absent: it cannot make the image.
            UsageError: ours cannot, so that what was asked for is at fault.
        """
        if self.settings.cold:
            drop_pages(self.case.folders)
        self.found.append(self._ask())
        return float(self.found[-1]["seconds"])

    def _ask(self, **more: object) -> dict[str, Any]:
        own, order = self.backend, self.case.work / "order.json"
        result = self.case.work / "result.json"
        result.unlink(missing_ok=True)
        asked = {
            "case": self.case.to_json(),
            "backend": own.name,
            "isas": [own.isa] if own.isa else [],
            "threads": self.settings.threads,
            "image": str(self.image),
            "result": str(result),
        }
        write_text(order, json.dumps({**asked, **more}))
        command = [sys.executable, "-P", "-m", "fp4dit_onnx.benchmark.image_process", str(order)]
        kernels = {"FP4DIT_ISA": own.isa} if own.isa and self.case.device == "cpu" else {}
        done = subprocess.run(
            command, env={**os.environ, **kernels}, capture_output=True, text=True
        )
        if not result.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Absent(f"its process ended with {_ending(done.returncode)}: {last}")
        found: dict[str, Any] = read_json(result, "what was measured", GIVEN)
        if "refused" in found:
            raise (UsageError if own.isa and found["usage"] else Absent)(found["refused"])
        return found


def _ending(code: int) -> str:
    return f"signal {-code}, perhaps for lack of memory" if code < 0 else f"exit code {code}"


def run_image(
    case: ImageCase,
    backends: Sequence[Backend[Any]],
    baseline: str,
    settings: Settings,
    reporter: Reporter,
) -> ImageReport:
    """Make the image with all `backends`, in turns.

    Raises:
        UsageError: the bundle cannot make it.
    """
    rounds = ROUNDS if settings.rounds is None else settings.rounds
    with scratch_folder() as work:
        placed = replace(case, work=Path(work))
        turns = {b.name: _Turns(placed, b, settings, []) for b in backends}
        absent: dict[str, str] = {}
        with reporter.stage("image: preparing", len(turns), "backends") as advance:
            for name, one in turns.items():
                _tried(one.prepare, name, absent)
                advance(1, name)
        present = {
            n: partial(_tried, one, n, absent) for n, one in turns.items() if n not in absent
        }
        with reporter.stage(f"image {case.name}", rounds * len(present), "images") as advance:
            times = interleave(
                present,
                dict.fromkeys(present, rounds),
                rest=lambda: None,
                advance=lambda name: advance(1, name),
            )
        outcomes = [
            _outcome(turns[n], ratios(times, n, baseline)) for n in present if n not in absent
        ]
        compared = tuple(_against(one, turns, outcomes, baseline) for one in outcomes)
    return ImageReport(case.kind, case.name, case.prompt, baseline, compared, absent)


def _tried(call: Any, name: str, absent: dict[str, str]) -> float | None:
    """What `call` gives; None, and a reason in `absent`, where a backend cannot."""
    if name in absent:
        return None
    try:
        found: float | None = call()
    except Absent as reason:
        absent[name] = str(reason)
        return None
    return found


def _outcome(turns: _Turns, compared: Sequence[float]) -> ImageOutcome:
    found, own = turns.found, turns.backend

    def spread(values: Sequence[float]) -> Spread:
        return Spread.of([float(value) for value in values])

    peaks = [one["peak_bytes"] for one in found if one["peak_bytes"] is not None]
    return ImageOutcome(
        name=own.name,
        about=own.about,
        isa=own.isa,
        threads=turns.settings.threads,
        rounds=len(found),
        load=spread([one["load"] for one in found]),
        seconds=spread([one["seconds"] for one in found]),
        stages={s: spread([one["stages"][s] for one in found]) for s in found[0]["stages"]},
        step=spread([one["stages"]["step"] / max(one["calls"], 1) for one in found]),
        peak_bytes=spread(peaks) if peaks else None,
        ratio=spread(compared) if compared else None,
    )


def _against(
    one: ImageOutcome,
    turns: Mapping[str, _Turns],
    outcomes: Sequence[ImageOutcome],
    baseline: str,
) -> ImageOutcome:
    """`one` with its memory and image beside the baseline's."""
    base = next((b for b in outcomes if b.name == baseline), None)
    if base is None:
        return one
    memory = None
    if one.peak_bytes and base.peak_bytes:
        memory = one.peak_bytes.median / base.peak_bytes.median
    if one is base:
        return replace(one, memory_ratio=memory)
    pixels = [np.asarray(Image.open(turns[name].image)) for name in (one.name, baseline)]
    return replace(one, memory_ratio=memory, psnr_db=psnr(*pixels))
