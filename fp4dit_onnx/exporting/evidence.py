"""What an export measures of the bundle that it has just written, for the report."""

from __future__ import annotations

from pathlib import Path

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.exporting.plan import Plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.prompts import demo_prompts
from fp4dit_onnx.report.data import Evidence
from fp4dit_onnx.system.progress import Reporter

__all__ = ["evidence_of_export"]

DRAWN_PROMPTS = 4
"""Of which an export generates images for its report."""


def evidence_of_export(
    folder: Path, request: ExportRequest, planned: Plan, reporter: Reporter
) -> Evidence | None:
    """What can be measured of a bundle that an export has just written; None if nothing is.

    Args:
        folder: the bundle, complete but for the report, in the form that runs here.
        request: what was asked for.
        planned: what was done; says whether the float pipeline is run for images.
        reporter: told of every stage.
    """
    bundle = Bundle.open(folder)
    if not (request.report and planned.illustrated and bundle.whole) or planned.undrawable:
        return None
    from fp4dit_onnx.report.measuring import measure

    own = demo_prompts("evaluation") if request.model is None else planned.prompts
    prompts = own[:DRAWN_PROMPTS]
    folder, device = planned.checkpoint.folder, request.device
    return measure(bundle, folder, prompts, [0], reporter, request.lora, device)
