"""Tuning: float weights trained for some steps towards outputs without outlier channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import INPUTS, Evidence
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Regularize"]

SMALLEST = 1e-12
"""Of what must be above 0."""


@dataclass(frozen=True)
class Regularize:
    """Activation regularization (arXiv 2404.03605) of a trained network, unit by unit.

    Attributes:
        iterations: optimizer steps per unit.
        batch: samples per step.
        learning_rate: of Adam, in units of the weights.
        weight: of the outputs' kurtosis beside the unit's error in units of nearest rounding's.
    """

    kind: ClassVar[str] = "tuning"
    needs: ClassVar[str] = INPUTS
    iterations: int = 100
    batch: int = 16
    learning_rate: float = 2e-5
    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("iterations", "batch"):
            whole(f"regularize.{name}", getattr(self, name), 1)
        real("regularize.learning_rate", self.learning_rate, SMALLEST)
        real("regularize.weight", self.weight, 0)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with other weights where that lowers the loss."""
        from fp4dit_onnx.calibration.regularizing import regularized

        assert evidence.unit is not None
        return regularized(
            drafts, self, evidence.unit, evidence.rounded, evidence.seed, evidence.on_step
        )
