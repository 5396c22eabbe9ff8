"""The linear layers of a checkpoint and what quantizing them would store, without loading weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fp4dit_onnx.bundle.manifest import Layer, Totals, Weight
from fp4dit_onnx.bundle.names import WEIGHT
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
from fp4dit_onnx.numbers.numerics import group_count
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import part_shapes

__all__ = ["layer_size", "linear_layers", "totals"]

FLOAT32_BYTES = 4


def linear_layers(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Name -> (N, K) of every linear of the transformer: its two-dimensional ``.weight`` tensors."""
    return {
        name.removesuffix(WEIGHT): (info.shape[0], info.shape[1])
        for name, info in checkpoint.tensors.items()
        if name.endswith(WEIGHT) and len(info.shape) == 2
    }


def layer_size(n: int, k: int, spec: LayerSpec) -> Weight:
    """Sizes of a layer [n, k] under `spec`, with scales as their format usually stores them."""
    codes = prod(part_shapes(n, k, spec)["codes"])
    scales = spec.scale_format.stored_bytes(n, group_count(k, spec.group_size))
    branch = 0
    if spec.branch is not None:
        shapes = spec.branch.shapes(n, k)
        branch = 2 * sum(prod(shapes[role]) for role in spec.branch.own)
    return Weight((n, k), codes + scales + branch, n * k * FLOAT32_BYTES)


def totals(checkpoint: Checkpoint, rows: Sequence[Layer | Weight]) -> Totals:
    """Sums over the quantized layers, and the whole transformer before and after."""
    quantized = sum(row.bytes for row in rows)
    replaced = sum(row.bytes_float32 for row in rows)
    weights = sum(row.weights for row in rows)
    everything = FLOAT32_BYTES * sum(prod(t.shape) for t in checkpoint.tensors.values())
    return Totals(
        layers=len(rows),
        weights=weights,
        bytes=quantized,
        bytes_float32=replaced,
        bits_per_weight=8 * quantized / weights if weights else 0.0,
        transformer_bytes=everything - replaced + quantized,
        transformer_bytes_float32=everything,
    )
