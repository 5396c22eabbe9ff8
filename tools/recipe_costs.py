"""Export PixArt-XL, random weights, by every recipe that needs no gradients; time a step of each.

    python tools/recipe_costs.py --folder /somewhere/with/10/GB [RECIPE ...] [--write]

The checkpoint is made as tools/random_pipeline.py makes it, with one layer of T5-XXL: few prompts are
encoded. Each recipe is exported in a process of its own, which measures its time and memory; then one
denoising step of its bundle and of tuned's are run by turns. What is done is kept in the folder: a
killed run resumes with the recipe that it was at, from that one's beginning. The table goes to
docs/methods.md, between its marks.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from endings import ends_in_a_line
from full_size import TRANSFORMER, Case, export
from pages import Section, written_by
from random_pipeline import make

from fp4dit_onnx.benchmark.backend import Loaded
from fp4dit_onnx.benchmark.run import Settings, run_case
from fp4dit_onnx.benchmark.step import StepCase, ours
from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.runtime.library import supported_isas
from fp4dit_onnx.system.progress import RichReporter
from fp4dit_onnx.system.resources import usable_cores

__all__ = ["RECIPES", "case", "step_ratio", "table"]

MODEL, BASE = "pixart-alpha-512", "tuned"
COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
RECIPES = tuple(n for n in method_names() if not method_by_name(n).iterations)
"""By nothing of which an optimizer takes steps."""
SEARCH = ("--time", "20m")
"""Of recipes that sample images while they search: as many as fit."""
DATA = (
    *("--preset", "fast", "--calibration-prompts", "2", "--steps", "2"),
    *("--samples", "8", "--calibration-size", "256"),
)
ROUNDS, BATCH, TOKENS = 7, 2, 120
SECTION = Section("methods.md", "costs")


def case(recipe: str) -> Case:
    """The export by a recipe; nothing is wanted of its size."""
    method = method_by_name(recipe, "fast")
    data = (*DATA, *(SEARCH if method.evolution else ())) if method.needs_data else ()
    return Case(MODEL, COMPONENTS, (*TRANSFORMER, *data), math.inf, method=recipe)


def step_ratio(base: Path, own: Path) -> float:
    """Seconds of a step of the bundle `own` in those of `base`, by turns in one process; the median.

    Raises:
        Fp4DitError: one of them does not run.
    """
    usual = ours(supported_isas()[0])

    def load_base(step: StepCase, threads: int) -> Loaded:
        return usual.load(replace(step, model=_model(base)), threads)

    step = StepCase(_model(own), None, BATCH, TOKENS)
    backends = [replace(usual, name=BASE, load=load_base), usual]
    settings = Settings(usable_cores(), seconds=0, rounds=ROUNDS)
    report = run_case(step, backends, usual.name, settings, RichReporter())
    if report.absent:
        raise Fp4DitError("; ".join(f"{name}: {why}" for name, why in report.absent.items()))
    (ratio,) = (outcome.ratio for outcome in report.outcomes if outcome.name == BASE)
    assert ratio is not None
    return ratio.median


def _model(bundle: Path) -> Path:
    return bundle / "transformer" / "model.onnx"


def row(recipe: str, manifest: Manifest, step: float) -> dict[str, Any]:
    """What is known of a recipe, with the seconds of its step in those of tuned's."""
    used = manifest.resources
    return {
        "recipe": recipe,
        "bits_per_weight": manifest.totals.bits_per_weight,
        "minutes": used.seconds["total"] / 60,
        "peak": (used.peak_rss_bytes or 0) / 1e9,
        "step": step,
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


def _others(chosen: Sequence[str]) -> str:
    """A line of the recipes that were not asked for, if there are some."""
    absent = [name for name in RECIPES if name not in chosen]
    return f"\n\nNot measured yet: {', '.join(absent)}." if absent else ""


def measured(recipe: str, folder: Path) -> dict[str, Any]:
    """The row of a recipe, from the folder where it has been measured."""
    kept = folder / f"{recipe}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    bundle, base = folder / recipe, folder / BASE
    manifest = export(case(recipe), folder / "checkpoint", bundle)
    found = row(recipe, manifest, 1.0 if recipe == BASE else step_ratio(base, bundle))
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
        said = " ".join(("--bits w4a6", *TRANSFORMER, *DATA))
        text = f"{written_by('recipe_costs.py --folder DIR --write')}: `{said}`.\n\n"
        SECTION.write(text + table([rows[recipe] for recipe in chosen]) + _others(chosen))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
