"""Rounding: learned so that the unit's output stays close to float."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import INPUTS, Evidence
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["AdaRound"]

SMALLEST = 1e-9
"""Of what must be above 0."""


@dataclass(frozen=True)
class AdaRound:
    """Trained rounding (FP4DiT section "scale-aware AdaRound"; arXiv 2004.10568).

    Defaults differ from FP4DiT's code where docs/design.md says why.

    Attributes:
        iterations: optimizer steps per unit.
        batch: samples per step.
        scale_aware: train V' = s V instead of V.
        learning_rate: of Adam; in units of the weights if scale-aware, else of V.
        largest_move: bound on one step's change of V where s is tiny.
        penalty: weight of the regularizer's mean beside errors in units of nearest rounding's.
        warm_up: share of the steps without the regularizer.
        beta_start: exponent of the regularizer after the warm-up.
        beta_end: at the last step; linear in between.
        only: patterns of names of layers, with shell wildcards and blanks between them; a unit without
            such a layer is rounded to nearest. By default all are trained.
    """

    kind: ClassVar[str] = "rounding"
    needs: ClassVar[str] = INPUTS
    iterations: int = 350
    batch: int = 16
    scale_aware: bool = True
    learning_rate: float = 3e-3
    largest_move: float = 0.5
    penalty: float = 5.0
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    only: str = "*"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("iterations", "batch"):
            whole(f"adaround.{name}", getattr(self, name), 1)
        for name in ("learning_rate", "largest_move", "beta_start", "beta_end"):
            real(f"adaround.{name}", getattr(self, name), SMALLEST)
        real("adaround.penalty", self.penalty, 0)
        real("adaround.warm_up", self.warm_up, 0, 1 - SMALLEST)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with their codes, the unit's error noted."""
        from fp4dit_onnx.calibration.reconstruct import trained

        if not any(fnmatchcase(name, one) for name in drafts for one in self.only.split()):
            return {name: evidence.rounded(draft) for name, draft in drafts.items()}
        assert evidence.unit is not None
        return trained(drafts, self, evidence.unit, evidence.seed, evidence.on_step)
