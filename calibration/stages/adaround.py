"""Rounding: trained so that the unit's output stays what it was in float."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.errors import UsageError

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["AdaRound"]


@dataclass(frozen=True)
class AdaRound:
    """Trained rounding (FP4DiT section "scale-aware AdaRound"; arXiv 2004.10568).

    Defaults differ from FP4DiT's code where docs/design.md says why.

    Attributes:
        iterations: optimizer steps a unit.
        batch: samples a step.
        scale_aware: train V' = s V instead of V.
        learning_rate: of Adam; in units of the weights if scale-aware, else of V.
        largest_move: bound on one step's change of V where s is tiny.
        penalty: weight of the regularizer's mean beside errors in units of nearest rounding's.
        warm_up: share of the steps without the regularizer.
        beta_start: exponent of the regularizer after the warm-up.
        beta_end: at the last step; linear in between.
    """

    kind: ClassVar[str] = "rounding"
    needs_inputs: ClassVar[bool] = True
    iterations: int = 350
    batch: int = 16
    scale_aware: bool = True
    learning_rate: float = 3e-3
    largest_move: float = 0.5
    penalty: float = 5.0
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0

    def __post_init__(self) -> None:
        """Check the settings."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("warm_up", "penalty", "scale_aware") and not value > 0:
                raise UsageError(f"stage adaround: {field.name} {value}: expected more than 0")
        if not 0 <= self.warm_up < 1 or not self.penalty >= 0:
            raise UsageError(
                f"stage adaround: warm_up {self.warm_up} and penalty {self.penalty}: expected a "
                "share from 0 to below 1, and 0 or more"
            )

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with their codes, the unit's error noted."""
        from fp4dit_onnx.calibration.reconstruct import trained

        assert evidence.unit is not None
        return trained(drafts, self, evidence.unit, evidence.seed, evidence.on_step)
