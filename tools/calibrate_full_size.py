"""Calibrate a model of official size, from random weights, on a device; minutes and memory by stage.

    python tools/calibrate_full_size.py --folder /somewhere/with/40/GB --device cuda
    python tools/calibrate_full_size.py --folder /tmp/small --device cpu --preset fast --twin
    python tools/calibrate_full_size.py --folder DIR --model flux-dev --inputs parallel \
        --only "transformer_blocks.0.* single_transformer_blocks.0.*"

Makes a pipeline as tools/random_pipeline.py does, PixArt-XL/2 512 with its T5-XXL by default, and
exports its transformer with a method that needs data, in this process. What is printed at the end is
a table in Markdown. An interrupted run goes on where it was. Where training every block would take
too long, ``--only`` trains some and rounds the others to nearest, and the whole is extrapolated.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

from calibrated_table import SOLVED
from endings import ends_in_a_line
from random_pipeline import Progress, make

from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.system.devices import AUTO, PRECISIONS
from fp4dit_onnx.system.progress import Advance, Reporters, RichReporter
from fp4dit_onnx.system.resources import peak_rss

__all__ = ["Stages", "main", "table"]

GB = 1e9
MODEL = "pixart-alpha-512"
NUMBERS = ("iterations", "samples", "steps", "calibration_prompts", "calibration_size")


@dataclass(frozen=True)
class Stage:
    """What a stage took.

    Attributes:
        name: as the export reports it.
        seconds: of all stages of the name.
        device: peak of torch's memory on the device, in bytes; None on the CPU.
        host: peak of the process's resident memory so far, in bytes.
    """

    name: str
    seconds: float
    device: int | None
    host: int | None


class Stages:
    """A reporter that measures each stage.

    Args:
        device: torch's name of it.
    """

    def __init__(self, device: str) -> None:
        kind = device.partition(":")[0]
        self._memory = _memory(kind)
        self._device = device if ":" in device else None
        self.rows: dict[str, Stage] = {}
        self.units: dict[str, float] = {}
        self._last = time.monotonic()

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """See `Reporter`."""
        self._last = start = time.monotonic()
        memory = self._memory
        if memory is not None:
            memory.reset_peak_memory_stats(self._device)
        try:
            yield lambda steps, detail="", *, timed=True: None
        finally:
            before = self.rows.get(name, Stage(name, 0.0, 0, 0))
            peak = None
            if memory is not None:
                peak = max(before.device or 0, memory.max_memory_allocated(self._device))
            seconds = before.seconds + time.monotonic() - start
            self.rows[name] = Stage(name, seconds, peak, peak_rss())

    def note(self, text: str) -> None:
        """See `Reporter`; units are told of as they are solved."""
        now = time.monotonic()
        if told := SOLVED.match(text):
            self.units[told[1]] = now - self._last
        self._last = now


def _memory(kind: str) -> Any:
    """Torch's statistics of a type of device; None where it keeps none."""
    import torch

    return getattr(torch, kind) if kind in ("cuda", "xpu") else None


def table(rows: Sequence[Stage]) -> str:
    """The stages as Markdown, in the order in which they began."""
    lines = [
        "| stage | minutes | peak on the device, GB | peak RSS so far, GB |",
        "| --- " * 4 + "|",
    ]
    for row in rows:
        device, host = (f"{n / GB:.2f}" if n is not None else "-" for n in (row.device, row.host))
        lines.append(f"| {row.name} | {row.seconds / 60:.2f} | {device} | {host} |")
    return "\n".join(lines)


def extrapolated(units: Mapping[str, float], only: str, whole: float) -> str:
    """What training all blocks would take, in words, if those of a kind take the same.

    Args:
        units: seconds of each, by name.
        only: patterns of layers that were trained.
        whole: seconds of the run.
    """
    kinds: dict[str, list[str]] = {}
    for name in units:
        kinds.setdefault(name.rpartition(".")[0], []).append(name)
    lines, more = [], 0.0
    for kind, members in kinds.items():
        trained = [n for n in members if any(fnmatchcase(f"{n}.", p) for p in only.split())]
        others = [units[n] for n in members if n not in trained]
        if not kind or not trained or not others:
            continue
        one, plain = median(units[n] for n in trained), median(others)
        more += len(others) * (one - plain)
        lines.append(
            f"{kind}: {one:.0f} s trained, {plain:.0f} s to nearest, {len(members)} of them"
        )
    return "; ".join([*lines, f"all trained, extrapolated: {(whole + more) / 3600:.1f} hours"])


def _machine(device: str) -> str:
    """What ran, in words."""
    import torch

    memory = _memory(device.partition(":")[0])
    name = memory.get_device_name(device) if memory is not None else platform.processor() or device
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def run(given: argparse.Namespace) -> str:
    """Make, export and measure; the table with what it is of."""
    source: Path = given.folder / f"{given.model}{'.twin' if given.twin else ''}"
    dtype = "float32" if given.twin else "bfloat16"
    if not source.exists():
        make(given.model, source, twin=given.twin, dtype=dtype, note=Progress())
    from fp4dit_onnx.network.execution import execution_of

    device = str(execution_of(given.device, given.precision).device)
    stages = Stages(device)
    bundle = given.folder / f"{source.name}.bundle"
    recipe = given.folder / "only.toml" if given.only else None
    if recipe is not None:
        recipe.write_text(f'extends = "{given.method}"\n[adaround]\nonly = "{given.only}"\n')
    request = ExportRequest(
        model=source,
        output=bundle,
        overwrite=True,
        components="transformer",
        report=False,
        recipe=recipe,
        **{
            name: getattr(given, name)
            for name in ("bits", "preset", "device", "precision", "method")
            if name != "method" or recipe is None
        },
        **{name: value for name in NUMBERS if (value := getattr(given, name)) is not None},
    )
    start = time.monotonic()
    result = export(request, Reporters([stages, RichReporter()]))
    whole = Stage("in all", time.monotonic() - start, None, peak_rss())
    peaks = [row.device for row in stages.rows.values() if row.device is not None]
    whole = Stage(whole.name, whole.seconds, max(peaks, default=None), whole.host)
    if not given.keep:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(bundle, ignore_errors=True)
        if recipe is not None:
            recipe.unlink()
    found = result.manifest.model_sqnr_db
    said = f"{given.method} --preset {given.preset} --precision {given.precision}"
    head = f"{source.name}, {said}, on {device} ({_machine(device)}); whole model {found:.1f} dB"
    text = f"{head}\n\n{table([*stages.rows.values(), whole])}"
    return (
        f"{text}\n\n{extrapolated(stages.units, given.only, whole.seconds)}"
        if given.only
        else text
    )


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoint and bundle")
    parser.add_argument("--model", default=MODEL, help="of fp4dit_onnx/official/models.py")
    parser.add_argument("--twin", action="store_true", help="a small one of the same structure")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and bundle there")
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--precision", default=PRECISIONS[0], help=" or ".join(PRECISIONS))
    parser.add_argument("--bits", default="w4a6")
    parser.add_argument("--method", default="fp4dit")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--inputs", help="of trained blocks, as export takes them")
    parser.add_argument("--only", default="", help="patterns of layers whose blocks are trained")
    for name in NUMBERS:
        said = f"--{name.replace('_', '-')}"
        parser.add_argument(said, type=int, help="in place of the preset's or pipeline's")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    print(run(given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
