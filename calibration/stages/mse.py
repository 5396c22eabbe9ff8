"""Range: the scale under which nearest rounding has the least squared error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Mse"]


@dataclass(frozen=True)
class Mse(LayerStage):
    """A search below the absmax scale, group by group.

    Attributes:
        lowest: the smallest candidate as a share of the absmax scale, in (0, 1].
        candidates: how many, evenly from `lowest` to 1; at least 1.
    """

    kind: ClassVar[str] = "range"
    lowest: float = 0.7
    candidates: int = 31

    def __post_init__(self) -> None:
        """Check the settings."""
        real("mse.lowest", self.lowest, 1e-9, 1)
        whole("mse.candidates", self.candidates, 1)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its scales."""
        from fp4dit_onnx.calibration.ranges import mse_scale

        scale = mse_scale(draft.weight, draft.spec, self.lowest, self.candidates)
        return replace(draft, scale=scale)
