"""GPTQ on any grid: rounding column by column, the rest of a row making up for the error.

Frantar et al., arXiv 2210.17323, algorithm 1, with scales found beforehand and kept.
"""

from __future__ import annotations

import torch

from fp4dit_onnx.calibration.grid import expand_groups, round_to_grid
from fp4dit_onnx.formats import FloatFormat

__all__ = ["compensated", "inverse_factor"]


def inverse_factor(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor U of the damped moments' inverse, ``H^-1 = U^T U``; float64 [K, K].

    Args:
        moments: H = E[x x^T], float64 [K, K]. An input that is always 0 counts as one alone.
        damping: is added to the diagonal, as a share of its mean.

    Raises:
        torch.linalg.LinAlgError: the damped moments are not positive definite.
    """
    damped = moments.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal <= 0] = 1.0
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def compensated(
    weight: torch.Tensor,
    scale: torch.Tensor,
    moments: torch.Tensor,
    fmt: FloatFormat,
    group_size: int,
    *,
    damping: float = 0.01,
    block: int = 64,
    ordered: bool = True,
) -> torch.Tensor:
    """Grid integers of a weight, float32 [N, K], chosen for the least ``tr(E H E^T)`` in turn.

    Args:
        weight: float32 [N, K].
        scale: of each group, [N, G].
        moments: H, float64 [K, K].
        fmt: the weight's format.
        group_size: inputs that share a scale.
        damping: see `inverse_factor`.
        block: columns whose errors are spread to the rest at a time.
        ordered: start with the inputs of the largest moments.
    """
    k = weight.shape[1]
    order = torch.arange(k)
    if ordered:
        order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    factor = inverse_factor(moments[order][:, order], damping).float()
    rest = weight[:, order].clone()
    step = expand_groups(scale.float(), k, group_size)[:, order]
    integers = torch.zeros_like(rest)
    for start in range(0, k, block):
        end = min(start + block, k)
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
