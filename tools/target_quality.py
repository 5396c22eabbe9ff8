"""Measure the demo's images for each target and write the table in docs/targets.md.

    python tools/target_quality.py --write      # five minutes of exports, then the images

Bundles of the target standard run in OpenVINO, the others in ONNX Runtime with the custom-op
library; all from the float model's noise. Bundles in the work folder are used again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from draw_with import pipeline_with
from pages import Section, written_by

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.evaluation.metrics import Score, psnr
from fp4dit_onnx.evaluation.picturing import float_images
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.prompts import demo_prompts
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.system.progress import Reporter, RichReporter
from fp4dit_onnx.targets import DEFAULT_TARGET, convert, target_by_name

__all__ = ["TABLE", "VARIANTS", "Variant", "table"]

TABLE = Section("targets.md", "pictures")
BATCH = 8
STANDARD = "standard"


@dataclass(frozen=True)
class Variant:
    """A bundle to measure.

    Attributes:
        folder: that it is written to.
        title: in the table.
        request: of its export.
        source: folder of the bundle that it is converted from, in place of an export.
        target: what it is for.
    """

    folder: str
    title: str
    request: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    target: str = DEFAULT_TARGET


VARIANTS = (
    Variant("nearest", "`--method fp-rtn`", {"method": "fp-rtn"}),
    Variant(
        "nearest16",
        "`--method fp-rtn --group-size 16 --weight-format e2m1`",
        {"method": "fp-rtn", "group_size": 16, "weight_format": "e2m1"},
    ),
    Variant(
        "nearest-nvfp4",
        "`--method fp-rtn --target standard`: NVFP4",
        {"method": "fp-rtn"},
        target=STANDARD,
    ),
    Variant(
        "fast",
        "`--preset fast --weight-format auto`",
        {"preset": "fast", "weight_format": "auto"},
    ),
    Variant("fast-converted", "the same, converted to standard", source="fast", target=STANDARD),
    Variant(
        "fast-nvfp4",
        "`--preset fast --target standard`: NVFP4",
        {"preset": "fast"},
        target=STANDARD,
    ),
)


def bundle_of(variant: Variant, work: Path, reporter: Reporter) -> Path:
    """The folder of the variant's bundle, written unless it is there."""
    folder = work / variant.folder
    if folder.exists():
        return folder
    if variant.source:
        target = target_by_name(variant.target)
        return convert(work / variant.source, folder, target, reporter=reporter).bundle
    request = ExportRequest(folder, target=variant.target, report=False, **variant.request)
    return export(request, reporter).bundle


def pipeline_of(variant: Variant, bundle: Path) -> Pipeline:
    """The pipeline that runs the bundle."""
    return pipeline_with("openvino", bundle) if variant.target == STANDARD else Pipeline(bundle)


def scores(work: Path, count: int, reporter: Reporter) -> Iterator[tuple[Variant, Score]]:
    """PSNR of `count` images of each variant against the float model's."""
    prompts, seeds = demo_prompts("evaluation")[:count], list(range(count))
    bundles = [bundle_of(variant, work, reporter) for variant in VARIANTS]
    settings = Pipeline(bundles[0]).settings()
    wanted = float_images(open_checkpoint(None).folder, prompts, seeds, settings)
    for variant, bundle in zip(VARIANTS, bundles, strict=True):
        pipeline, drawn = pipeline_of(variant, bundle), []
        with reporter.stage(variant.folder, count) as advance:
            for first in range(0, count, BATCH):
                part = slice(first, first + BATCH)
                drawn += pipeline.generate(prompts[part], seeds=seeds[part])
                advance(len(prompts[part]))
        both = zip(drawn, wanted, strict=True)
        yield variant, Score.of([psnr(np.asarray(a), np.asarray(b)) for a, b in both])


def table(found: Sequence[tuple[Variant, Score]], count: int) -> str:
    """As Markdown, with what was measured."""
    written = (
        f"{written_by('target_quality.py --write')}: "
        f"`export --bits w4a6` of the demo, {count} prompts that calibration does not see, one "
        "image each, against the float model's; mean and standard error. NVFP4 is measured in "
        "OpenVINO, as is the converted bundle."
    )
    lines = [written, "", "| demo's bundle | PSNR, dB |", "| --- | --- |"]
    for variant, score in found:
        error = f" ± {score.standard_error:.1f}" if score.standard_error else ""
        lines.append(f"| {variant.title} | {score.mean:.1f}{error} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.page}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        try:
            found = list(scores(work, given.prompts, RichReporter()))
        except Fp4DitError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    text = table(found, given.prompts)
    print(text)
    if given.write:
        TABLE.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
