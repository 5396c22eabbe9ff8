"""Tuning: a weight of low rank trained on top of rounded weights, before they are rounded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.stages.tuning import Tuning
from fp4dit_onnx.values import whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Restore"]


@dataclass(frozen=True)
class Restore(Tuning):
    """PTQ1.61's restorative preprocessing (arXiv 2502.13179), unit by unit.

    Attributes:
        rank: of what is added to a weight, the number of its inputs or outputs at most.
    """

    name: ClassVar[str] = "restore"
    iterations: int = 200
    rank: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        whole("restore.rank", self.rank, 1)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """See `Tuning`: where they are nearer to the float unit once rounded."""
        from fp4dit_onnx.calibration.restoring import restored

        return restored(drafts, self, evidence)
