"""Tuning: float weights trained for some steps towards outputs without outlier channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.stages.tuning import Tuning
from fp4dit_onnx.values import real

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Regularize"]


@dataclass(frozen=True)
class Regularize(Tuning):
    """Activation regularization (arXiv 2404.03605) of a trained network, unit by unit.

    Attributes:
        learning_rate: of Adam, in units of the weights.
        weight: of the outputs' kurtosis beside the unit's error in units of nearest rounding's.
    """

    name: ClassVar[str] = "regularize"
    learning_rate: float = 2e-5
    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        real("regularize.weight", self.weight, 0)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """See `Tuning`."""
        from fp4dit_onnx.calibration.regularizing import regularized

        return regularized(drafts, self, evidence)
