"""Choice: activations under one constant scale in place of one for each token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.values import whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["DEFAULT_SHARES", "Static", "shares_of"]

DEFAULT_SHARES = "0.999 0.9999 0.99999 1"
"""Percentiles as PTQ4DiT and RepQ-ViT look at, and all."""


def shares_of(what: str, text: str) -> list[float]:
    """Numbers in (0, 1], with spaces between.

    Raises:
        UsageError: another number, a word, or none at all; the message begins with `what`.
    """
    try:
        shares = [float(word) for word in text.split()]
    except ValueError:
        shares = []
    if shares and all(0 < share <= 1 for share in shares):
        return shares
    raise UsageError(f"{what} {text!r}: expected numbers in (0, 1], with spaces between")


@dataclass(frozen=True)
class Static(LayerStage):
    """The scale under which the recorded activations have the least squared error, of a few.

    Layers whose activations stay in float, or have a constant scale already, are left alone.

    Attributes:
        shares: of the magnitudes that a scale holds without cutting them off, with spaces between;
            each in (0, 1], 1 for all that were recorded.
        steps: in place of them, how many scales are looked at, evenly from the largest magnitude to
            1 / steps of it (2DQuant's DOBI); 0 for `shares`.
    """

    kind: ClassVar[str] = "choice"
    needs: ClassVar[str] = MOMENTS
    shares: str = DEFAULT_SHARES
    steps: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        shares_of("static.shares", self.shares)
        whole("static.steps", self.steps, 0)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with a constant scale of its activations."""
        from fp4dit_onnx.calibration.constant_scale import best_largest, quantiles

        if draft.spec.input is None or draft.spec.largest is not None:
            return draft
        assert evidence.inputs is not None
        rows = evidence.inputs(draft).received(draft)
        fmt = draft.spec.activation_format
        assert fmt is not None
        if self.steps:
            most = float(rows.halves.abs().max())
            candidates = [most * (1 - i / self.steps) for i in range(self.steps)]
        else:
            candidates = quantiles(rows.halves, shares_of("static.shares", self.shares))
        largest = best_largest(rows, fmt, candidates)
        return replace(draft, spec=draft.spec.with_largest(largest))
