"""The linear layers of a checkpoint and what quantizing them would store, without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from fp4dit_onnx.checkpoint import Checkpoint
from fp4dit_onnx.scale_formats import scale_format_by_name
from fp4dit_onnx.spec import LayerSpec
from fp4dit_onnx.state import part_shapes

__all__ = ["LayerSize", "layer_size", "linear_layers", "totals"]

WEIGHT = ".weight"
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class LayerSize:
    """What one quantized layer stores.

    Attributes:
        shape: (N, K) of the weight.
        weights: N * K.
        bytes: of packed codes and scales, where these are as their format usually stores them.
        bytes_float32: of the float32 weight.
    """

    shape: tuple[int, int]
    weights: int
    bytes: int
    bytes_float32: int


def linear_layers(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Name -> (N, K) of every linear of the transformer: its two-dimensional ``.weight`` tensors."""
    return {
        name.removesuffix(WEIGHT): (info.shape[0], info.shape[1])
        for name, info in checkpoint.tensors.items()
        if name.endswith(WEIGHT) and len(info.shape) == 2
    }


def layer_size(n: int, k: int, spec: LayerSpec) -> LayerSize:
    """Sizes of a layer [n, k] under `spec`."""
    shapes = part_shapes(n, k, spec)
    scales = scale_format_by_name(spec.weight.scale).nbytes * prod(shapes["scale"])
    return LayerSize((n, k), n * k, prod(shapes["codes"]) + scales, n * k * FLOAT32_BYTES)


def totals(checkpoint: Checkpoint, rows: list[dict[str, Any]]) -> Mapping[str, float]:
    """Sums over the quantized layers, and the whole transformer before and after."""
    quantized = sum(row["bytes"] for row in rows)
    replaced = sum(row["bytes_float32"] for row in rows)
    weights = sum(row["weights"] for row in rows)
    everything = FLOAT32_BYTES * sum(prod(t.shape) for t in checkpoint.tensors.values())
    return {
        "layers": len(rows),
        "weights": weights,
        "bytes": quantized,
        "bytes_float32": replaced,
        "bits_per_weight": 8 * quantized / weights if weights else 0.0,
        "transformer_bytes": everything - replaced + quantized,
        "transformer_bytes_float32": everything,
    }
