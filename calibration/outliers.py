"""What makes a layer's inputs hard to quantize, and what would help, measured on recorded rows.

Activation regularization (arXiv 2404.03605) keeps the kurtosis of linears' outputs low while a model
is trained; here it is looked at in one that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fp4dit_onnx.bundle.manifest import Outliers
from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.balancing import smooth_scale
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.network.execution import host
from fp4dit_onnx.numbers import compare
from fp4dit_onnx.numbers.hadamard import hadamard
from fp4dit_onnx.numbers.outliers import kurtosis, outlier_channels
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["REMEDIES", "outliers_of"]

OUTPUTS = 64
"""Of a layer, spread evenly, whose errors are compared."""
EXACT_DB = 150.0
"""SQNR of what has no error: float32's own."""

Pair = tuple[torch.Tensor, torch.Tensor]


def _rotated(x: torch.Tensor, weight: torch.Tensor) -> Pair:
    """Both times the normalized Hadamard matrices of the stage's default."""
    block = Hadamard().block
    return hadamard(x, block, torch), hadamard(weight, block, torch)


def _balanced(x: torch.Tensor, weight: torch.Tensor) -> Pair:
    """Inputs over, weights times sqrt(largest input / largest weight) of each channel (SmoothQuant)."""
    largest, largest_weight = (tensor.abs().amax(dim=0) for tensor in (x, weight))
    factor = smooth_scale(largest, largest_weight, alpha=0.5).float()
    return x / factor, weight * factor


REMEDIES: dict[str, Callable[[torch.Tensor, torch.Tensor], Pair]] = {
    "hadamard": _rotated,
    "smoothing": _balanced,
}
"""By name: from inputs [R, K] and a weight [N, K] to what has the same product."""


def outliers_of(
    spec: LayerSpec, rows: torch.Tensor, weight: torch.Tensor, output: torch.Tensor
) -> Outliers:
    """See `manifest.Outliers`; all on the host but `output`.

    Args:
        spec: how the layer is quantized; its formats are those in which remedies are compared.
        rows: what it receives in the float network, float32 [R, K].
        weight: of the float layer, float32 [N, K].
        output: what it gives for `rows`, [R, N], its bias included.
    """
    some = weight[:: -(-len(weight) // OUTPUTS)]
    plain = _sqnr_db(spec, rows, some)
    gains = {name: _sqnr_db(spec, *turn(rows, some)) - plain for name, turn in REMEDIES.items()}
    return Outliers(
        input_kurtosis=kurtosis(rows.numpy()),
        output_kurtosis=kurtosis(host(output.float()).numpy()),
        channels=outlier_channels(rows.numpy()),
        gains_db=gains,
    )


def _sqnr_db(spec: LayerSpec, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Of the outputs of a weight that is rounded to nearest, activations quantized too."""
    bare = replace(spec, input_ops=(), branch=None).with_weight(wide=None)
    layer = quantize_layer("", weight, bare)
    wanted = torch.nn.functional.linear(rows, weight)
    found = compare.sqnr_db(wanted.numpy(), SimulatedLinear(layer, None)(rows).numpy())
    return min(found, EXACT_DB)
