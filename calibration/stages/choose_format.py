"""Choice: a layer's weight format, by its error in the layer's output or by the weight's spread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.values import real

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["ChooseFormat"]


BY = ("error", "spread")


@dataclass(frozen=True)
class ChooseFormat(LayerStage):
    """One of the candidates, by measured error or by a statistic of the weight alone.

    By ``error`` it is that of the least ``tr(E H E^T)``: E what rounding changes, H the second moments.
    By ``spread`` it is that whose largest over smallest magnitude (e1m2 7, e2m1 12, e3m0 64) is nearest,
    in ratio, to the weight's: the median over groups of the largest over a low quantile.

    Attributes:
        among: the formats that are looked at, with spaces between; of the request's candidates.
        by: ``error`` or ``spread``.
        quantile: of a group's magnitudes, that counts as its smallest; in (0, 1).
    """

    kind: ClassVar[str] = "choice"
    needs: ClassVar[str] = MOMENTS
    among: str = "e2m1 e1m2 e3m0"
    by: str = "error"
    quantile: float = 0.2

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.by not in BY:
            raise UsageError(f"choose-format.by {self.by!r}: expected one of {', '.join(BY)}")
        real("choose-format.quantile", self.quantile, 1e-3, 1 - 1e-3)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft in the chosen format; one without candidates as it is."""
        names = [name for name in self.among.split() if name in draft.candidates]
        if not names:
            return draft
        specs = [draft.spec.with_weight(format=name) for name in names]
        if self.by == "spread":
            from fp4dit_onnx.calibration.ranges import spread_distance

            losses = [spread_distance(draft.weight, spec, self.quantile) for spec in specs]
        else:
            assert evidence.inputs is not None
            given = evidence.inputs(draft)
            losses = [given.loss(evidence.rounded(replace(draft, spec=s))) for s in specs]
        return replace(draft, spec=specs[losses.index(min(losses))])
