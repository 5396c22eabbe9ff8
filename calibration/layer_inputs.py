"""Inputs of a layer, as stages use them: second moments, rows, and errors on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.evidence import Part
from fp4dit_onnx.calibration.moments import Moments, Rows
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.transforming import transformed, transformed_moments
from fp4dit_onnx.network.execution import HOST, Execution, sum64
from fp4dit_onnx.spec.transform import Transform

__all__ = ["LayerInputs", "Second", "UnitInputs"]


@dataclass
class Second:
    """Second moments, and what is computed from them once for all layers that share them.

    Attributes:
        matrix: H = E[x x^T], float64 [K, K], on the host.
        execution: whose device factors it, where that has float64.
    """

    matrix: torch.Tensor
    execution: Execution = HOST
    _factors: dict[tuple[float, bool], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict
    )
    _losses: dict[int, tuple[object, float]] = field(default_factory=dict)

    def loss(self, draft: Draft) -> float:
        """``tr(E H E^T)`` of a rounded draft: what its weight's error E makes of the output."""
        known = self._losses.get(id(draft.codes))
        if known is None:
            there = self.execution.there
            error = there(torch.from_numpy(draft.layer().weight()) - draft.weight)
            moved = error @ there(self.matrix.float())
            # Beside its codes: while they are kept, no others have their address.
            known = self._losses[id(draft.codes)] = draft.codes, sum64(moved * error)
        return known[1]

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
            torch.linalg.LinAlgError: the damped moments are not positive definite.
        """
        key = damping, ordered
        if key not in self._factors:
            order = self.order(ordered=ordered)
            ordered_matrix = self.matrix[order][:, order].to(self.execution.float64)
            self._factors[key] = order, inverse_factor(ordered_matrix, damping)
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


def _unknown() -> torch.Tensor:
    raise AssertionError("no maxima were recorded")


@dataclass(frozen=True)
class LayerInputs:
    """What one layer receives after the operators of a draft of it.

    Attributes:
        reader: the first layer that reads the same tensor.
        second: second moments, after the draft's `input_ops`.
        rows: some rows, before them.
        weight: of the float layer, float32 [N, K].
        bias: of it, float32 [N] or None.
        execution: where sums over a whole weight are computed; all else here is on the host.
        peaks: largest magnitudes over the tokens of each sample, float32 [S, K], before `input_ops`.
        first: the first layer of the unit that reads it, as `UnitInputs` was asked for them.
    """

    reader: str
    second: Second
    rows: Callable[[], Rows]
    weight: torch.Tensor
    bias: torch.Tensor | None
    execution: Execution = HOST
    peaks: Callable[[], torch.Tensor] = _unknown
    first: str = ""

    @property
    def diagonal(self) -> torch.Tensor:
        """Mean square of each input, float32 [K]."""
        return self.second.matrix.diagonal().float()

    def received(self, draft: Draft) -> Rows:
        """The rows after the draft's `input_ops`: what is quantized; on the host."""
        rows = self.rows()
        return replace(rows, halves=transformed(rows.halves, draft.spec.input_ops))

    def loss(self, draft: Draft) -> float:
        """See `Second`."""
        return self.second.loss(draft)

    def error(self, draft: Draft) -> float:
        """Weighted error of the layer's output on the rows, activations quantized too."""
        rows, there = self.rows(), self.execution.there
        halves, weight, bias = there((rows.halves, self.weight, self.bias))
        simulated = SimulatedLinear(draft.layer(), bias, device=self.execution.device)(halves)
        return rows.error(simulated - torch.nn.functional.linear(halves, weight, bias))


class UnitInputs:
    """Finds what the layers of one unit receive, and keeps it while the unit is worked on.

    Args:
        moments: of the network.
        part: the float unit.
    """

    def __init__(self, moments: Moments, part: Part) -> None:
        self._moments, self._part = moments, part
        self._second: dict[tuple[str, tuple[Transform, ...]], Second] = {}
        self._rows: dict[str, Rows] = {}
        self._first: dict[str, str] = {}

    def __call__(self, draft: Draft) -> LayerInputs:
        """What the layer of a draft receives."""
        reader = self._moments.readers[draft.name]
        key = reader, draft.spec.input_ops
        if key not in self._second:
            matrix = transformed_moments(self._moments.matrix(reader), draft.spec.input_ops)
            self._second[key] = Second(matrix, self._part.parts.execution)
        return LayerInputs(
            reader=reader,
            first=self._first.setdefault(reader, draft.name),
            second=self._second[key],
            rows=lambda: self._kept(reader),
            peaks=lambda: self._moments.peaks(reader),
            weight=self._part.weight(draft.name),
            bias=self._part.bias(draft.name),
            execution=self._part.parts.execution,
        )

    def _kept(self, reader: str) -> Rows:
        if reader not in self._rows:
            self._rows[reader] = self._moments.rows(reader)
        return self._rows[reader]
