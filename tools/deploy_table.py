"""Generate the same image with every runtime and write the table in docs/deploy.md.

    python tools/deploy_table.py --write                     # exports the demo's bundle first
    python tools/deploy_table.py --bundle demo-out/fp4dit --only cpp --only node --json rows.json

Every row is a process that loads the bundle and generates; its image is compared with the one that
the Python pipeline generates here with the custom-op library. A row whose runtime is absent says so
and counts as not run. Rows take turns, so that a busy moment meets all of them.

Exit codes: 0 no row failed, 1 one did, 2 the table cannot be made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from check_aarch64 import demo_bundle
from deploy_rows import ROOT, ROWS, Command, NotRunError, Row, Stage, last_line
from emulation import CheckError
from pages import Section, written_by
from PIL import Image

from fp4dit_onnx.benchmark.machine import cpu_model
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.system.resources import usable_cores

__all__ = ["SAME_PICTURE_DB", "Outcome", "judged", "table"]

Pixels = npt.NDArray[np.uint8]
TABLE = Section("deploy.md", "runtimes")
PROMPT = "giraffe face"
SAME_PICTURE_DB = 25.0
"""A value next to a rounding threshold falls on its other side in another runtime, which leaves 29
to 38 dB over 20 steps of the demo. Another seed of this prompt is 20 dB away; of many others it is
30 dB away, for which the bound would mean nothing, so the tool looks first."""
LIMIT_S = 600


@dataclass(frozen=True)
class Outcome:
    """What was found of a row.

    Attributes:
        key: the row's.
        runtime: its name.
        layers: what ran the quantized layers.
        version: of the runtime; empty if it is absent.
        psnr_db: of the image against the reference; infinite if all bits are equal.
        largest: difference of a value, of 255.
        bound_db: what `psnr_db` must reach.
        seconds: median of a process, start included; None if emulated or not run.
        problem: why there is no image.
        tried: whether the runtime was at hand.
    """

    key: str
    runtime: str
    layers: str
    version: str = ""
    psnr_db: float | None = None
    largest: int | None = None
    bound_db: float = SAME_PICTURE_DB
    seconds: float | None = None
    problem: str = ""
    tried: bool = True

    @property
    def ok(self) -> bool:
        """Whether it generated the image."""
        return self.psnr_db is not None and self.psnr_db >= self.bound_db

    @property
    def failed(self) -> bool:
        """Whether it was tried and did not."""
        return self.tried and not self.ok


def judged(
    row: Row, version: str, found: Pixels, reference: Pixels, seconds: float | None
) -> Outcome:
    """The outcome of an image, uint8 [H, W, 3], beside the reference."""
    bound = float("inf") if row.exact else SAME_PICTURE_DB
    outcome = Outcome(row.key, row.runtime, row.layers, version, bound_db=bound)
    if found.shape != reference.shape:
        problem = f"the image is {found.shape}, expected {reference.shape}"
        return replace(outcome, problem=problem)
    largest = int(np.abs(found.astype(int) - reference).max())
    distance = psnr(found, reference) if largest else float("inf")
    return replace(outcome, psnr_db=distance, largest=largest, seconds=seconds)


def run(command: Command) -> float:
    """Seconds that the process took.

    Raises:
        CheckError: it failed; the text is its last line.
    """
    command.picture.unlink(missing_ok=True)
    words = [str(word) for word in command.words]
    env = {**os.environ, **command.env}
    start = time.perf_counter()
    try:
        result = subprocess.run(
            words, env=env, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"no end after {LIMIT_S} s") from None
    seconds = time.perf_counter() - start
    if result.returncode != 0 or not command.picture.is_file():
        raise CheckError(last_line(result.stderr) or f"exit code {result.returncode}, no image")
    return seconds


def reference_picture(stage: Stage) -> Pixels:
    """The Python pipeline's image with the library.

    Raises:
        UsageError: another seed gives nearly the same, so that nothing could be told from it.
    """
    pipeline = Pipeline(stage.bundle)
    ours, other = (np.asarray(pipeline.generate([stage.prompt], seeds=seed)[0]) for seed in (0, 1))
    if (near := psnr(ours, other)) >= SAME_PICTURE_DB:
        raise UsageError(
            f"images of {stage.prompt!r} with seeds 0 and 1 are {near:.1f} dB apart: expected "
            f"less than {SAME_PICTURE_DB:g}, or no runtime could fail; take another --prompt"
        )
    return ours


def outcomes(rows: Sequence[Row], stage: Stage, rounds: int) -> list[Outcome]:
    """Prepare the rows, let them generate in turns, and judge their images."""
    reference = reference_picture(stage)
    done: dict[str, Outcome] = {}
    commands: dict[str, Command] = {}
    times: dict[str, list[float]] = {row.key: [] for row in rows}
    for row in rows:
        say(f"preparing {row.key}")
        try:
            commands[row.key] = row.prepare(row, stage)
        except (NotRunError, CheckError) as error:
            why, absent = plain_text(error, stage), isinstance(error, NotRunError)
            done[row.key] = Outcome(
                row.key, row.runtime, row.layers, problem=why, tried=not absent
            )
    for index in range(rounds):
        for row in rows:
            command = commands.get(row.key)
            if command is None or row.key in done or (command.emulated and index):
                continue
            try:
                times[row.key].append(run(command))
            except CheckError as error:
                why = plain_text(error, stage)
                done[row.key] = Outcome(
                    row.key, row.runtime, row.layers, command.version, problem=why
                )
    for row in rows:
        if row.key not in done:
            command = commands[row.key]
            seconds = None if command.emulated else statistics.median(times[row.key])
            with Image.open(command.picture) as picture:
                found = np.asarray(picture.convert("RGB"))
            done[row.key] = judged(row, command.version, found, reference, seconds)
    return [done[row.key] for row in rows]


def plain_text(error: Exception, stage: Stage) -> str:
    """An error's text without what only this machine knows."""
    text = last_line(error).removeprefix("error: ")
    for folder, name in ((stage.bundle, "BUNDLE"), (stage.work, "WORK"), (ROOT, ".")):
        text = text.replace(str(folder), name)
    return text


def table(found: Sequence[Outcome]) -> str:
    """The outcomes as Markdown."""
    titles = ("runtime", "version", "quantized layers", "image", "bound", "s per image", "")
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for row in found:
        distance = "-"
        if row.psnr_db is not None:
            same = row.largest == 0
            distance = (
                "all bits" if same else f"{row.psnr_db:.1f} dB, at most {row.largest} of 255"
            )
        bound = "all bits" if row.bound_db == float("inf") else f"{row.bound_db:g} dB"
        seconds = f"{row.seconds:.2f}" if row.seconds is not None else "-"
        lines.append(
            f"| {row.runtime} | {row.version or '-'} | {row.layers} | {distance} | {bound} "
            f"| {seconds} | {verdict(row)} |"
        )
    return "\n".join(lines)


def verdict(row: Outcome) -> str:
    """A row's last cell."""
    if row.ok:
        return "runs"
    reason = f": {row.problem}" if row.problem else ""
    text = f"{'fails' if row.tried else 'not run'}{reason}"
    return text.replace("|", "\\|").replace("\n", " ")


def caption(stage: Stage, rounds: int) -> str:
    """On what and how it was measured."""
    return (
        f"{written_by('deploy_table.py --write')}: the demo's bundle, {stage.prompt!r}, "
        f"seed 0, its 20 steps of 64x64 pixels. Seconds are those of the whole process, start "
        f"included, each runtime with its own number of threads, medians of {rounds} in turns, "
        f"on {usable_cores()} cores of an {cpu_model()} ({platform.system()} {platform.machine()})."
    )


def say(text: str) -> None:
    """A line of progress."""
    print(f"...  {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    keys = [row.key for row in ROWS]
    parser.add_argument("--only", nargs="+", action="extend", metavar="ROW", choices=keys)
    parser.add_argument("--bundle", type=Path, help="default: the demo's, exported")
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--rounds", type=int, default=3, help="images of each row")
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.page}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if given.write and given.only:
        parser.error("--write needs every row: leave out --only")
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: expected at least 1")
    return given


def plain(row: Outcome) -> dict[str, Any]:
    """A row for ``--json``, where infinity has no place."""
    values = {k: None if v == float("inf") else v for k, v in asdict(row).items()}
    return {**values, "ok": row.ok, "exact": row.largest == 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's text for the exit codes."""
    given = parse(arguments)
    rows = [row for row in ROWS if not given.only or row.key in given.only]
    with tempfile.TemporaryDirectory() as scratch:
        work = (given.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            bundle = given.bundle.resolve() if given.bundle else demo_bundle(work)
            stage = Stage(bundle, work, given.prompt)
            found = outcomes(rows, stage, given.rounds)
        except (CheckError, Fp4DitError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    text = f"{caption(stage, given.rounds)}\n\n{table(found)}"
    print(json.dumps([plain(row) for row in found], indent=1) if given.json else text)
    if given.write:
        TABLE.write(text)
    return 1 if any(row.failed for row in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
