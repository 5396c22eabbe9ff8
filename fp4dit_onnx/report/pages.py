"""The report of one bundle: what each section of the page shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fp4dit_onnx.bundle.manifest import Layer, Manifest, Outliers
from fp4dit_onnx.evaluation.metrics import METRICS, Score
from fp4dit_onnx.numbers.outliers import OUTLIER
from fp4dit_onnx.report import heat, plots
from fp4dit_onnx.report.cost import cost_of
from fp4dit_onnx.report.data import SECTIONS, Histogram, Picture, Quality
from fp4dit_onnx.report.facts import Subject
from fp4dit_onnx.report.heat import Legend
from fp4dit_onnx.report.layer_names import arranged
from fp4dit_onnx.report.plots import Figure
from fp4dit_onnx.report.provenance import provenance_of
from fp4dit_onnx.report.tables import (
    TIMES,
    Cell,
    Table,
    Tile,
    code,
    decibels,
    number,
    plain,
    table,
)

__all__ = ["Shown", "ShownPicture", "page_of", "score_text", "shown_picture"]

SECTION_TITLES = {
    "pictures": "Images side by side",
    "steps": "Error per denoising step",
    "layers": "Error per layer",
    "values": "Values and grids",
    "cost": "Size, speed and memory",
    "left": "What stays in float",
    "made": "How it was made",
}
MEASURE = "fp4dit-onnx report BUNDLE --model PIPELINE"
"""Measures a bundle again."""
SQNR = {"output_sqnr_db": "output SQNR", "weight_sqnr_db": "weight SQNR"}
"""Errors of a layer in order of interest."""
WORTH_DB = 1.0
"""What a transform gains at least where the table names it."""


@dataclass(frozen=True)
class Shown:
    """An image with its description."""

    png: str
    alt: str
    label: str
    width: int
    height: int


@dataclass(frozen=True)
class ShownPicture:
    """A prompt's images side by side."""

    prompt: str
    caption: str
    images: tuple[Shown, ...]


@dataclass(frozen=True)
class Maps:
    """Heat maps that share their colours."""

    title: str
    legend: tuple[Legend, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class HistogramGroup:
    """Figures of one layer."""

    name: str
    why: str
    figures: tuple[Figure, ...]


def page_of(subject: Subject) -> dict[str, Any]:
    """Everything that the template of a single report names."""
    facts, evidence = subject.facts, subject.evidence
    quality = evidence.quality if evidence else None
    cost = cost_of(subject)
    return {
        "title": f"{facts.recipe.bits.upper()} {facts.source.family}: quantization report",
        "lead": _lead(facts),
        "sections": SECTION_TITLES,
        "tiles": [*_quality_tiles(quality), *cost.tiles, *_layer_tiles(facts.layers)],
        "command": _command(subject),
        "command_note": _command_note(subject),
        "absent": {name: _why_absent(subject, name) for name in SECTIONS},
        "pictures": _pictures(facts, quality),
        "picture_note": _picture_note(quality),
        "scores": _scores(quality),
        "latents": plots.latents("latents", {facts.recipe.bits: quality.latent_sqnr_db})
        if quality and quality.latent_sqnr_db
        else None,
        **_layers(facts.layers),
        "histograms": _histograms(evidence.histograms if evidence else ()),
        "grid_note": _grid_note(evidence.histograms if evidence else ()),
        "costs": cost.figures,
        "cost_note": cost.note,
        "cost_absent": [
            _why_absent(subject, name) for name in ("speed", "memory") if _lacks(subject, name)
        ],
        "cost_table": cost.table,
        **provenance_of(subject),
    }


def _lead(facts: Manifest) -> str:
    count, source = len(facts.layers), facts.source
    return (
        f"{source.name} ({source.pipeline}), {count} linear layers quantized by "
        f"{facts.recipe.method}; bundle of fp4dit-onnx {facts.versions.get('fp4dit-onnx', '?')}."
    )


def _lacks(subject: Subject, section: str) -> bool:
    return subject.evidence is None or not getattr(subject.evidence, section)


def _why_absent(subject: Subject, section: str) -> str:
    reason = subject.evidence.absent.get(section) if subject.evidence else None
    return f"Not measured: {SECTIONS[section]}. {reason or ''}".rstrip()


def _command_note(subject: Subject) -> str:
    if subject.whole:
        return "Some parts were not measured. This runs the float pipeline and measures them:"
    return (
        "This bundle holds only the transformer: export all components to measure what needs "
        "images, then run:"
    )


def _command(subject: Subject) -> str:
    if all(not _lacks(subject, section) for section in SECTIONS):
        return ""
    return MEASURE


def metric_label(name: str) -> str:
    """A metric as people write it."""
    return name.replace("_", " ") if "_" in name else name.upper()


def score_text(name: str, score: Score) -> str:
    """A mean with its standard error and unit."""
    metric = METRICS.get(name)
    unit = f" {metric.unit}" if metric and metric.unit else ""
    digits = 1 if unit else 3
    error = "" if score.standard_error is None else f" ± {score.standard_error:.{digits}f}"
    return f"{score.mean:.{digits}f}{error}{unit}"


def _quality_tiles(quality: Quality | None) -> list[Tile]:
    if quality is None:
        return [Tile("Image PSNR against float", "not measured", "", words=True)]
    count = len(quality.pictures)
    psnr = quality.scores.get("psnr")
    tiles = []
    if psnr is not None:
        error = "" if psnr.standard_error is None else f"± {psnr.standard_error:.1f}, "
        detail = f"{error}{count} images, {quality.sampling.steps} steps"
        tiles.append(Tile("Image PSNR against float", f"{psnr.mean:.1f} dB", detail))
    return tiles


def _layer_tiles(layers: Sequence[Layer]) -> list[Tile]:
    for attribute, label in SQNR.items():
        known = [layer for layer in layers if getattr(layer, attribute) is not None]
        if known:
            worst = min(known, key=lambda layer: float(getattr(layer, attribute)))
            value = f"{getattr(worst, attribute):.1f} dB"
            return [Tile(f"Lowest {label} of a layer", value, f"{worst.name}, {worst.formats}")]
    return []


def _pictures(facts: Manifest, quality: Quality | None) -> list[ShownPicture]:
    name = facts.recipe.bits.upper()
    pictures = quality.pictures if quality else ()
    return [shown_picture(picture, {name: picture}) for picture in pictures]


def shown_picture(reference: Picture, drawn: Mapping[str, Picture]) -> ShownPicture:
    """The float image, then each bundle's; of a single bundle also the difference.

    Args:
        reference: whose float image is shown.
        drawn: bundle's name -> its image of the same prompt and seed.
    """
    what = f"{reference.prompt}, seed {reference.seed}"
    images = [_shown(reference.float_png, f"float: {what}", "float")]
    images += [_shown(p.quantized_png, f"{name}: {what}", name) for name, p in drawn.items()]
    if len(drawn) == 1:
        (name,) = drawn
        alt = f"difference of float and {name}, enlarged: {what}"
        images.append(_shown(reference.difference_png, alt, f"difference {TIMES} 4"))
    parts = [f"seed {reference.seed}"]
    for name, picture in drawn.items():
        ssim = "" if picture.ssim is None else f", SSIM {picture.ssim:.3f}"
        label = f"{name} " if len(drawn) > 1 else ""
        parts.append(f"{label}{picture.psnr_db:.1f} dB{ssim}")
    return ShownPicture(reference.prompt, " · ".join(parts), tuple(images))


def _shown(png: str, alt: str, label: str) -> Shown:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return Shown(png, alt, label, *image.size)


def _picture_note(quality: Quality | None) -> str:
    if quality is None:
        return ""
    s = quality.sampling
    small = "" if max(s.width, s.height) <= 256 else " Shown reduced."
    return (
        f"{s.width} {TIMES} {s.height} pixels, {s.steps} steps, guidance {s.guidance:g}.{small} The "
        "third image of each is the absolute difference, four times as bright."
    )


def _scores(quality: Quality | None) -> Table:
    rows = []
    for name, score in (quality.scores if quality else {}).items():
        metric = METRICS.get(name)
        unit = metric.unit if metric else ""
        digits = 1 if unit else 4
        values = (score.mean, score.standard_error, min(score.values), max(score.values))
        shown = (number(v, None if v is None else f"{v:.{digits}f}") for v in values)
        better = "larger" if metric is None or metric.larger_is_better else "smaller"
        rows.append((plain(metric_label(name)), plain(unit or "-"), *shown, plain(better)))
    count = len(quality.pictures) if quality else 0
    columns = ("metric", "unit", ">mean", ">standard error", ">lowest", ">highest", "better")
    return table(f"Against the float model's images, {count} images", columns, rows)


def _layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """The heat maps, their legend, the table and a sentence about it."""
    values = {
        attribute: {
            layer.name: float(getattr(layer, attribute))
            for layer in layers
            if getattr(layer, attribute) is not None
        }
        for attribute in SQNR
    }
    names = [layer.name for layer in layers]
    return {
        "layer_note": _layer_note(layers, values),
        "maps": [_maps(names, attribute, found) for attribute, found in values.items() if found],
        "layers": _layer_table(layers),
    }


def _layer_note(layers: Sequence[Layer], values: Mapping[str, Mapping[str, float]]) -> str:
    parts = []
    for attribute, label in SQNR.items():
        if found := values[attribute]:
            parts.append(f"mean {label} {sum(found.values()) / len(found):.1f} dB")
        else:
            parts.append(f"{label} not measured")
    joined = ", ".join(parts)
    return (
        f"{len(layers)} layers: {joined}. Output SQNR is that of a layer's result on inputs "
        "recorded while sampling, weight SQNR that of its weight; higher is better."
        f"{_outlier_note(layers)}"
    )


def _outlier_note(layers: Sequence[Layer]) -> str:
    """What the table's columns of tails mean, and how many layers have outliers."""
    found = {layer.name: layer.outliers for layer in layers if layer.outliers is not None}
    if not found:
        return ""
    having = sum(1 for own in found.values() if own.channels)
    worst = max(found, key=lambda name: found[name].input_kurtosis)
    return (
        f" Kurtosis is 3 for normal values, more where a few are far larger than the rest. {having} "
        f"layers have outlier inputs, channels of {OUTLIER:g} times the median's size and more; the "
        f"highest input kurtosis is {found[worst].input_kurtosis:.0f}, of {worst}. What would help is "
        "measured on the recorded inputs, weight and activations rounded to nearest in the layer's "
        "formats."
    )


def _maps(names: Sequence[str], attribute: str, found: Mapping[str, float]) -> Maps:
    """Heat maps of one kind of error: one per list of blocks, and one of the other layers."""
    lists, outside = arranged(names)
    edges = heat.class_edges(list(found.values()))
    kind = attribute.partition("_")[0]
    figures = [
        heat.heat_map(f"heat-{kind}-{i}", blocks.name, blocks, found, edges)
        for i, blocks in enumerate(lists)
        if any(name.startswith(f"{blocks.name}.") for name in found)
    ]
    if any(name in found for name in outside):
        figures.append(heat.strip(f"strip-{kind}", "outside of blocks", outside, found, edges))
    title = f"{kind.capitalize()} SQNR by block and linear"
    return Maps(title, tuple(heat.legend_of(edges)), tuple(figures))


def _layer_table(layers: Sequence[Layer]) -> Table:
    columns = (
        "layer",
        "weight",
        "input",
        ">shape",
        ">bytes",
        ">of float32",
        ">bits per weight",
        ">weight SQNR, dB",
        ">output SQNR, dB",
        ">weight kurtosis",
        ">input kurtosis",
        ">output kurtosis",
        ">outlier inputs",
        "would help",
    )
    rows = (
        (
            code(layer.name),
            plain(layer.weight_format),
            plain(layer.activation_format or "float"),
            number(layer.weights, f" {TIMES} ".join(map(str, layer.shape))),
            number(layer.bytes),
            number(
                layer.bytes / max(layer.bytes_float32, 1),
                f"{100 * layer.bytes / max(layer.bytes_float32, 1):.1f} %",
            ),
            number(layer.bits, f"{layer.bits:.2f}"),
            decibels(layer.weight_sqnr_db),
            decibels(layer.output_sqnr_db),
            decibels(layer.weight_kurtosis),
            *_outlier_cells(layer.outliers),
        )
        for layer in layers
    )
    caption = f"Quantized layers, {len(layers)}: formats, bytes with scales, errors, tails"
    return table(caption, columns, rows, sortable=True)


def _outlier_cells(found: Outliers | None) -> tuple[Cell, ...]:
    if found is None:
        return number(None), number(None), number(None), plain("-")
    helps = {name: gain for name, gain in found.gains_db.items() if gain >= WORTH_DB}
    ranked = sorted(helps, key=lambda name: -helps[name])
    return (
        decibels(found.input_kurtosis),
        decibels(found.output_kurtosis),
        number(len(found.channels)),
        plain(", ".join(f"{name} {helps[name]:+.1f} dB" for name in ranked) or "-"),
    )


def _histograms(members: Sequence[Histogram]) -> list[HistogramGroup]:
    groups: dict[str, list[Histogram]] = {}
    for member in members:
        groups.setdefault(member.layer, []).append(member)
    shown = []
    for i, (layer, found) in enumerate(groups.items()):
        parts = [[m for m in found if m.part == part] for part in ("weight", "input")]
        figures = tuple(
            plots.histogram(f"values-{i}-{k}", part) for k, part in enumerate(parts) if part
        )
        why = found[0].why
        shown.append(HistogramGroup(layer, why[:1].upper() + why[1:], figures))
    return shown


def _grid_note(members: Sequence[Histogram]) -> str:
    if not members:
        return ""
    return (
        "Lines in the second colour are the format's values; formats with many values have ticks at "
        "the top."
    )
