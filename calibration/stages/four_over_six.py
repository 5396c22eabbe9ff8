"""Range: each group's largest magnitude becomes the grid's largest value, or one below (6 or 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage
from fp4dit_onnx.errors import UsageError

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["FourOverSix"]

ERRORS = {"mse": (2, False), "mae": (1, False), "max": (1, True)}
"""By name: the power of each element's error, and whether a group's largest counts or their sum."""


@dataclass(frozen=True)
class FourOverSix(LayerStage):
    """Four over six (arXiv 2512.02010): of e2m1's 6 and 4 the one that loses less, group by group.

    Other grids have the values of their top binade to choose among; even ones have their largest.

    Attributes:
        error: what is compared: ``mse``, ``mae`` (the sum of magnitudes) or ``max``.
    """

    kind: ClassVar[str] = "range"
    error: str = "mse"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.error not in ERRORS:
            raise UsageError(
                f"four-over-six.error {self.error!r}: expected one of {', '.join(ERRORS)}"
            )

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its scales."""
        from fp4dit_onnx.calibration.ranges import limit_scale

        scale = limit_scale(draft.weight, draft.spec, ERRORS[self.error])
        return replace(draft, scale=scale)
