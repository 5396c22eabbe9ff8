"""Range: maps each group's largest magnitude to the grid's largest value (FP4DiT, ranges)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Absmax"]


@dataclass(frozen=True)
class Absmax(LayerStage):
    """scale = largest magnitude of the group / largest grid integer, rounded as it is stored."""

    kind: ClassVar[str] = "range"

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its scales."""
        from fp4dit_onnx.calibration.ranges import absmax_scale

        return replace(draft, scale=absmax_scale(draft.weight, draft.spec))
