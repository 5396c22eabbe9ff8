"""Training a unit's float weights: a linear that does so, and the unit rounded beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch

from fp4dit_onnx.calibration.descent import Descent
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.evidence import FloatUnit, Part
from fp4dit_onnx.calibration.grid import passed, quantized_values
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.transforming import transformed

__all__ = ["TunedLinear", "descent_of", "rounded"]


def rounded(
    drafts: Drafts, part: Part, by: Callable[[Draft], Draft]
) -> dict[str, SimulatedLinear]:
    """The layers of `part`, rounded `by` what the evidence offers."""
    return {
        name: SimulatedLinear.of(by(draft).layer(), part.linear(name))
        for name, draft in drafts.items()
    }


def descent_of(unit: FloatUnit, batch: int) -> Descent:
    """Of what now takes the unit's place: of a unit that is a linear itself it is another module."""
    return Descent(unit.part.module, unit.objective, batch)


class TunedLinear(torch.nn.Module):
    """Quantized activations times a float weight, in float32.

    The gradient passes through the rounding of the activations as if there were none.

    Args:
        draft: the layer; its specification says what is done to activations.
        bias: [N] or None.
    """

    def __init__(self, draft: Draft, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.draft, self.bias = draft, bias

    @abstractmethod
    def matrix(self) -> torch.Tensor:
        """The weight float32 [N, K] as it is now."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> float32 [..., N]."""
        moved = transformed(x.float(), self.draft.spec.input_ops)
        given = self.draft.spec.input
        if given is not None:
            moved = passed(moved, quantized_values(moved.detach(), given))
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(moved, self.matrix(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N], of x's type."""
        return self.product(x).to(x.dtype)
