"""From a weight to a quantized layer: by rounding to nearest, or from grid integers found elsewhere."""

from __future__ import annotations

import numpy as np
import torch

from fp4dit_onnx import numerics
from fp4dit_onnx.calibration.grid import expand_groups, round_to_grid
from fp4dit_onnx.calibration.ranges import group_scale, row_chunks
from fp4dit_onnx.calibration.rounding import scaled_weight
from fp4dit_onnx.compare import ratio_db
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer

__all__ = ["check_weight", "packed_layer", "quantize_layer", "quantize_measured"]


def check_weight(name: str, weight: torch.Tensor) -> None:
    """Raise UsageError where a layer's weight holds NaN or infinity."""
    if not bool(torch.isfinite(weight).all()):
        raise UsageError(
            f"layer {name}: its weight holds NaN or infinity; the checkpoint is damaged, or was "
            "saved in half precision after an overflow"
        )


def packed_layer(
    name: str, spec: LayerSpec, integers: torch.Tensor, scale: torch.Tensor
) -> QuantizedLayer:
    """The layer of grid integers (float32 [N, K]) and scales (float16 or float32 [N, G])."""
    fmt = spec.weight_format
    codes = numerics.encode(integers.numpy(), fmt)
    packed = numerics.pack(codes, fmt.storage_bits)
    return QuantizedLayer(name, spec, integers.shape[1], packed, scale.numpy())


def quantize_layer(
    name: str, weight: torch.Tensor, spec: LayerSpec, range_rule: str = "absmax"
) -> QuantizedLayer:
    """Round the weight of one linear to the nearest grid values; see `quantize_measured`."""
    return quantize_measured(name, weight, spec, range_rule)[0]


def quantize_measured(
    name: str, weight: torch.Tensor, spec: LayerSpec, range_rule: str = "absmax"
) -> tuple[QuantizedLayer, float]:
    """Round the weight of one linear to the nearest grid values, a few rows at a time.

    Args:
        name: torch name of the layer, for messages and the state.
        weight: float32 [N, K].
        spec: formats and group size.
        range_rule: how scales are found, one of `methods.RANGES`.

    Returns:
        The layer, and signal over quantization noise of its weight in dB.

    Raises:
        UsageError: the weight holds NaN or infinity.
    """
    check_weight(name, weight)
    fmt, k = spec.weight_format, weight.shape[1]
    scale = group_scale(weight, fmt, spec.group_size, range_rule)
    codes, signal, noise = [], 0.0, 0.0
    for rows, steps in zip(row_chunks(weight), row_chunks(scale, k), strict=True):
        exact = scaled_weight(rows, steps, spec.group_size)
        integers = round_to_grid(exact, fmt)
        codes.append(numerics.pack(numerics.encode(integers.numpy(), fmt), fmt.storage_bits))
        restored = integers.mul_(expand_groups(steps.float(), k, spec.group_size))
        signal += float(rows.square().sum(dtype=torch.float64))
        noise += float(restored.sub_(rows).square_().sum(dtype=torch.float64))
    packed = np.concatenate(codes) if codes else np.zeros((0, 0), np.uint8)
    layer = QuantizedLayer(name, spec, k, packed, scale.numpy())
    return layer, ratio_db(signal, noise)
