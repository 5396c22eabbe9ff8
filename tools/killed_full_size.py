"""kill -9 during a calibrated export of official size: the same command goes on to the same bytes.

    python tools/killed_full_size.py --folder /somewhere/with/20/GB
    python tools/killed_full_size.py --folder /tmp/small --twin

Makes a pipeline as tools/random_pipeline.py does, PixArt-XL/2 256 with its T5-XXL by default, and
exports its transformer by FP4DiT's method: once without a break, and once killed while the float
sampler runs, in an early and in a later unit, the same command given again each time. Prints a row of
docs/models.md.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from endings import ends_in_a_line
from pages import commit
from random_pipeline import Progress, make

from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.export import ExportRequest
from fp4dit_onnx.exporting.plan import work_folder
from fp4dit_onnx.files import sha256_of

__all__ = ["MOMENTS", "Moment", "compared", "main"]

MODEL = "pixart-alpha-256"
OPTIONS = (
    *("--bits", "w4a6", "--components", "transformer", "--no-report", "--preset", "fast"),
    *("--calibration-prompts", "2", "--steps", "2", "--samples", "4", "--iterations", "5"),
)
TRAINED = "transformer_blocks.1.* transformer_blocks.2.*"
"""Blocks that are trained; the others are rounded to nearest, which takes less time."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        name: in words.
        come: whether the moment has come, by what the work folder holds.
        seconds: to wait then.
    """

    name: str
    come: Callable[[Path], bool]
    seconds: float


def _finished(units: int) -> Callable[[Path], bool]:
    return lambda work: len([*(work / "units").glob("*.safetensors")]) >= units


MOMENTS = (
    Moment("sampling", lambda work: (work / "importance.pt").exists(), 1.0),
    Moment("2 units done", _finished(2), 2.0),
    Moment("5 units done", _finished(5), 2.0),
)


def _command(folder: Path, source: Path, output: Path) -> list[str]:
    recipe = folder / "only.toml"
    recipe.write_text(f'extends = "fp4dit"\n[adaround]\nonly = "{TRAINED}"\n')
    start = [sys.executable, "-P", "-m", "fp4dit_onnx", "export", str(source), "-o", str(output)]
    return [*start, "--recipe", str(recipe), *OPTIONS]


def run(command: Sequence[str]) -> float:
    """Seconds of a run to its end.

    Raises:
        Fp4DitError: it failed.
    """
    start = time.monotonic()
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Fp4DitError(f"the export failed with code {done.returncode}")
    return time.monotonic() - start


def run_killed(command: Sequence[str], work: Path, moment: Moment) -> float:
    """Seconds of a run until it was killed.

    Raises:
        Fp4DitError: it ended before.
    """
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not moment.come(work):
        time.sleep(LOOK_SECONDS)
    time.sleep(moment.seconds)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise Fp4DitError(f"the export ended with code {process.returncode} before: {moment.name}")
    return time.monotonic() - start


def digests(bundle: Path) -> dict[str, str]:
    """SHA-256 of each file but the manifest, which has times and memory."""
    files = (p for p in bundle.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(file.relative_to(bundle)): sha256_of(file) for file in files}


def compared(whole: Mapping[str, str], resumed: Mapping[str, str]) -> list[str]:
    """Names of files that are not the same in both."""
    return sorted(name for name in {*whole, *resumed} if whole.get(name) != resumed.get(name))


def measure(folder: Path, model: str, *, twin: bool, keep: bool) -> str:
    """Make, export twice, compare: a row of the table.

    Raises:
        Fp4DitError: a run failed, or the bytes differ.
    """
    source = folder / f"{model}.checkpoint"
    if not source.exists():
        dtype = "float32" if twin else "bfloat16"
        make(model, source, twin=twin, dtype=dtype, note=Progress())
    whole, resumed = folder / "whole.bundle", folder / "resumed.bundle"
    work, other = (work_folder(ExportRequest(output=bundle)) for bundle in (resumed, whole))
    made = (whole, resumed, work, other)
    for path in made:
        shutil.rmtree(path, ignore_errors=True)
    try:
        once = run(_command(folder, source, whole))
        print(f"without a break: {once:.0f} s", file=sys.stderr, flush=True)
        command = _command(folder, source, resumed)
        parts = []
        for moment in MOMENTS:
            parts.append(run_killed(command, work, moment))
            print(f"killed: {moment.name}, {parts[-1]:.0f} s", file=sys.stderr, flush=True)
        parts.append(run(command))
        files = digests(whole)
        different = compared(files, digests(resumed))
    finally:
        if not keep:
            for path in (source, *made):
                shutil.rmtree(path, ignore_errors=True)
    if different:
        raise Fp4DitError(f"{len(different)} files differ: {', '.join(different[:3])}")
    moments = ", ".join(moment.name for moment in MOMENTS)
    seconds = " + ".join(f"{part:.0f}" for part in parts)
    return (
        f"| {source.stem}{' (twin)' if twin else ''} | {moments} | {once:.0f} | {seconds} "
        f"| {len(files)} files, all bits | {commit()} |"
    )


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="for the checkpoint and bundles"
    )
    parser.add_argument("--model", default=MODEL, help="of fp4dit_onnx/official/models.py")
    parser.add_argument("--twin", action="store_true", help="a small one of the same structure")
    parser.add_argument("--keep", action="store_true", help="leave everything there")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    print(measure(given.folder, given.model, twin=given.twin, keep=given.keep))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
