"""Choice: a layer's weight format by the error that it costs the unit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["ChooseFormat"]


@dataclass(frozen=True)
class ChooseFormat(LayerStage):
    """The candidate with the least output error of the unit, this layer alone rounded to nearest."""

    kind: ClassVar[str] = "choice"
    needs_inputs: ClassVar[bool] = True

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft in the chosen format; one without candidates as it is."""
        if not draft.candidates:
            return draft
        unit = evidence.unit
        assert unit is not None
        specs = [draft.spec.with_weight(format=name) for name in draft.candidates]
        errors = [unit.error(evidence.nearest(replace(draft, spec=s)).layer()) for s in specs]
        unit_of_error = errors[0].clamp(min=1e-30)
        losses = [float(unit.objective.loss(error, unit_of_error)) for error in errors]
        return replace(draft, spec=specs[losses.index(min(losses))])
