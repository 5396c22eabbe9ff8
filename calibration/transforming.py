"""What a layer does to its input, in torch: to activations, to the weight, and to second moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.transform import Transform

__all__ = [
    "target_weight",
    "transformed",
    "transformed_draft",
    "transformed_moments",
    "transformed_weight",
]


def transformed(x: torch.Tensor, transforms: Iterable[Transform]) -> torch.Tensor:
    """Activations [..., K] after `transforms`, as the operators compute them, bit for bit."""
    for one in transforms:
        x = one(x, torch)
    return x


def transformed_weight(weight: torch.Tensor, transforms: Iterable[Transform]) -> torch.Tensor:
    """The weight float32 [N, K] that makes up for `transforms`."""
    for one in transforms:
        weight = one.of_weight(weight.double(), torch).float()
    return weight


def transformed_draft(draft: Draft, one: Transform) -> Draft:
    """A layer whose input is transformed once more, and the weight that makes up for it."""
    spec = replace(draft.spec, input_ops=(*draft.spec.input_ops, one))
    return replace(draft, spec=spec, weight=transformed_weight(draft.weight, [one]))


def target_weight(weight: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """What of a weight, float32 [N, K], is to be rounded: less the branch, after the transforms."""
    if spec.branch is not None:
        weight = weight - torch.from_numpy(spec.branch.weight())
    return transformed_weight(weight, spec.input_ops)


def transformed_moments(moments: torch.Tensor, transforms: Iterable[Transform]) -> torch.Tensor:
    """Second moments [K, K] of the activations after `transforms`."""
    for one in transforms:
        moments = one(one(moments, torch).T, torch).T
    return moments
