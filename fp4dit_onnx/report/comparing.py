"""Two bundles side by side: what a page of their differences shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fp4dit_onnx.bundle.manifest import Layer
from fp4dit_onnx.evaluation.metrics import METRICS, Score
from fp4dit_onnx.numbers.compare import mean
from fp4dit_onnx.report import plots
from fp4dit_onnx.report.cost import is_busy, milliseconds
from fp4dit_onnx.report.data import LIBRARY, Picture
from fp4dit_onnx.report.facts import Subject
from fp4dit_onnx.report.pages import MEASURE, ShownPicture, metric_label, score_text, shown_picture
from fp4dit_onnx.report.plots import Figure
from fp4dit_onnx.report.provenance import as_text, flat
from fp4dit_onnx.report.tables import (
    Cell,
    Table,
    Tile,
    code,
    decibels,
    nbytes,
    number,
    plain,
    table,
)

__all__ = ["comparison_of", "paired"]

SECTION_TITLES = {
    "totals": "Side by side",
    "pictures": "Images side by side",
    "steps": "Error per denoising step",
    "layers": "Error per layer",
}
Pair = tuple[Subject, Subject]
SAME_LOAD = 0.25
"""Processes per core by which loads may differ for times to compare."""


def comparison_of(first: Subject, second: Subject) -> dict[str, Any]:
    """Everything that the template of a comparison names."""
    both = (first, second)
    layers = _layers(both)
    return {
        "title": f"{first.name} and {second.name}: two quantized bundles",
        "lead": f"{_described(first)}; {_described(second)}.",
        "sections": SECTION_TITLES,
        "tiles": _tiles(both, layers),
        "command": "" if paired(both) else MEASURE,
        "command_note": "Images of both are needed for a full comparison. Each is measured by:",
        "absent": {"quality": _why_absent(both)},
        "totals": _totals(both),
        "totals_note": _totals_note(both),
        "differences": _differences(both),
        "pictures": _pictures(both),
        "picture_note": _picture_note(both),
        "latents": _latents(both),
        "layer_note": _layer_note(both, layers),
        "scatter": _scatter(both, layers),
        "layers": _layer_table(both, layers),
    }


def _described(subject: Subject) -> str:
    facts = subject.facts
    return f"{subject.name} is {facts.recipe.bits} of {facts.source.name} by {facts.recipe.method}"


def paired(both: Pair) -> list[tuple[Picture, Picture]]:
    """Images of the same prompt and seed, in the order of the first bundle's."""
    drawn = [
        {(p.prompt, p.seed): p for p in s.evidence.quality.pictures}
        if s.evidence and s.evidence.quality
        else {}
        for s in both
    ]
    return [(picture, drawn[1][key]) for key, picture in drawn[0].items() if key in drawn[1]]


def _why_absent(both: Pair) -> str:
    lacking = [s.name for s in both if s.evidence is None or s.evidence.quality is None]
    if lacking:
        return f"Not measured for {' and '.join(lacking)}."
    return "The two bundles were measured on different prompts or seeds."


def _difference(both: Pair) -> Score | None:
    """PSNR of the second less that of the first, image by image."""
    gaps = [b.psnr_db - a.psnr_db for a, b in paired(both)]
    return Score.of(gaps) if gaps else None


def _tiles(both: Pair, layers: Mapping[str, tuple[Layer | None, Layer | None]]) -> list[Tile]:
    first, second = both
    sizes = [s.facts.totals.transformer_bytes for s in both]
    tiles = [_gap_tile(both)]
    share = f"{100 * sizes[1] / max(sizes[0], 1):.1f}\u00a0%"
    tiles.append(Tile("Size of the transformer", share, f"{second.name} of {first.name}"))
    changed = sum(1 for a, b in layers.values() if a and b and a.formats != b.formats)
    tiles.append(
        Tile("Layers in other formats", str(changed), f"of {len(layers)} quantized in either")
    )
    return tiles


def _gap_tile(both: Pair) -> Tile:
    label, gap = "Image PSNR, difference", _difference(both)
    if gap is None:
        return Tile(label, "not measured", "", words=True)
    error = "" if gap.standard_error is None else f"± {gap.standard_error:.1f}, "
    detail = f"{error}{both[1].name} against {both[0].name}, {len(gap.values)} images"
    return Tile(label, f"{gap.mean:+.1f} dB", detail)


def _median(subject: Subject) -> float | None:
    speed = subject.evidence.speed if subject.evidence else None
    medians = {t.name: t.seconds.median for t in speed.timings} if speed else {}
    return medians.get(LIBRARY)


def _peak(subject: Subject) -> int | None:
    memory = subject.evidence.memory if subject.evidence else ()
    return {one.name: one.peak_bytes for one in memory}.get(LIBRARY)


def _mean(attribute: str) -> Callable[[Subject], float | None]:
    return lambda subject: mean(getattr(layer, attribute) for layer in subject.facts.layers)


def _last_latents(subject: Subject) -> float | None:
    quality = subject.evidence.quality if subject.evidence else None
    return quality.latent_sqnr_db[-1].mean if quality and quality.latent_sqnr_db else None


STEP = "denoising step"
MEASURES: tuple[tuple[str, Callable[[Subject], Any], Callable[[Any], Cell]], ...] = (
    ("weights of the transformer", lambda s: s.facts.totals.transformer_bytes, nbytes),
    (
        "bits per quantized weight",
        lambda s: s.facts.totals.bits_per_weight,
        lambda v: number(v, f"{v:.2f}"),
    ),
    ("quantized layers", lambda s: len(s.facts.layers), number),
    ("layers in float", lambda s: len(s.facts.skipped), number),
    ("mean weight SQNR, dB", _mean("weight_sqnr_db"), decibels),
    ("mean output SQNR, dB", _mean("output_sqnr_db"), decibels),
    ("latent SQNR after the last denoising step, dB", _last_latents, decibels),
    (
        STEP,
        _median,
        lambda v: number(v, None if v is None else milliseconds(v)),
    ),
    ("memory of loading and one denoising step", _peak, nbytes),
)
"""Label -> value of a bundle -> its cell."""


def _totals(both: Pair) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, value_of, cell in MEASURES:
        a, b = (value_of(subject) for subject in both)
        apart = label == STEP and _times_apart(both)
        gap = number(None) if apart else _relative(label, a, b)
        rows.append((plain(label), cell(a), cell(b), gap))
    rows += [
        (
            plain(metric_label(name)),
            *(_score_cell(name, subject) for subject in both),
            _score_gap(name, both),
        )
        for name in METRICS
        if any(_score(name, subject) for subject in both)
    ]
    columns = ("", *(f">{subject.name}" for subject in both), ">difference")
    return table(f"{both[0].name} and {both[1].name}", columns, rows)


def _totals_note(both: Pair) -> str:
    """Times of the two were not taken in turns."""
    parts = []
    for subject in both:
        machine = subject.evidence.machine if subject.evidence else None
        if machine is not None and _median(subject) is not None:
            load = "" if machine.load is None else f", load {machine.load:.1f}"
            parts.append(f"{subject.name} on {machine.cores} cores of {machine.cpu}{load}")
    if len(parts) < len(both):
        return ""
    note = f"Times and memory were measured separately: {'; '.join(parts)}."
    reason = _times_apart(both)
    return f"{note} Times cannot be compared: {reason}." if reason else note


def _times_apart(both: Pair) -> str:
    """Why the times of the two do not compare; empty where they do."""
    evidences = [subject.evidence for subject in both]
    speeds = [evidence.speed for evidence in evidences if evidence and evidence.speed]
    machines = [evidence.machine for evidence in evidences if evidence and evidence.machine]
    if len(speeds) < len(both) or len(machines) < len(both):
        return "for one bundle the machine is unknown"
    if len({(m.cpu, m.cores) for m in machines}) > 1:
        return "the machines differ"
    if len({(s.batch, s.tokens, s.threads, s.isa) for s in speeds}) > 1:
        return "batch, text tokens, threads or kernels differ"
    if any(map(is_busy, machines)):
        return "a machine was busy with other work"
    loads = [machine.load or 0.0 for machine in machines]
    if max(loads) - min(loads) > SAME_LOAD * machines[0].cores:
        return "the load of the machine differs"
    return ""


def _relative(label: str, a: float | None, b: float | None) -> Cell:
    """A difference in dB or in counts; of sizes and times in percent."""
    if a is None or b is None:
        return number(None)
    if label.endswith("dB"):
        return decibels(b - a, sign=True)
    if label.startswith(("quantized", "layers")):
        return number(b - a, f"{b - a:+d}")
    share = 100 * (b / a - 1) if a else 0.0
    return number(share, f"{share:+.1f}\u00a0%")


def _score(name: str, subject: Subject) -> Score | None:
    quality = subject.evidence.quality if subject.evidence else None
    return quality.scores.get(name) if quality else None


def _score_cell(name: str, subject: Subject) -> Cell:
    score = _score(name, subject)
    return number(score.mean, score_text(name, score)) if score else number(None)


def _score_gap(name: str, both: Pair) -> Cell:
    a, b = (_score(name, subject) for subject in both)
    if a is None or b is None:
        return number(None)
    digits = 1 if METRICS[name].unit else 3
    return number(b.mean - a.mean, f"{b.mean - a.mean:+.{digits}f}")


def _made_of(subject: Subject) -> Iterator[tuple[str, str]]:
    facts = subject.facts
    recipe = facts.recipe
    for name in ("bits", "method", "activation", "attention", "group_size"):
        yield name.replace("_", " "), as_text(getattr(recipe, name))
    rules = (f"{r.pattern}={r.weight}/{r.activation or 'default'}" for r in recipe.rules)
    yield "rules", ", ".join(rules)
    yield "searched formats", ", ".join(recipe.search) or "none"
    yield from ((f"method: {name}", as_text(value)) for name, value in flat(facts.method))
    yield from ((f"sampling: {k}", as_text(v)) for k, v in vars(facts.sampling).items())
    yield from ((f"version: {name}", value) for name, value in facts.versions.items())
    yield "source", f"{facts.source.name}, {facts.source.pipeline}"


def _differences(both: Pair) -> Table:
    a, b = (dict(_made_of(subject)) for subject in both)
    rows = [
        (plain(name), plain(a.get(name, "-")), plain(b.get(name, "-")))
        for name in dict.fromkeys((*a, *b))
        if a.get(name) != b.get(name)
    ]
    columns = ("setting", both[0].name, both[1].name)
    return table("Settings that differ", columns, rows)


def _pictures(both: Pair) -> list[ShownPicture]:
    names = [subject.name for subject in both]
    return [shown_picture(a, dict(zip(names, (a, b), strict=True))) for a, b in paired(both)]


def _picture_note(both: Pair) -> str:
    pairs = paired(both)
    if not pairs:
        return ""
    same = all(a.float_png == b.float_png for a, b in pairs)
    note = "Each prompt from the same noise: the float model, then the two bundles."
    if not same:
        note += (
            f" The float images of the two reports differ (another model, or other sampling); "
            f"those of {both[0].name} are shown."
        )
    return note


def _latents(both: Pair) -> Figure | None:
    curves = {
        s.name: s.evidence.quality.latent_sqnr_db
        for s in both
        if s.evidence and s.evidence.quality and s.evidence.quality.latent_sqnr_db
    }
    return plots.latents("latents", curves) if len(curves) == len(both) else None


def _layers(both: Pair) -> dict[str, tuple[Layer | None, Layer | None]]:
    """Layer's name -> its row in each bundle."""
    rows = [{layer.name: layer for layer in subject.facts.layers} for subject in both]
    return {
        name: (rows[0].get(name), rows[1].get(name))
        for name in dict.fromkeys((*rows[0], *rows[1]))
    }


def _attribute(layers: Mapping[str, tuple[Layer | None, Layer | None]]) -> str:
    """The error to compare: of outputs where both bundles have it."""
    measured = any(
        a and b and a.output_sqnr_db is not None and b.output_sqnr_db is not None
        for a, b in layers.values()
    )
    return "output_sqnr_db" if measured else "weight_sqnr_db"


def _layer_note(both: Pair, layers: Mapping[str, tuple[Layer | None, Layer | None]]) -> str:
    only = [sum(1 for pair in layers.values() if pair[i] is None) for i in (0, 1)]
    parts = [
        f"{count} {'layer is' if count == 1 else 'layers are'} quantized only in {both[1 - i].name}"
        for i, count in enumerate(only)
        if count
    ]
    joined = "; ".join(parts) or "Both quantize the same layers"
    return (
        f"{joined}. Differences of SQNR are {both[1].name} less {both[0].name}. The error of a layer "
        "does not determine that of the image: methods that train whole blocks allow larger errors "
        "of single layers."
    )


def _scatter(both: Pair, layers: Mapping[str, tuple[Layer | None, Layer | None]]) -> Figure | None:
    attribute = _attribute(layers)
    points = {}
    for name, (a, b) in layers.items():
        values = tuple(getattr(layer, attribute) for layer in (a, b) if layer)
        if len(values) == len(both) and None not in values:
            points[name] = values
    if not points:
        return None
    kind = attribute.partition("_")[0]
    return plots.scatter("scatter", kind, both[0].name, both[1].name, points)


def _layer_table(both: Pair, layers: Mapping[str, tuple[Layer | None, Layer | None]]) -> Table:
    names = [subject.name for subject in both]
    columns = (
        "layer",
        *(f"{name}: formats" for name in names),
        *(f">{name}: bytes" for name in names),
        *(f">{name}: weight SQNR, dB" for name in names),
        *(f">{name}: output SQNR, dB" for name in names),
        ">difference, dB",
    )
    attribute = _attribute(layers)
    rows = []
    for name, pair in layers.items():
        a, b = (getattr(layer, attribute) if layer else None for layer in pair)
        gap = None if a is None or b is None else b - a
        rows.append(
            (
                code(name),
                *(plain(layer.formats if layer else "float") for layer in pair),
                *(number(layer.bytes if layer else None) for layer in pair),
                *(decibels(layer.weight_sqnr_db if layer else None) for layer in pair),
                *(decibels(layer.output_sqnr_db if layer else None) for layer in pair),
                decibels(gap, sign=True),
            )
        )
    kind = attribute.partition("_")[0]
    return table(
        f"Layers, {len(rows)}; the difference is of the {kind} SQNR", columns, rows, sortable=True
    )
