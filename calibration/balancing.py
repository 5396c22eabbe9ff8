"""What inputs are divided by and weights multiplied by, so that both ranges quantize well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from fp4dit_onnx.calibration.applying import nearest_under
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.layer_inputs import LayerInputs
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.transforming import transformed_draft
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.vector import Vector

__all__ = [
    "awq_scale",
    "balanced",
    "column_peaks",
    "least_error",
    "salience",
    "salience_scale",
    "smooth_scale",
]

LEAST = 1e-5
"""Divisors are no smaller, as published (SmoothQuant)."""


def least_error(
    ways: Iterable[Drafts],
    evidence: Evidence,
    prepared: Callable[[Drafts], Drafts] = lambda way: way,
) -> Drafts:
    """Of linears that read one tensor the way whose outputs are nearest to float's, the first if equal.

    Weights are rounded to nearest under absmax scales: what `evidence` rounds is all kept on disk.

    Args:
        ways: each has the same linears; the best is kept.
        evidence: measures outputs.
        prepared: makes of the linears what is rounded.
    """
    assert evidence.inputs is not None
    rounded = nearest_under(Absmax())
    given: dict[str, LayerInputs] = {}
    best, least = None, float("inf")
    for way in ways:
        given = given or {name: evidence.inputs(draft) for name, draft in way.items()}
        error = sum(given[n].error(rounded(d)) for n, d in prepared(way).items())
        if best is None or error < least:
            best, least = way, error
    assert best is not None
    return best


def balanced(members: Sequence[Draft], divisor: torch.Tensor) -> Drafts:
    """Linears that read one tensor, whose inputs are divided by `divisor` [K], weights multiplied."""
    factor = (1 / divisor.double()).float().numpy().astype(np.float32)
    one = Diagonal(members[0].name, Vector(factor))
    return {draft.name: transformed_draft(draft, one) for draft in members}


def column_peaks(members: Sequence[Draft]) -> torch.Tensor:
    """Largest magnitude of the weights of each input over all members, float64 [K]."""
    peaks = [draft.weight.abs().amax(dim=0) for draft in members]
    return torch.stack(peaks).amax(dim=0).double()


def _where_live(divisor: torch.Tensor, *peaks: torch.Tensor) -> torch.Tensor:
    """1 for inputs that are never anything, or that no weight reads."""
    live = torch.stack([peak > 0 for peak in peaks]).all(dim=0) & torch.isfinite(divisor)
    return torch.where(live, divisor.clamp(min=LEAST), 1.0)


def smooth_scale(
    inputs: torch.Tensor, weights: torch.Tensor, alpha: float, beta: float | None = None
) -> torch.Tensor:
    """``a^alpha / w^beta`` of maxima [K], beta 1 - alpha if None (SmoothQuant equation 4), float64."""
    beta = 1 - alpha if beta is None else beta
    a, w = inputs.double(), weights.double()
    return _where_live(a**alpha / w.clamp(min=LEAST) ** beta, a, w)


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Of [K], from 1; equal ones have the mean of theirs. Float64."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean: torch.Tensor = last - (counts - 1) / 2
    return mean[place]


def spearman(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Rank correlation of two vectors [K]; 0 where one is constant."""
    x, y = (ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    size = torch.sqrt((x @ x) * (y @ y))
    return (x @ y) / size if size > 0 else size


def salience(peaks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Salience of inputs over samples [S, K] (PTQ4DiT, SSC): complementary ones to `weights` count more.

    ``sum_i eta_i a_i`` with ``eta = softmax(-rho)`` and rho the rank correlation of each sample's
    maxima and the weights'. Float64 [K].
    """
    rho = torch.stack([spearman(sample, weights) for sample in peaks])
    return torch.softmax(-rho, dim=0) @ peaks.double()


def salience_scale(peaks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``sqrt(a / w)`` of `salience` (PTQ4DiT, CSB): inputs and weights both become ``sqrt(a w)``."""
    a, w = salience(peaks, weights), weights.double()
    return _where_live(torch.sqrt(a / (w + 1e-8)), a, w)


def awq_scale(means: torch.Tensor, exponent: float) -> torch.Tensor:
    """``m^exponent`` of mean magnitudes [K], around 1 (AWQ equation 5), float64."""
    scale = means.double().clamp(min=1e-12).pow(exponent).clamp(min=1e-4)
    return _where_live(scale / torch.sqrt(scale.max() * scale.min()), means)
