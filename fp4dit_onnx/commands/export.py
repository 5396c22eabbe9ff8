"""``fp4dit-onnx export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fp4dit_onnx.bundle.bundle import REPORT
from fp4dit_onnx.bundle.manifest import Kept, Totals
from fp4dit_onnx.commands.layer_table import print_attention, print_layers
from fp4dit_onnx.commands.output import print_json, print_line, print_table, reporter
from fp4dit_onnx.commands.parameters import (
    Json,
    add_parameters,
    request_of,
    request_parameters,
)
from fp4dit_onnx.commands.precision_table import print_budget, print_spent
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.better import better_recipe
from fp4dit_onnx.exporting.export import ExportRequest, ExportResult, Plan, export, plan
from fp4dit_onnx.exporting.options import OUTPUT, Option
from fp4dit_onnx.exporting.recipe_files import save_recipe
from fp4dit_onnx.system.texts import size

__all__ = ["run"]


@add_parameters(request_parameters(ExportRequest))
def run(
    inline: Annotated[bool, Option("Short for --target inline.", OUTPUT)] = False,
    dry_run: Annotated[
        bool,
        Option(
            "Only print formats and sizes per layer; loads no weights and writes nothing.", OUTPUT
        ),
    ] = False,
    json: Json = False,
    **given: Any,
) -> None:
    """Quantize a diffusers pipeline and write it as an ONNX bundle."""
    if given["output"] is None and not dry_run:
        raise UsageError("no output folder: expected where to write the bundle; give -o DIR")
    request = request_of(ExportRequest, {**given, "output": given["output"] or Path()})
    if inline:
        request = replace(request, target="inline")
    if dry_run:
        planned = plan(request)
        save_recipe(planned.request, planned.method)
        _show_plan(planned, json=json)
    else:
        better = None if json else better_recipe(plan(request))
        _show_result(export(request, reporter()), json=json)
        if better is not None:
            print_line(better)


def _show_plan(planned: Plan, *, json: bool) -> None:
    if json:
        print_json(planned.to_json())
        return
    for note in planned.notes:
        print_line(note)
    print_layers("Layers to quantize (dry run: nothing is written)", planned.layers)
    print_attention(planned.attention)
    _print_skipped(planned.skipped)
    _print_totals(planned.totals)
    if planned.calibrated is not None:
        where = planned.calibrated
        print_line(f"calibration: on {where.device} in {where.precision}")
    if planned.budget is not None:
        print_budget(planned.budget)
    if (line := better_recipe(planned)) is not None:
        print_line(line)


def _show_result(result: ExportResult, *, json: bool) -> None:
    manifest = result.manifest
    if json:
        print_json({"bundle": str(result.bundle), "seconds": result.seconds, "manifest": manifest})
        return
    print_layers("Quantized layers", manifest.layers)
    print_attention(manifest.attention)
    _print_skipped(manifest.skipped)
    _print_totals(manifest.totals)
    if manifest.budget is not None:
        print_spent(manifest.layers, manifest.budget)
    for name, found in manifest.converted.items():
        print_line(f"{name} for the target {manifest.target}: {size(found.bytes)}")
    print_line(f"{result.bundle} written in {result.seconds:.0f} s")
    if REPORT in manifest.files:
        print_line(f"{result.bundle / REPORT} shows the quantization error")


def _print_skipped(skipped: Sequence[Kept]) -> None:
    if skipped:
        rows = [(one.name, one.reason) for one in skipped]
        print_table("Kept in float", ("layer", "reason"), rows)


def _print_totals(totals: Totals) -> None:
    before, after = totals.transformer_bytes_float32, totals.transformer_bytes
    share = f"{100 * after / before:.1f} %" if before else "-"
    print_line(f"transformer: {size(before)} in float32, {size(after)} quantized ({share})")
