"""Choice: a layer's weight format by its error in the layer's output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["ChooseFormat"]


@dataclass(frozen=True)
class ChooseFormat(LayerStage):
    """The candidate of the least ``tr(E H E^T)``: E what rounding changes, H the second moments.

    Attributes:
        among: the formats that are looked at, with spaces between; of the request's candidates.
    """

    kind: ClassVar[str] = "choice"
    needs: ClassVar[str] = MOMENTS
    among: str = "e2m1 e1m2 e3m0"

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft in the chosen format; one without candidates as it is."""
        assert evidence.inputs is not None
        given = evidence.inputs(draft)
        names = [name for name in self.among.split() if name in draft.candidates]
        specs = [draft.spec.with_weight(format=name) for name in names]
        losses = [given.loss(evidence.rounded(replace(draft, spec=s))) for s in specs]
        return replace(draft, spec=specs[losses.index(min(losses))]) if losses else draft
