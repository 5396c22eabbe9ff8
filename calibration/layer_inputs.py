"""Inputs of a layer, as stages use them: second moments, rows, and errors on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.moments import Moments, Rows
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.transforming import transformed_moments
from fp4dit_onnx.spec.transform import Transform

__all__ = ["LayerInputs", "Second", "UnitInputs"]


@dataclass
class Second:
    """Second moments, and what is computed from them once for all layers that share them.

    Attributes:
        matrix: H = E[x x^T], float64 [K, K].
    """

    matrix: torch.Tensor
    _factors: dict[tuple[float, bool], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict
    )

    def order(self, *, ordered: bool) -> torch.Tensor:
        """Inputs by falling diagonal, int64 [K]; as they are if not `ordered`."""
        diagonal = self.matrix.diagonal()
        if not ordered:
            return torch.arange(len(diagonal))
        return torch.argsort(diagonal, descending=True, stable=True)

    def factor(self, damping: float, *, ordered: bool) -> torch.Tensor:
        """The upper Cholesky factor U of the damped inverse ``U^T U``, inputs in `order`; float32.

        Args:
            damping: is added to the diagonal, as a share of its mean. An input that is always 0
                counts as one alone.
            ordered: see `order`.

        Raises:
            RuntimeError: the damped moments are not positive definite.
        """
        key = damping, ordered
        if key not in self._factors:
            order = self.order(ordered=ordered)
            self._factors[key] = order, inverse_factor(self.matrix[order][:, order], damping)
        return self._factors[key][1]


def inverse_factor(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the damped inverse; computed in float64, float32 [K, K]."""
    damped = moments.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal <= 0] = 1.0
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


@dataclass(frozen=True)
class LayerInputs:
    """What one layer receives after the operators of a draft of it.

    Attributes:
        reader: the first layer that reads the same tensor.
        second: second moments, after the draft's `input_ops`.
        rows: some rows, before them.
        weight: of the float layer, float32 [N, K].
        bias: of it, float32 [N] or None.
    """

    reader: str
    second: Second
    rows: Callable[[], Rows]
    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def diagonal(self) -> torch.Tensor:
        """Mean square of each input, float32 [K]."""
        return self.second.matrix.diagonal().float()

    def loss(self, draft: Draft) -> float:
        """``tr(E H E^T)`` of a rounded draft: what its weight's error E makes of the output."""
        error = torch.from_numpy(draft.layer().weight()) - draft.weight
        moved = error @ self.second.matrix.float()
        return float((moved * error).sum(dtype=torch.float64))

    def error(self, draft: Draft) -> float:
        """Weighted error of the layer's output on the rows, activations quantized too."""
        rows = self.rows()
        simulated = SimulatedLinear(draft.layer(), self.bias)(rows.halves)
        exact = torch.nn.functional.linear(rows.halves, self.weight, self.bias)
        return rows.error(simulated - exact)


class UnitInputs:
    """Finds what the layers of one unit receive, and keeps it while the unit is worked on.

    Args:
        moments: of the network.
        linear: gives a layer of the float unit by its name.
    """

    def __init__(self, moments: Moments, linear: Callable[[str], torch.nn.Linear]) -> None:
        self._moments, self._linear = moments, linear
        self._second: dict[tuple[str, tuple[Transform, ...]], Second] = {}
        self._rows: dict[str, Rows] = {}

    def __call__(self, draft: Draft) -> LayerInputs:
        """What the layer of a draft receives."""
        reader = self._moments.readers[draft.name]
        key = reader, draft.spec.input_ops
        if key not in self._second:
            matrix = transformed_moments(self._moments.matrix(reader), draft.spec.input_ops)
            self._second[key] = Second(matrix)
        linear = self._linear(draft.name)
        weight = linear.weight.detach().float()
        bias = None if linear.bias is None else linear.bias.detach().float()
        second = self._second[key]
        return LayerInputs(reader, second, lambda: self._kept(reader), weight, bias)

    def _kept(self, reader: str) -> Rows:
        if reader not in self._rows:
            self._rows[reader] = self._moments.rows(reader)
        return self._rows[reader]
