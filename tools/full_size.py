"""Export models of official size, from random weights, and note time, memory and size.

    python tools/full_size.py --folder /somewhere/with/60/GB [CASE ...]

Each case makes a checkpoint in bfloat16 as tools/random_pipeline.py does it, exports it in a process
of its own, and deletes both unless told to keep them. The export measures its own time and memory;
they are read from its quantization.json. The tables, of exports without data and of calibrated
ones, go to docs/models.md, between their marks.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endings import ends_in_a_line
from model_table import merged
from pages import Section, commit, written_by
from random_pipeline import make

from fp4dit_onnx.bundle.manifest import Manifest, read_manifest
from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.exporting.plan import work_beside

__all__ = ["CASES", "Case", "table"]

GB = 1e9
MINUTE = 60.0
TABLE = Section("models.md", "full size")
CALIBRATED = Section("models.md", "calibrated full size")


@dataclass(frozen=True)
class Case:
    """A model to export, and what is wanted of it.

    Attributes:
        model: of fp4dit_onnx/official/models.py.
        components: that are made.
        options: of the export.
        ram: GB of peak memory that it must stay below.
        seconds: that it must stay below; None for any.
        size: GB that the transformer's files must stay below; None for any.
        method: of quantization.
        only: patterns of the layers that it trains; the others are rounded to nearest.
    """

    model: str
    components: tuple[str, ...]
    options: tuple[str, ...]
    ram: float
    seconds: float | None = None
    size: float | None = None
    method: str = "fp-rtn"
    only: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether it needs data."""
        return self.method != "fp-rtn"


TRANSFORMER = ("--components", "transformer")
ALL_OF_HUNYUAN = (
    "transformer",
    *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    *("vae", "scheduler"),
)
SHORTENED = (
    *("--preset", "fast", "--calibration-prompts", "8", "--steps", "4"),
    *("--iterations", "20", "--samples", "16", "--calibration-size", "256"),
)
CASES = {
    "pixart": Case("pixart-alpha-512", ("transformer",), TRANSFORMER, 2.5, 90, 0.36),
    "pixart-t5": Case(
        "pixart-alpha-512",
        ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"),
        ("--text-encoder-bits", "w4a16"),
        3.0,
    ),
    "sigma": Case("pixart-sigma-1024-ms", ("transformer",), TRANSFORMER, 2.5, 90, 0.36),
    "dit": Case("dit-xl-2-512", ("transformer",), TRANSFORMER, 2.5),
    "hunyuan": Case("hunyuan-dit-1.2", ("transformer",), TRANSFORMER, 4.0),
    "hunyuan-encoders": Case(
        "hunyuan-dit-1.1",
        ALL_OF_HUNYUAN,
        ("--text-encoder-bits", "w4a16"),
        4.0,
    ),
    "flux": Case("flux-dev", ("transformer",), TRANSFORMER, 6.0),
    "pixart-hour": Case(
        "pixart-alpha-256",
        ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"),
        ("--time", "60m", *TRANSFORMER),
        6.0,
        75 * MINUTE,
        method="fp4dit",
    ),
    "hunyuan-short": Case(
        "hunyuan-dit-1.2",
        ALL_OF_HUNYUAN,
        (*SHORTENED, *TRANSFORMER),
        8.0,
        method="fp4dit",
        only="blocks.5.* blocks.30.*",
    ),
}


def export(case: Case, source: Path, bundle: Path) -> Manifest:
    """Export in its own process, from the beginning: its time is wanted; returns its manifest.

    Raises:
        Fp4DitError: the export failed.
    """
    shutil.rmtree(work_beside(bundle), ignore_errors=True)
    command = [sys.executable, "-P", "-m", "fp4dit_onnx", "export", str(source), "-o", str(bundle)]
    command += ["--bits", "w4a6", "--no-report", "--overwrite"]
    command += (
        ["--method", case.method] if not case.only else ["--recipe", str(_recipe(case, bundle))]
    )
    command += [*([] if case.calibrated else ["--no-measure"]), *case.options]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Fp4DitError(f"the export of {case.model} failed with code {done.returncode}")
    return read_manifest(bundle / MANIFEST)


def _recipe(case: Case, bundle: Path) -> Path:
    """The method of a case that trains some layers, in a file beside its bundle."""
    path = bundle.with_suffix(".toml")
    path.write_text(f'extends = "{case.method}"\n[adaround]\nonly = "{case.only}"\n')
    return path


def row(name: str, case: Case, source: Path, manifest: Manifest) -> dict[str, Any]:
    """What is known of a case once it is exported."""
    used = manifest.resources
    sizes = {p: entry.bytes for p, entry in manifest.files.items()}
    own = sum(size for path, size in sizes.items() if path.startswith("transformer/"))
    found: dict[str, Any] = {
        "case": name,
        "model": case.model,
        "components": ", ".join(c for c in case.components if c in _WEIGHTS),
        "source": sum(p.stat().st_size for p in source.rglob("*.safetensors")) / GB,
        "transformer": own / GB,
        "bundle": sum(sizes.values()) / GB,
        "seconds": used.seconds["total"],
        "stages": used.seconds,
        "db": manifest.model_sqnr_db,
        "peak": (used.peak_rss_bytes or 0) / GB,
        "imports": (used.peak_rss_bytes_after_imports or 0) / GB,
    }
    found["ok"] = (
        found["peak"] < case.ram
        and (case.seconds is None or found["seconds"] < case.seconds)
        and (case.size is None or found["transformer"] < case.size)
    )
    return found


_WEIGHTS = ("transformer", "text_encoder", "text_encoder_2", "vae")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = ["model", "exported", "checkpoint, GB", "transformer, GB", "bundle, GB", "seconds"]
    heads += ("peak RSS, GB", "after imports, GB", "wanted", "")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for found in rows:
        case = CASES[found["case"]]
        wanted = [f"RSS < {case.ram:g}"]
        wanted += [f"{case.seconds:g} s"] if case.seconds else []
        wanted += [f"{case.size:g} GB"] if case.size else []
        lines.append(
            f"| {found['model']} | {found['components']} | {found['source']:.2f} "
            f"| {found['transformer']:.3f} | {found['bundle']:.3f} | {found['seconds']:.0f} "
            f"| {found['peak']:.2f} | {found['peak'] - found['imports']:.2f} "
            f"| {', '.join(wanted)} | {'ok' if found['ok'] else 'missed'} |"
        )
    return "\n".join(lines)


def calibrated_table(rows: Sequence[dict[str, Any]], at: str) -> str:
    """Those that need data, with the commit `at` which they were measured."""
    heads = ["case", "model", "options", "minutes", "prompts and sampling", "blocks"]
    heads += ("peak RSS, GB", "wanted", "prediction, dB", "measured at", "")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for found in rows:
        case, took = CASES[found["case"]], found["stages"]
        before = sum(took.get(name, 0.0) for name in _BEFORE)
        minutes = [found["seconds"], before, took["calibrating"]]
        said = " ".join(("--method", case.method, *case.options))
        trained = f", `{case.only}` trained" if case.only else ""
        wanted = [f"RSS < {case.ram:g}"]
        wanted += [f"{case.seconds / MINUTE:g} minutes"] if case.seconds else []
        lines.append(
            f"| {found['case']} | {case.model} | `{said}`{trained} "
            f"| {' | '.join(f'{n / MINUTE:.1f}' for n in minutes)} | {found['peak']:.2f} "
            f"| {', '.join(wanted)} | {found['db']:.1f} | commit {at} "
            f"| {'ok' if found['ok'] else 'missed'} |"
        )
    return "\n".join(lines)


_BEFORE = (
    "encoding the prompts",
    "measuring the importance of denoising steps",
    "sampling with the float model",
)


def run(name: str, folder: Path, *, keep: bool) -> dict[str, Any]:
    """Make, export and measure one case."""
    case = CASES[name]
    source, bundle = folder / f"{name}.checkpoint", folder / f"{name}.bundle"
    start = time.monotonic()
    if not source.exists():
        make(case.model, source, twin=False, dtype="bfloat16", components=case.components)
    print(f"{name}: made in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    try:
        return row(name, case, source, export(case, source, bundle))
    finally:
        if not keep:
            shutil.rmtree(source, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)
            bundle.with_suffix(".toml").unlink(missing_ok=True)


def _write(rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows into their tables; those of calibrations take the place of their old ones."""
    plain = [found for found in rows if not CASES[found["case"]].calibrated]
    if plain:
        TABLE.write(f"{written_by('full_size.py --folder DIR --write')}.\n\n{table(plain)}")
    if len(plain) < len(rows):
        others = [found for found in rows if CASES[found["case"]].calibrated]
        CALIBRATED.write(merged(calibrated_table(others, commit()), CALIBRATED.read(), CASES))


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints and bundles")
    parser.add_argument("--keep", action="store_true", help="leave both there")
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.page}")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.cases if name not in CASES]
    if unknown:
        raise UsageError(f"unknown case {unknown[0]}: expected some of {', '.join(CASES)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in given.cases or CASES:
        rows.append(run(name, given.folder, keep=given.keep))
        shown = (
            calibrated_table(rows[-1:], commit()) if CASES[name].calibrated else table(rows[-1:])
        )
        print(shown.splitlines()[-1], flush=True)
    if given.write:
        _write(rows)
    return 0 if all(found["ok"] for found in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
