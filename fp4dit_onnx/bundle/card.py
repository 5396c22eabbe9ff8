"""The model card of a bundle: README.md as model hubs read it, metadata first."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import CHECKPOINT, read_text

__all__ = ["CARD", "LICENCE_KEYS", "card_text", "licence_of"]

CARD = "README.md"
LICENCE_KEYS = ("license", "license_name", "license_link")
"""Entries of a card's metadata that say under which terms a model is published."""
_FENCE = "---"


def licence_of(folder: Path) -> dict[str, str]:
    """What the card in a pipeline's folder says of its licence, by `LICENCE_KEYS`; empty without one.

    Only single words and texts are read, as licences are; what else a card says is of another model.
    """
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        lines = read_text(path, "the model card", CHECKPOINT).splitlines()
    except UsageError:  # no text; nobody reads it but people
        return {}
    if not lines or lines[0].strip() != _FENCE or _FENCE not in map(str.strip, lines[1:]):
        return {}
    found = {}
    for line in lines[1:]:
        if line.strip() == _FENCE:
            break
        key, colon, value = line.partition(":")
        text = value.strip().strip("'\"")
        if colon and key in LICENCE_KEYS and text and text[0] not in "[{|>&*!":
            found[key] = text
    return found


def card_text(manifest: Manifest) -> str:
    """The text of a bundle's README.md, from its manifest alone."""
    source, recipe, totals = manifest.source, manifest.recipe, manifest.totals
    model = source.repository or source.name
    metadata: dict[str, Any] = {
        **source.licence,
        "library_name": "fp4dit-onnx",
        **({"pipeline_tag": "text-to-image"} if manifest.text_encoders else {}),
        "tags": ["onnx", "onnxruntime", "fp4", recipe.bits],
    }
    if source.repository:
        metadata |= {"base_model": source.repository, "base_model_relation": "quantized"}
    formats = Counter(
        f"{row.weight_format} / {row.activation_format or 'float'}" for row in manifest.layers
    )
    measured = manifest.model_sqnr_db
    rows = {
        "base model": f"{model}, {source.pipeline} ({source.family})",
        "licence": source.licence.get("license", "not stated where the base model was read"),
        "method": f"{recipe.method}, {recipe.bits}",
        "weights / activations": ", ".join(f"{n} layers {f}" for f, n in formats.most_common()),
        "bits per weight": f"{totals.bits_per_weight:.3f}, scales included",
        "transformer": f"{totals.transformer_bytes:,} bytes; "
        f"{totals.transformer_bytes_float32:,} in float32",
        "error": "not measured" if measured is None else f"{measured:.1f} dB SQNR of its output",
        "LoRA": ", ".join(source.lora) or "none",
        "made by": ", ".join(f"{n} {v}" for n, v in manifest.versions.items()),
    }
    sampling = manifest.sampling
    defaults = (
        f"By default {sampling.steps} steps, guidance scale {sampling.guidance:g}, "
        f"{sampling.width} x {sampling.height} pixels. `quantization.json` has the whole recipe, the "
        "formats and errors of each layer, and the sha256 of every file."
    )
    return "\n".join(
        [
            _FENCE,
            *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),
            _FENCE,
            "",
            f"# {_cell(model)}, {recipe.bits}",
            "",
            "A bundle of ONNX models with a diffusion transformer in low-bit floating point.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
            "",
            "```sh",
            "fp4dit-onnx generate BUNDLE --prompt TEXT -o image.png",
            "```",
            "",
            defaults,
            "",
        ]
    )


def _cell(text: str) -> str:
    """A text that stays in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
