"""Methods: how a layer's weight becomes grid integers and scales.

A method is a frozen dataclass in `fp4dit_onnx.methods` whose fields are its settings, and a pure
function joined to it in `_QUANTIZERS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fp4dit_onnx import numerics
from fp4dit_onnx.calibration.ranges import absmax_scale
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.methods import Method, RoundToNearest
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer

__all__ = ["quantize_layer"]

Quantizer = Callable[[torch.Tensor, torch.Tensor, LayerSpec], tuple[torch.Tensor, torch.Tensor]]
"""(weight [N, K], input rows [R, K], spec) -> (grid integers [N, K], scales [N, G])."""


def _round_to_nearest(
    weight: torch.Tensor, inputs: torch.Tensor, spec: LayerSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    del inputs
    scale = absmax_scale(weight, spec.weight_format, spec.group_size)
    return round_to_nearest(weight, scale, spec.weight_format, spec.group_size), scale


_QUANTIZERS: dict[type, Quantizer] = {RoundToNearest: _round_to_nearest}


def quantize_layer(
    name: str, weight: torch.Tensor, inputs: torch.Tensor, spec: LayerSpec, method: Method
) -> QuantizedLayer:
    """Quantize one linear.

    Args:
        name: torch name of the layer, for messages and the state.
        weight: float32 [N, K].
        inputs: float32 [R, K], rows that the layer saw in the float model.
        spec: formats and group size.
        method: how to round.

    Raises:
        UsageError: the weight holds NaN or infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise UsageError(
            f"layer {name}: its weight holds NaN or infinity; the checkpoint is damaged, or was "
            "saved in half precision after an overflow"
        )
    integers, scale = _QUANTIZERS[type(method)](weight, inputs, spec)
    fmt = spec.weight_format
    codes = numerics.encode(integers.numpy(), fmt)
    packed = numerics.pack(codes, fmt.storage_bits)
    return QuantizedLayer(name, spec, weight.shape[1], packed, scale.numpy())
