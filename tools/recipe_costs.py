"""Export PixArt-XL, random weights, by every recipe that needs no gradients; time a step of each.

    python tools/recipe_costs.py --folder /somewhere/with/10/GB [RECIPE ...] [--write]

The checkpoint is made as tools/random_pipeline.py makes it, with one layer of T5-XXL: few prompts are
encoded. Each recipe is exported in a process of its own, which measures its time and memory; then one
denoising step of its bundle and of tuned's are run by turns. What is done is kept in the folder: a
killed run resumes. The table goes to docs/methods.md, between its marks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from endings import ends_in_a_line
from pages import Section, written_by
from random_pipeline import make

from fp4dit_onnx.benchmark.step import StepCase, ours
from fp4dit_onnx.bundle.manifest import Manifest, read_manifest
from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.calibration.stages import INPUTS
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.runtime.library import supported_isas
from fp4dit_onnx.system.resources import usable_cores

__all__ = ["RECIPES", "options", "table"]

MODEL, BASE = "pixart-alpha-512", "tuned"
COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
RECIPES = tuple(n for n in method_names() if not method_by_name(n).needs(INPUTS))
SEARCH = ("--time", "20m")
"""Of recipes that sample images while they search: as many as fit."""
DATA = (
    *("--preset", "fast", "--calibration-prompts", "2", "--steps", "2"),
    *("--samples", "8", "--calibration-size", "256"),
)
ALL = ("--bits", "w4a6", "--components", "transformer", "--no-report", "--overwrite")
ROUNDS, BATCH, TOKENS = 3, 2, 120
SECTION = Section("methods.md", "costs")


def options(recipe: str) -> tuple[str, ...]:
    """Of an export by a recipe."""
    method = method_by_name(recipe, "fast")
    if not method.needs_data:
        return (*ALL, "--no-measure")
    return (*ALL, *DATA, *(SEARCH if method.evolution else ()))


def exported(recipe: str, source: Path, bundle: Path) -> Manifest:
    """Export in its own process; returns its manifest.

    Raises:
        Fp4DitError: the export failed.
    """
    command = [sys.executable, "-P", "-m", "fp4dit_onnx", "export", str(source)]
    command += ["-o", str(bundle), "--method", recipe, *options(recipe)]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Fp4DitError(f"the export by {recipe} failed with code {done.returncode}")
    return read_manifest(bundle / MANIFEST)


def by_turns(bundles: Sequence[Path]) -> list[float]:
    """Median seconds of a step of each, in one process; the first round counts for nothing."""
    backend = ours(supported_isas()[0])
    cases = [StepCase(b / "transformer" / "model.onnx", None, BATCH, TOKENS) for b in bundles]
    loaded = [backend.load(case, usable_cores()) for case in cases]
    times: list[list[float]] = [[] for _ in loaded]
    for _ in range(1 + ROUNDS):
        for one, own in zip(loaded, times, strict=True):
            start = time.perf_counter()
            one.run()
            own.append(time.perf_counter() - start)
    return [statistics.median(own[1:]) for own in times]


def row(recipe: str, manifest: Manifest, seconds: Sequence[float]) -> dict[str, Any]:
    """What is known of a recipe: seconds of tuned's step and of its own."""
    used = manifest.resources
    return {
        "recipe": recipe,
        "bits": manifest.recipe.bits,
        "bits_per_weight": manifest.totals.bits_per_weight,
        "minutes": used.seconds["total"] / 60,
        "peak": (used.peak_rss_bytes or 0) / 1e9,
        "step": seconds[-1] / seconds[0],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = ("recipe", "bits per weight", "minutes", "peak RSS, GB", f"a step, of {BASE}'s")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += (
        f"| {found['recipe']} | {found['bits_per_weight']:.2f} | {found['minutes']:.1f} "
        f"| {found['peak']:.2f} | {found['step']:.2f} |"
        for found in rows
    )
    return "\n".join(lines)


def measured(recipe: str, folder: Path) -> dict[str, Any]:
    """The row of a recipe, from the folder where it has been measured."""
    kept = folder / f"{recipe}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    bundle, base = folder / recipe, folder / BASE
    manifest = exported(recipe, folder / "checkpoint", bundle)
    seconds = [1.0] if recipe == BASE else by_turns([base, bundle])
    found = row(recipe, manifest, seconds)
    kept.write_text(json.dumps(found))
    if recipe != BASE:
        shutil.rmtree(bundle)
    return found


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", help=f"some of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoint and bundles")
    parser.add_argument("--write", action="store_true", help=f"put the table into {SECTION.page}")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.recipes if name not in RECIPES]:
        raise UsageError(f"unknown recipe {unknown[0]}: expected some of {', '.join(RECIPES)}")
    chosen = [name for name in RECIPES if name in (given.recipes or RECIPES)]
    given.folder.mkdir(parents=True, exist_ok=True)
    if not (given.folder / "checkpoint").exists():
        make(
            MODEL,
            given.folder / "checkpoint",
            twin=False,
            dtype="bfloat16",
            components=COMPONENTS,
            encoder_layers=1,
        )
    rows = {}
    for recipe in dict.fromkeys((BASE, *chosen)):
        rows[recipe] = measured(recipe, given.folder)
        print(table([rows[recipe]]).splitlines()[-1], flush=True)
    if given.write:
        said = " ".join((*ALL, *DATA))
        text = f"{written_by('recipe_costs.py --folder DIR --write')}: `{said}`.\n\n"
        SECTION.write(text + table([rows[recipe] for recipe in chosen]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
