"""Export the demo by every recipe on few images, verify it, and run it without the custom-op library.

    python tools/recipe_bundles.py [RECIPE ...] [--model FOLDER] [--executor local|ray[=HOST:PORT]]

A line for each recipe: bits, bits per weight, our operators in the graph, seconds, checks of `verify`,
and the whole model in stock ONNX Runtime, where the operators' function bodies run: onnxruntime-web
runs the same graph in the browser. So few images show that everything runs, not how good a recipe is.
Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.ops.operator import DOMAIN
from fp4dit_onnx.system.executors import HERE
from fp4dit_onnx.verification.verify import verify

__all__ = ["made"]

FEW: dict[str, Any] = {"calibration_prompts": 2, "steps": 4, "samples": 16}
BODIES = "stock ONNX Runtime, whole model"


def request_of(recipe: str, output: Path, model: Path | None, executor: str) -> ExportRequest:
    """The smallest export by a recipe; on a cluster blocks are apart."""
    method = method_by_name(recipe, "fast")
    further: dict[str, Any] = {}
    if method.needs_data:
        further |= {"preset": "fast", "executor": executor, **FEW}
    if method.iterations:
        further["iterations"] = 3
    if executor != HERE and further:
        further["inputs"] = "parallel"
    return ExportRequest(
        output, model, method=recipe, components="transformer", report=False, **further
    )


def made(recipe: str, output: Path, model: Path | None, executor: str = HERE) -> tuple[bool, str]:
    """Whether a recipe's bundle holds, and the line about it."""
    try:
        result = export(request_of(recipe, output, model, executor))
        checks = verify(output, quick=True).checks
    except Fp4DitError as error:
        return False, f"{recipe}: {error}"
    for bad in (check for check in checks if not check.ok):
        print(f"{recipe}: {bad.name}: {bad.detail}: {bad.found}, {bad.bound}", file=sys.stderr)
    manifest = result.manifest
    graph = onnx.load(output / "transformer" / "model.onnx", load_external_data=False).graph
    operators = sorted({node.op_type for node in graph.node if node.domain == DOMAIN})
    bodies = [f"{check.found} ({check.bound})" for check in checks if check.name == BODIES]
    cells = (
        f"{recipe} {manifest.recipe.bits}",
        f"{manifest.totals.bits_per_weight:.2f} bits",
        ", ".join(operators),
        f"{result.seconds:.0f} s",
        f"{sum(check.ok for check in checks)} of {len(checks)} checks",
        f"by function bodies {', '.join(bodies)}",
    )
    return bool(bodies) and all(check.ok for check in checks), "; ".join(cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", default=[])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--executor", default=HERE)
    given = parser.parse_args(arguments)
    fine = True
    for recipe in given.recipes or method_names():
        with tempfile.TemporaryDirectory() as folder:
            ok, line = made(recipe, Path(folder) / "bundle", given.model, given.executor)
        print(("ok  " if ok else "no  ") + line, flush=True)
        fine = fine and ok
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
