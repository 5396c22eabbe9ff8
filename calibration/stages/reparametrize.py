"""Transform: RepQ-ViT's scale reparametrization: a range for each input becomes one for the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.balance import Balance
from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence
from fp4dit_onnx.calibration.stages.static import DEFAULT_SHARES, shares_of
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.vector import Vector

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["Reparametrize"]


@dataclass(frozen=True)
class Reparametrize(Balance):
    """Input j, of range c_j, is divided by r_j = c_j / mean(c), and column j of the weight multiplied.

    All inputs have the range mean(c) then, which is their one constant scale. Linears that read one
    tensor have one vector. Layers whose activations stay in float are left alone.

    Attributes:
        shares: of an input's magnitudes that its range holds, with spaces between; the one of the least
            squared error is taken.
        layers: patterns of names, with shell wildcards and spaces between.
    """

    needs: ClassVar[str] = MOMENTS
    shares: str = DEFAULT_SHARES
    layers: str = "*"

    def __post_init__(self) -> None:
        """Check the shares."""
        shares_of("reparametrize.shares", self.shares)

    def takes(self, draft: Draft) -> bool:
        """See `Together`."""
        named = any(fnmatchcase(draft.name, pattern) for pattern in self.layers.split())
        return named and draft.spec.input is not None

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`; by the format of the first."""
        from fp4dit_onnx.calibration.constant_scale import ranges_of_inputs
        from fp4dit_onnx.calibration.transforming import transformed_draft

        assert evidence.inputs is not None
        first = members[0]
        fmt = first.spec.activation_format
        assert fmt is not None
        shares = shares_of("reparametrize.shares", self.shares)
        ranges = ranges_of_inputs(evidence.inputs(first).received(first), fmt, shares)
        common = ranges.double().mean()
        one = Diagonal(first.name, Vector((common / ranges.double()).float().numpy()))
        found = {}
        for draft in members:
            made = transformed_draft(draft, one)
            found[draft.name] = replace(made, spec=made.spec.with_largest(float(common)))
        return found
