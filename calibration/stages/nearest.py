"""Rounding: to the nearest grid value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Nearest"]


@dataclass(frozen=True)
class Nearest(LayerStage):
    """Nearest grid value under the scale; ties to the even significand."""

    kind: ClassVar[str] = "rounding"

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its codes."""
        from fp4dit_onnx.calibration.rounding import rounded_to_nearest

        return rounded_to_nearest(draft)
