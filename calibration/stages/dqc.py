"""Rounding: to nearest under bounds that are trained (2DQuant's distillation, DQC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import INPUTS, Evidence
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Dqc"]


@dataclass(frozen=True)
class Dqc:
    """The bound of each weight and of each input under a constant scale, trained unit by unit.

    Weights are not changed. Bounds begin as the range stage and a stage of constant scales found them,
    and stay so where training does not help the unit.

    Attributes:
        iterations: optimizer steps per unit.
        batch: samples per step.
        learning_rate: of Adam, of a bound's ratio to where it began.
    """

    kind: ClassVar[str] = "rounding"
    needs: ClassVar[str] = INPUTS
    iterations: int = 300
    batch: int = 16
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        """Check the settings."""
        whole("dqc.iterations", self.iterations, 1)
        whole("dqc.batch", self.batch, 1)
        real("dqc.learning_rate", self.learning_rate, 1e-9)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with scales, constant scales of inputs and codes, the unit's error noted."""
        from fp4dit_onnx.calibration.bounds import distilled

        assert evidence.unit is not None
        return distilled(drafts, self, evidence.unit, evidence.seed, evidence.on_step)
