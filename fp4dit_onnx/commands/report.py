"""``fp4dit-onnx report``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fp4dit_onnx.bundle.bundle import EVIDENCE, REPORT, Bundle
from fp4dit_onnx.checkpoint.checkpoint import demo_folder
from fp4dit_onnx.commands.output import print_json, print_line, reporter
from fp4dit_onnx.commands.parameters import FloatDevice, LoraFiles, PromptFile
from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.evaluation.prompts import evaluation_prompts
from fp4dit_onnx.exporting.options import INPUT, OUTPUT, SAMPLING, Option
from fp4dit_onnx.files import plain
from fp4dit_onnx.report.data import Evidence, read_evidence
from fp4dit_onnx.system.devices import AUTO
from fp4dit_onnx.system.outputs import check_file
from fp4dit_onnx.system.texts import size

__all__ = ["run"]

COMPARISON = Path("comparison.html")
SUFFIXES = (".html", ".htm")
"""Of the file to write, which replaces what is there: no manifest or weights by mistake."""
COUNT = 4


def run(
    bundles: Annotated[
        list[Path],
        Option(
            "A folder made by export, or two to compare.", INPUT, unit="BUNDLE", positional=True
        ),
    ],
    output: Annotated[
        Path | None,
        Option(
            "HTML file to write; by default report.html in the bundle, or comparison.html in the "
            "current folder for two bundles.",
            OUTPUT,
            unit="FILE",
            flags=("--output", "-o"),
        ),
    ] = None,
    model: Annotated[
        Path | None,
        Option(
            "The float pipeline that the bundle was made from; measures again.",
            INPUT,
            unit="PIPELINE",
        ),
    ] = None,
    measure: Annotated[
        bool,
        Option(
            "Measure again, as --model, --prompts, --count and --seeds also do; without --model "
            "against the embedded demo pipeline.",
            SAMPLING,
        ),
    ] = False,
    lora: LoraFiles = None,
    prompts: PromptFile = None,
    count: Annotated[
        int | None,
        Option(
            f"Prompts to generate images of; by default {COUNT}.", SAMPLING, unit="PROMPTS", min=1
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        Option(
            "Images per prompt, from seeds 0, 1, ...; by default 1.",
            SAMPLING,
            unit="IMAGES",
            min=1,
        ),
    ] = None,
    float_device: FloatDevice = AUTO,
    json: Annotated[bool, Option("Print the measurements as JSON.", OUTPUT)] = False,
) -> None:
    """Write report.html: quantization error per layer and image, size, time, memory."""
    options = {
        "--model": model,
        "--lora": lora,
        "--prompts": prompts,
        "--count": count,
        "--seeds": seeds,
    }
    given = [name for name, value in options.items() if value is not None]
    given += ["--measure"] if measure else []
    if len(bundles) > 2:
        raise UsageError(f"{len(bundles)} bundles given: expected one, or two to compare")
    opened = [Bundle.open(folder) for folder in bundles]
    check_file(output or (COMPARISON if len(opened) == 2 else opened[0].folder / REPORT))
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"output {output}: expected a name ending in {' or '.join(SUFFIXES)}")
    if len(opened) == 1:
        (bundle,) = opened
        texts = evaluation_prompts(prompts, model, count or COUNT)
        evidence = (
            _measured(bundle, model, lora, texts, range(seeds or 1), float_device)
            if given
            else None
        )
        _report(bundle, evidence, output, json=json)
        return
    if given:
        raise UsageError(
            f"{given[0]} with two bundles: they are compared as they were measured; measure each "
            "alone first"
        )
    _compare(opened[0], opened[1], output or COMPARISON, json=json)


def _measured(
    bundle: Bundle,
    model: Path | None,
    lora: Sequence[str] | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    device: str,
) -> Evidence:
    source = bundle.manifest.source.name
    if model is None and source != demo_folder().name:
        raise UsageError(
            f"{bundle.folder} was made from {source!r}, not from the embedded demo pipeline: give "
            "the float pipeline with --model"
        )
    for package in ("torch", "diffusers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export")
    from fp4dit_onnx.report.measuring import measure

    folder = model or demo_folder()
    return measure(bundle, folder, prompts, seeds, reporter(), lora or (), device)


def _report(bundle: Bundle, evidence: Evidence | None, output: Path | None, *, json: bool) -> None:
    """Into the bundle, or to its own file."""
    from fp4dit_onnx.report.writing import add_report, report_html, write_file

    if output is None:
        add_report(bundle, evidence, reporter().note)
    else:
        write_file(output, report_html(bundle, evidence))
    path = output or bundle.folder / REPORT
    if json:
        kept = evidence or read_evidence(bundle.folder / EVIDENCE)
        print_json({"report": str(path), "evidence": plain(kept) if kept else None})
    else:
        print_line(f"{path} written, {size(path.stat().st_size)}")


def _compare(first: Bundle, second: Bundle, output: Path, *, json: bool) -> None:
    from fp4dit_onnx.report.writing import comparison_html, write_file

    write_file(output, comparison_html(first, second))
    if json:
        found = {str(b.folder): read_evidence(b.folder / EVIDENCE) for b in (first, second)}
        kept = {name: plain(evidence) if evidence else None for name, evidence in found.items()}
        print_json({"report": str(output), "evidence": kept})
    else:
        print_line(f"{output} written, {size(output.stat().st_size)}")
