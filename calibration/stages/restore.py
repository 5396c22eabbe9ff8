"""Tuning: a weight of low rank trained on top of rounded weights, before they are rounded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import INPUTS, Evidence
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Restore"]

SMALLEST = 1e-12
"""Of what must be above 0."""


@dataclass(frozen=True)
class Restore:
    """PTQ1.61's restorative preprocessing (arXiv 2502.13179), unit by unit.

    Attributes:
        iterations: optimizer steps per unit.
        batch: samples per step.
        learning_rate: of Adam, of both matrices.
        rank: of what is added to a weight, the number of its inputs or outputs at most.
    """

    kind: ClassVar[str] = "tuning"
    needs: ClassVar[str] = INPUTS
    iterations: int = 200
    batch: int = 16
    learning_rate: float = 1e-4
    rank: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("iterations", "batch", "rank"):
            whole(f"restore.{name}", getattr(self, name), 1)
        real("restore.learning_rate", self.learning_rate, SMALLEST)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with other weights where these are nearer to the float unit once rounded."""
        from fp4dit_onnx.calibration.restoring import restored

        assert evidence.unit is not None
        return restored(
            drafts, self, evidence.unit, evidence.rounded, evidence.seed, evidence.on_step
        )
