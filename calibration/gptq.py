"""GPTQ on any grid: rounding column by column, the rest of a row making up for the error.

Frantar et al., arXiv 2210.17323, algorithm 1, with scales found beforehand and kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import expand_groups, round_to_grid
from fp4dit_onnx.errors import UsageError

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.gptq import Gptq

__all__ = ["compensated", "inverse_factor"]


def inverse_factor(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor U of the damped moments' inverse, ``H^-1 = U^T U``; float64 [K, K].

    Args:
        moments: H = E[x x^T], float64 [K, K]. An input that is always 0 counts as one alone.
        damping: is added to the diagonal, as a share of its mean.

    Raises:
        RuntimeError: the damped moments are not positive definite.
    """
    damped = moments.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal <= 0] = 1.0
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def compensated(draft: Draft, moments: torch.Tensor, method: Gptq) -> torch.Tensor:
    """Grid integers of a weight, float32 [N, K], chosen for the least ``tr(E H E^T)`` in turn.

    Args:
        draft: the layer, with its scales.
        moments: H, float64 [K, K].
        method: settings.

    Raises:
        UsageError: H is not positive definite.
    """
    weight, scale, fmt = draft.weight, draft.scale, draft.spec.weight_format
    assert scale is not None, draft.name
    k = weight.shape[1]
    order = torch.arange(k)
    if method.ordered:
        order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    try:
        factor = inverse_factor(moments[order][:, order], method.damping).float()
    except RuntimeError as singular:
        raise UsageError(
            f"layer {draft.name}: the second moments of its inputs are singular: give more prompts, "
            f"or more damping than {method.damping}"
        ) from singular
    rest = weight[:, order].clone()
    step = expand_groups(scale.float(), k, draft.spec.group_size)[:, order]
    integers = torch.zeros_like(rest)
    for start in range(0, k, method.block):
        end = min(start + method.block, k)
        errors = torch.zeros(len(weight), end - start)
        for j in range(start, end):
            live = step[:, j] > 0
            exact = torch.where(live, rest[:, j] / torch.where(live, step[:, j], 1.0), 0.0)
            integers[:, j] = round_to_grid(exact, fmt)
            error = (rest[:, j] - integers[:, j] * step[:, j]) / factor[j, j]
            rest[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    found = torch.empty_like(integers)
    found[:, order] = integers
    return found
