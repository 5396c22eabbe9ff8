"""Rounding: GPTQ, where later columns compensate for the error of each column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Gptq"]


@dataclass(frozen=True)
class Gptq(LayerStage):
    """GPTQ (arXiv 2210.17323) on any grid, under the scales of the range stage.

    A layer keeps rounding to nearest if its error is smaller.

    Attributes:
        damping: added to the moments' diagonal, as a share of its mean.
        block: columns whose errors are spread to the rest at a time.
        ordered: whether inputs of the largest moments come first.
    """

    kind: ClassVar[str] = "rounding"
    needs: ClassVar[str] = MOMENTS
    damping: float = 0.01
    block: int = 64
    ordered: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        real("gptq.damping", self.damping, 1e-9)
        whole("gptq.block", self.block, 1)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its codes, and its error in units of nearest rounding's.

        Raises:
            UsageError: a layer whose damped moments are not positive definite.
        """
        from fp4dit_onnx.calibration.gptq import compensated
        from fp4dit_onnx.calibration.rounding import packed, rounded_to_nearest

        assert evidence.inputs is not None
        given = evidence.inputs(draft)
        integers = compensated(draft, given, self)
        made = replace(draft, codes=packed(integers, draft.spec.weight_format, draft.spec.wide))
        nearest = rounded_to_nearest(draft)
        usual = given.loss(nearest)
        error = given.loss(made) / usual if usual > 0 else 1.0
        return replace(made, error=error) if error < 1 else replace(nearest, error=1.0)
