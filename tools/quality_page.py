"""What tools/quality.py writes above the reading of its page: tables, comparisons, effort."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pages import written_by

from fp4dit_onnx.evaluation.metrics import Score

if TYPE_CHECKING:
    from quality import Bench

__all__ = ["document"]

COLUMNS = ("w8a8", "w4a16", "w4a8", "w4a6", "w4a4")
"""Bits of the tables."""


def _cell(score: Mapping[str, Any] | None) -> str:
    return "" if score is None else f"{score['mean']:.2f} ± {score['standard_error'] or 0:.2f}"


def _titles(first: str, columns: Sequence[str]) -> list[str]:
    titles = " | ".join(bits.upper() for bits in columns)
    return [f"| {first} | {titles} |", "| --- |" + " --- |" * len(columns)]


def _table(results: Sequence[Mapping[str, Any]], columns: Sequence[str], metric: str) -> list[str]:
    lines = _titles("method", columns)
    for entry in results:
        cells = " | ".join(_cell(entry["columns"].get(bits, {}).get(metric)) for bits in columns)
        lines.append(f"| {entry['row']['name']} | {cells} |")
    return lines


def _gain(results: Sequence[Mapping[str, Any]], name: str, base: str, bits: str) -> str:
    """Mean difference in PSNR, image by image, with its standard error."""
    columns = {e["row"]["name"]: e["columns"] for e in results}
    if bits not in columns[name] or bits not in columns[base]:
        return ""
    values, others = (np.asarray(columns[n][bits]["psnr"]["values"]) for n in (name, base))
    difference = Score.of((values - others).tolist())
    return f"{difference.mean:+.2f} ± {difference.standard_error or 0:.2f}"


COMPARISONS = (
    ("FP over INT, nearest", "fp-rtn", "int-rtn"),
    ("FP (e1m2 weights) over INT, nearest", "fp-rtn, e1m2", "int-rtn"),
    ("FP over INT, trained alike", "fp4dit balanced", "int-adaround balanced"),
    ("FP, formats by measured error, over INT", "fp4dit balanced, auto", "int-adaround balanced"),
    ("trained over nearest, paper's formats", "fp4dit balanced", "fp-rtn"),
    ("trained over nearest, INT", "int-adaround balanced", "int-rtn"),
    ("scale-aware over plain at 8 x its steps", "fp4dit fast", "fp-adaround, 8 x fast"),
    (
        "scale-aware over plain at 8 x its steps, plain's published rate",
        "fp4dit fast",
        "fp-adaround, 8 x fast, rate 1e-3",
    ),
    ("scale-aware over plain, same steps", "fp4dit fast", "fp-adaround fast"),
    ("the guard on small steps", "fp4dit fast", "fp4dit fast, no guard"),
    ("formats by measured error over the paper's", "fp4dit balanced, auto", "fp4dit balanced"),
    ("balanced over int-rtn", "fp4dit balanced, auto", "int-rtn"),
    ("best over int-rtn", "fp4dit best, auto", "int-rtn"),
    ("tuned over nearest, paper's formats", "tuned", "fp-rtn"),
    ("tuned over nearest, e1m2", "tuned", "fp-rtn, e1m2"),
    ("tuned over GPTQ, e1m2", "tuned", "gptq, e1m2"),
    ("tuned-best over tuned", "tuned-best", "tuned"),
    ("tuned over FP4DiT's best, formats by measured error", "tuned", "fp4dit best, auto"),
    ("GPTQ, outer layers in int8, over GPTQ", "gptq-outer", "gptq"),
    ("hq-dit over GPTQ, outer layers in int8", "hq-dit", "gptq-outer"),
    ("q-dit over GPTQ, outer layers in int8", "q-dit", "gptq-outer"),
    ("svdquant over GPTQ, outer layers in int8", "svdquant", "gptq-outer"),
    ("activation-regularization over GPTQ", "activation-regularization", "gptq"),
    ("svdquant over tuned", "svdquant", "tuned"),
)


def document(bench: Bench, results: Sequence[Mapping[str, Any]], title: str | None = None) -> str:
    """The page up to its reading: tables and comparisons.

    Args:
        bench: what was measured on.
        results: a row each.
        title: of the page; by default the pipeline's name, none of the demo.
    """
    named = title or (bench.folder.name if bench.folder is not None else "")
    count, sampling = len(bench.prompts), bench.sampling
    columns = [bits for bits in bench.columns if any(bits in e["columns"] for e in results)]
    effort = [
        f"| {e['row']['name']} | {e['bits']:.3f} | {e['seconds'] / 60:.1f} | "
        + ", ".join(f"{n} {c}" for n, c in e["formats"].items())
        + " |"
        for e in results
    ]
    gains = [
        f"| {what} | " + " | ".join(_gain(results, a, b, bits) for bits in columns) + " |"
        for what, a, b in COMPARISONS
        if {a, b} <= {e["row"]["name"] for e in results}
    ]
    attention = " and q, k, v" if bench.planned.attention else ""
    conditions = "prompts" if bench.family.encoders else "classes"
    written = (
        f"{written_by('quality.py')}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores ({platform.machine()}). {bench.name}, {count} images "
        f"({len(set(bench.prompts))} {conditions}, none used in calibration), {sampling.steps} "
        f"denoising steps, guidance scale {sampling.guidance:g}, {len(bench.planned.layers)} linears "
        f"of the transformer{attention} quantized; mean and standard error over images, against the "
        "float model from the same noise."
    )
    lines = [
        f"# Quality: {named}" if named else "# Quality",
        "",
        written,
        "",
        "## Image PSNR, dB",
        "",
        *_table(results, columns, "psnr"),
        "",
        "## SQNR of the final latents, dB",
        "",
        *_table(results, columns, "latent_sqnr_db"),
        "",
        "## Gains in PSNR, image by image, dB",
        "",
        *_titles("comparison", columns),
        *gains,
        "",
        "## Effort",
        "",
        "| method | bits per weight | minutes to calibrate | weight formats chosen, layers |",
        "| --- | --- | --- | --- |",
        *effort,
        "",
    ]
    return "\n".join(lines)
