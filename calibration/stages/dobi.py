"""Range: one bound for a whole weight, searched from its largest magnitude down (2DQuant's DOBI)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage
from fp4dit_onnx.values import whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Dobi"]


@dataclass(frozen=True)
class Dobi(LayerStage):
    """All output channels and groups have one scale, of the least squared error of nearest rounding.

    Attributes:
        steps: bounds that are looked at, evenly from the largest magnitude to 1 / steps of it.
    """

    kind: ClassVar[str] = "range"
    steps: int = 100

    def __post_init__(self) -> None:
        """Check the steps."""
        whole("dobi.steps", self.steps, 1)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its scales."""
        from fp4dit_onnx.calibration.bounds import best_bound, common_scale

        bound = best_bound(draft.weight, draft.spec.weight_format, self.steps)
        return replace(draft, scale=common_scale(draft, bound))
