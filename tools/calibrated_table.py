"""Calibrate every model's small random twin by the paper's method and write the table in docs/models.md.

    python tools/calibrated_table.py sd3-medium flux-dev --write

For each official model of fp4dit_onnx/official/models.py whose family the tool knows: its twin is made,
exported with ``--method fp4dit --preset fast`` on few prompts, steps and pixels, and verified;
each block's error on the recorded samples is in units of what rounding to nearest gives there. The
same is exported with ``fp-rtn``, for the error of the whole network's prediction.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_table import run
from pages import Section
from random_pipeline import make

from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.export import ExportRequest, export, plan
from fp4dit_onnx.official.models import MODELS
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.verification.verify import verify

__all__ = ["Row", "calibrated", "table"]

TABLE = Section("models.md", "calibrated")
HEADS = (
    *("model", "linears quantized", "q, k, v quantized of", "linears in float"),
    *("error of blocks, nearest rounding 1: mean", "worst"),
    *("prediction, dB: fp4dit", "fp-rtn", "verified", "seconds", "measured at"),
)
SOLVED = re.compile(r"(.+): error ([0-9.]+) of nearest rounding")
FEW: dict[str, Any] = {"calibration_prompts": 2, "steps": 4, "samples": 16, "iterations": 60}
"""Enough to tell learned rounding from nearest on twins of 4 to 6 blocks."""
LARGEST = 128
"""Pixels of images; twins of models whose size is not in their configuration have the family's."""


class _Errors(SilentReporter):
    """Keeps what calibration says of the units that it trained."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def note(self, text: str) -> None:
        if told := SOLVED.match(text):
            self.found[told[1]] = float(told[2])


@dataclass(frozen=True)
class Row:
    """What was found of one model.

    Attributes:
        model: its name.
        errors: of each trained unit, in units of nearest rounding's.
        checks: of `verify` that hold, and all.
        seconds: of the calibrated export.
        calibrated: manifest of fp4dit's bundle; None where it could not be made.
        nearest_db: SQNR of the network's prediction under fp-rtn.
        why: why there is nothing more.
    """

    model: str
    errors: tuple[float, ...] = ()
    checks: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    calibrated: Manifest | None = None
    nearest_db: float | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bundle verifies and its blocks are better than rounded to nearest."""
        passed = self.checks[0] == self.checks[1] > 0
        return passed and bool(self.errors) and sum(self.errors) < len(self.errors)


def calibrated(model: str, place: Path) -> Row:
    """Make the twin of a model, calibrate and verify it, and round it to nearest.

    Args:
        model: its name.
        place: empty folder.
    """
    make(model, place / "twin", twin=True)
    _set_official_size(model, place / "twin" / "transformer" / "config.json")
    request = ExportRequest(
        place / "bundle", place / "twin", method="fp4dit", preset="fast", **FEW
    )
    size = min(plan(request).sampling.height, LARGEST)
    request = replace(request, calibration_size=size)
    reporter = _Errors()
    try:
        result = export(replace(request, report=False), reporter)
        plain: dict[str, Any] = {k: FEW[k] for k in ("calibration_prompts", "steps")}
        plain["calibration_size"] = size
        nearest = ExportRequest(place / "nearest", place / "twin", method="fp-rtn", **plain)
        other = export(replace(nearest, report=False, measure=True)).manifest
        found = verify(place / "bundle", quick=True)
    except Fp4DitError as error:
        return Row(model, why=str(error))
    for bad in (check for check in found.checks if not check.ok):
        print(f"{model}: {bad.name}: {bad.detail}: {bad.found}, {bad.bound}", file=sys.stderr)
    return Row(
        model,
        tuple(reporter.found.values()),
        (sum(check.ok for check in found.checks), len(found.checks)),
        result.seconds,
        result.manifest,
        other.model_sqnr_db,
    )


def _set_official_size(model: str, path: Path) -> None:
    """Undo the twin's own size where diffusers' pipeline gives micro-conditions at no other."""
    config = json.loads(path.read_text())
    if config.get("use_additional_conditions"):
        config["sample_size"] = MODELS[model].parts["transformer"].config["sample_size"]
        path.write_text(json.dumps(config))


def table(rows: Sequence[Row], at: str) -> str:
    """The rows as Markdown, with the commit `at` which they were measured."""
    lines = [f"| {' | '.join(HEADS)} | |", "|" + " --- |" * (len(HEADS) + 1)]
    for row in rows:
        facts = row.calibrated
        if facts is None:
            cells = [row.model, *["-"] * (len(HEADS) - 2), f"commit {at}", row.why]
        else:
            cells = [
                row.model,
                str(len(facts.layers)),
                f"{len(facts.attention)} attentions",
                str(len(facts.skipped)),
                f"{sum(row.errors) / max(1, len(row.errors)):.3f}",
                f"{max(row.errors, default=1.0):.3f}",
                f"{facts.model_sqnr_db or 0:.1f}",
                f"{row.nearest_db or 0:.1f}",
                f"{row.checks[0]} of {row.checks[1]} checks",
                f"{row.seconds:.0f}",
                f"commit {at}",
                "ok" if row.ok else "no",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where something does not hold."""
    return run(TABLE, calibrated, table, __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
