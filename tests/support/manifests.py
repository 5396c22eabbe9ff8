"""Manifests to test with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fp4dit_onnx.bundle.manifest import Layer, Manifest, Sampling, Source, Totals
from fp4dit_onnx.spec.recipe import Recipe

EMPTY = Manifest(
    recipe=Recipe("w4a6", "fp-rtn", "e2m3", None, 128, ()),
    sampling=Sampling(2, 1.0, 64, 64, 16),
    layers=(),
    totals=Totals(0, 0, 0, 0, 0.0, 0, 0),
    skipped=(),
    passes=(),
    source=Source("pipeline", "PixArtAlphaPipeline", "PixArtTransformer2DModel", "PixArt-alpha"),
    versions={},
    case_sqnr_db=(),
    files={},
)
"""Of a bundle without a quantized layer."""

LAYER = Layer("blocks.0.to_q", "e2m1", "e2m3", 128, (16, 8), 128, 72, 512)


def layer(name: str, **changes: Any) -> Layer:
    """A row of the manifest."""
    return replace(LAYER, name=name, **changes)
