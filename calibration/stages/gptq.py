"""Rounding: GPTQ, each column's error made up for by the columns that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Gptq"]


@dataclass(frozen=True)
class Gptq:
    """GPTQ (arXiv 2210.17323) on any grid, under the scales of the range stage.

    Second moments count samples as the unit's objective does. A unit keeps rounding to nearest
    where that loses less.

    Attributes:
        damping: added to the moments' diagonal, as a share of its mean.
        block: columns whose errors are spread to the rest at a time.
        ordered: whether inputs of the largest moments come first.
    """

    kind: ClassVar[str] = "rounding"
    needs_inputs: ClassVar[bool] = True
    iterations: ClassVar[int] = 0
    damping: float = 0.01
    block: int = 64
    ordered: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        real("gptq.damping", self.damping, 1e-9)
        whole("gptq.block", self.block, 1)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with their codes, the unit's error noted.

        Raises:
            UsageError: a layer whose moments are not finite or not positive definite.
        """
        from fp4dit_onnx.calibration.draft import finished
        from fp4dit_onnx.calibration.gptq import compensated
        from fp4dit_onnx.calibration.moments import second_moments
        from fp4dit_onnx.calibration.rounding import packed, rounded_to_nearest

        unit = evidence.unit
        assert unit is not None
        moments = second_moments(unit, drafts)
        made = {
            name: replace(
                draft,
                codes=packed(compensated(draft, moments[name], self), draft.spec.weight_format),
            )
            for name, draft in drafts.items()
        }
        nearest = {name: rounded_to_nearest(draft) for name, draft in drafts.items()}
        usual = unit.error(*finished(nearest).values()).clamp(min=1e-30)
        error = float(unit.objective.loss(unit.error(*finished(made).values()), usual))
        kept, error = (made, error) if error < 1 else (nearest, 1.0)
        return {name: replace(draft, error=error) for name, draft in kept.items()}
