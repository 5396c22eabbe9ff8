"""What stays in float, and how a bundle was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fp4dit_onnx.bundle.manifest import DEFAULT_TARGET, Encoder, Manifest
from fp4dit_onnx.report.facts import Subject
from fp4dit_onnx.report.tables import TIMES, code, number, plain, table
from fp4dit_onnx.spec.recipe import Recipe
from fp4dit_onnx.system.resources import Used
from fp4dit_onnx.system.texts import size

__all__ = ["as_text", "flat", "provenance_of"]


def provenance_of(subject: Subject) -> dict[str, Any]:
    """Entries of the page for the sections on what was left and on how it was made."""
    facts = subject.facts
    skipped = [(code(one.name), plain(one.reason)) for one in facts.skipped]
    caption = f"Linear layers that stay in float, {len(skipped)}"
    return {
        "skipped": table(caption, ("layer", "reason"), skipped),
        "attention": _attention(facts),
        "passes": _passes(facts),
        "made": list(_made(subject)),
        "settings": [(name, as_text(value)) for name, value in flat(facts.method)],
        "versions": table(
            "Packages of the export",
            ("package", ">version"),
            [(plain(k), number(0, v)) for k, v in facts.versions.items()],
        ),
        "files": table(
            "Files of the bundle",
            ("file", ">bytes", "sha256"),
            [
                (code(name), number(file.bytes), code(file.sha256))
                for name, file in facts.own_files.items()
            ],
        ),
    }


def _attention(facts: Manifest) -> str:
    if not facts.attention:
        return "Attention's q, k and v stay in float."
    counts = Counter(facts.attention.values())
    parts = ", ".join(f"of {count} modules in {name}" for name, count in counts.items())
    return f"Attention's q, k and v are quantized per head and token, {parts}."


def _passes(facts: Manifest) -> Any:
    rows = []
    for one in facts.passes:
        left = "; ".join(f"{item.name}: {item.reason}" for item in one.skipped)
        rows.append((code(one.name), number(one.rewritten), plain(left or "-")))
    return table("Graph passes in their order", ("pass", ">rewritten", "left, and why"), rows)


def _made(subject: Subject) -> Iterator[tuple[str, str]]:
    facts, evidence = subject.facts, subject.evidence
    source, recipe, s = facts.source, facts.recipe, facts.sampling
    yield "float pipeline", f"{source.name}, {source.pipeline} with {source.transformer}"
    if source.lora:
        yield "LoRA, file and scale", ", ".join(source.lora)
    yield "bits, method", f"{recipe.bits}, {recipe.method}"
    yield "weight formats", _weight_formats(facts)
    yield "activations", recipe.activation or "float"
    yield "group size", f"{recipe.group_size} input channels share a scale"
    yield "rules", _rules(recipe)
    if recipe.search:
        yield "searched", f"{', '.join(recipe.search)}, chosen per layer"
    if facts.target != DEFAULT_TARGET:
        yield "target", f"{facts.target}; measurements are of the bundle before conversion"
    yield (
        "sampling",
        f"{s.steps} steps, guidance {s.guidance:g}, {s.width} {TIMES} {s.height} pixels",
    )
    for name, encoder in facts.text_encoders.items():
        yield name, _encoder(encoder)
    if facts.model_sqnr_db is not None:
        yield "whole transformer", f"{facts.model_sqnr_db:.1f} dB output SQNR of the simulation"
    if facts.calibrated is not None:
        yield "calibrated on", f"{facts.calibrated.device}, in {facts.calibrated.precision}"
    yield from _resources(facts.resources)
    if evidence and evidence.machine:
        yield "measured on", f"{evidence.machine.cpu}, {evidence.machine.cores} cores"
        versions = evidence.machine.versions.items()
        yield "measured with", ", ".join(f"{name} {version}" for name, version in versions)


def _weight_formats(facts: Manifest) -> str:
    counts = Counter(layer.weight_format for layer in facts.layers)
    return ", ".join(f"{name} in {count}" for name, count in counts.most_common())


def _rules(recipe: Recipe) -> str:
    return ", ".join(
        f"{rule.pattern}={rule.weight}" + (f"/{rule.activation}" if rule.activation else "")
        for rule in recipe.rules
    )


def _encoder(entry: Encoder) -> str:
    return f"{entry.class_name}, {entry.recipe.bits if entry.recipe else 'float32'}"


def _resources(used: Used) -> Iterator[tuple[str, str]]:
    if "total" in used.seconds:
        yield "export took", f"{used.seconds['total']:.0f} s"
    if used.peak_rss_bytes is not None:
        yield "export's peak memory", size(used.peak_rss_bytes)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings, by their path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_text(value: Any) -> str:
    """A JSON value in words."""
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
