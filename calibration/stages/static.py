"""Choice: activations under one constant scale in place of one for each token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage
from fp4dit_onnx.errors import UsageError

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(LayerStage):
    """The scale under which the recorded activations have the least squared error, of a few.

    Layers whose activations stay in float are left alone.

    Attributes:
        shares: of the magnitudes that a scale holds without cutting them off, with spaces between;
            each in (0, 1], 1 for all that were recorded.
    """

    kind: ClassVar[str] = "choice"
    needs: ClassVar[str] = MOMENTS
    shares: str = "0.999 0.9999 0.99999 1"

    def __post_init__(self) -> None:
        """Check the shares."""
        try:
            valid = all(0 < share <= 1 for share in self._shares) and self._shares
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(
                f"static.shares {self.shares!r}: expected numbers in (0, 1], with spaces between"
            )

    @property
    def _shares(self) -> list[float]:
        return [float(text) for text in self.shares.split()]

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with a constant scale of its activations."""
        from fp4dit_onnx.calibration.constant_scale import best_largest, quantiles

        if draft.spec.input is None:
            return draft
        assert evidence.inputs is not None
        rows = evidence.inputs(draft).received(draft)
        fmt = draft.spec.activation_format
        assert fmt is not None
        largest = best_largest(rows, fmt, quantiles(rows.halves, self._shares))
        return replace(draft, spec=draft.spec.with_largest(largest))
