"""quantization.json of an export, before its files are written and its errors measured."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fp4dit_onnx.bundle.card import licence_of
from fp4dit_onnx.bundle.manifest import Kept, Layer, Manifest, PassNote, Source
from fp4dit_onnx.exporting.layers import totals
from fp4dit_onnx.exporting.plan import Plan

if TYPE_CHECKING:
    from fp4dit_onnx.passes.base import PassReport

__all__ = ["manifest_of"]


def manifest_of(planned: Plan, rows: Sequence[Layer], reports: Sequence[PassReport]) -> Manifest:
    """What is known before files are written: the request as planned, layers, what passes did."""
    packages = ("fp4dit-onnx", "numpy", "onnx", "onnx-graphsurgeon", "onnxscript", "torch")
    versions = {p: importlib.metadata.version(p) for p in (*packages, "diffusers", "transformers")}
    checkpoint = planned.checkpoint
    return Manifest(
        recipe=replace(planned.recipe, bits=planned.bits),
        method=planned.method.to_json(),
        sampling=planned.sampling,
        largest_size=planned.largest_size,
        layers=tuple(rows),
        totals=totals(checkpoint, rows),
        skipped=planned.skipped,
        attention=planned.attention,
        passes=tuple(_note(report) for report in reports),
        versions={"python": platform.python_version(), **versions},
        source=Source(
            checkpoint.folder.name,
            checkpoint.pipeline_class,
            checkpoint.transformer_class,
            planned.family.name,
            tuple(Path(text).name for text in checkpoint.lora),
            _repository(checkpoint.folder),
            licence_of(checkpoint.folder),
        ),
        case_sqnr_db=(),
        calibrated=planned.calibrated,
        files={},
    )


def _repository(folder: Path) -> str | None:
    """OWNER/NAME of a folder in Hugging Face's cache, models--OWNER--NAME/snapshots/COMMIT."""
    found = re.search(
        r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$", folder.resolve().as_posix()
    )
    return f"{found[1]}/{found[2]}" if found else None


def _note(report: PassReport) -> PassNote:
    left = tuple(Kept(skip.name, skip.reason) for skip in report.skipped)
    return PassNote(report.name, report.rewritten, left)
