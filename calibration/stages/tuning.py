"""Tuning: what stages that train a unit's float weights have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import INPUTS, Evidence
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Tuning"]

SMALLEST = 1e-12
"""Of what must be above 0."""


@dataclass(frozen=True)
class Tuning:
    """Trains the weights of a unit before they are rounded.

    Attributes:
        name: of the stage in recipes.
        iterations: optimizer steps per unit.
        batch: samples per step.
        learning_rate: of Adam.
    """

    kind: ClassVar[str] = "tuning"
    needs: ClassVar[str] = INPUTS
    name: ClassVar[str]
    iterations: int = 100
    batch: int = 16
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        """Check the settings."""
        for setting in ("iterations", "batch"):
            whole(f"{self.name}.{setting}", getattr(self, setting), 1)
        real(f"{self.name}.learning_rate", self.learning_rate, SMALLEST)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with other weights where these are better by the stage's measure."""
        raise NotImplementedError
