"""Hadamard rotations in torch: of activations as FpHadamard computes them, of weights and moments."""

from __future__ import annotations

import torch

from fp4dit_onnx.numbers.hadamard import hadamard_factors
from fp4dit_onnx.spec.spec import Hadamard, LayerSpec

__all__ = ["rotated", "rotated_moments", "rotated_weight"]


def rotated(x: torch.Tensor, rotation: Hadamard) -> torch.Tensor:
    """`x` [..., K] times block-diagonal normalized Hadamard matrices: FpHadamard, bit for bit.

    Butterflies of additions in x's own type, of neighbours first, then one factor per element.
    """
    k = x.shape[-1]
    y, half = x, 1
    while half < rotation.block and 2 * half <= k:
        whole = k // (2 * half) * 2 * half
        pairs: torch.Tensor = y[..., :whole].unflatten(-1, (-1, 2, half))  # type: ignore[no-untyped-call]
        u, v = pairs.unbind(-2)
        turned = torch.stack([u + v, u - v], dim=-2).flatten(-3)
        y = turned if whole == k else torch.cat([turned, y[..., whole:]], dim=-1)
        half *= 2
    return y * torch.from_numpy(hadamard_factors(k, rotation.block)).to(x.dtype)


def rotated_weight(weight: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """The weight float32 [N, K] that makes up for what `spec` does to the activations."""
    for rotation in spec.input_ops:
        weight = rotated(weight.double(), rotation).float()
    return weight


def rotated_moments(moments: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Second moments [K, K] of the activations after what `spec` does to them."""
    for rotation in spec.input_ops:
        moments = rotated(rotated(moments, rotation).T, rotation).T
    return moments
