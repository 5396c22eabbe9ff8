"""From a weight to a quantized layer: by rounding to nearest, or from grid integers found elsewhere."""

from __future__ import annotations

import torch

from fp4dit_onnx import numerics
from fp4dit_onnx.calibration.ranges import group_scale
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer

__all__ = ["check_weight", "packed_layer", "quantize_layer"]


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
    """Round the weight of one linear to the nearest grid values.

    Args:
        name: torch name of the layer, for messages and the state.
        weight: float32 [N, K].
        spec: formats and group size.
        range_rule: how scales are found, one of `methods.RANGES`.

    Raises:
        UsageError: the weight holds NaN or infinity.
    """
    check_weight(name, weight)
    fmt = spec.weight_format
    scale = group_scale(weight, fmt, spec.group_size, range_rule)
    return packed_layer(name, spec, round_to_nearest(weight, scale, fmt, spec.group_size), scale)
