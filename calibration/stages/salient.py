"""Choice: most inputs of a weight have a sign alone, the salient ones codes (PTQ1.61)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MAXIMA, Evidence, LayerStage
from fp4dit_onnx.values import real

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["SalientInputs"]


@dataclass(frozen=True)
class SalientInputs(LayerStage):
    """The inputs of the largest magnitudes keep 4-bit weights, all others +1 or -1 times a scale.

    Inputs are arranged so that the salient ones come first, in whole groups of the weight: as many as
    the share allows, one group at least. A layer of one group stays as it is.

    Attributes:
        share: of a layer's inputs that are salient.
    """

    kind: ClassVar[str] = "choice"
    needs: ClassVar[str] = MAXIMA
    share: float = 0.2

    def __post_init__(self) -> None:
        """Check the share."""
        real("salient.share", self.share, 0, 1)

    def mean_bits(self, bits: int) -> float:
        """Of a weight, without scales, where the salient ones have `bits`."""
        return self.share * bits + (1 - self.share)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its inputs arranged, and with signs."""
        import numpy as np

        from fp4dit_onnx.calibration.transforming import transformed_weight
        from fp4dit_onnx.spec.salient import Salient
        from fp4dit_onnx.spec.vector import Vector

        assert evidence.inputs is not None
        spec, k = draft.spec, draft.weight.shape[1]
        group = spec.group_size
        wide = max(int(self.share * k) // group, 1) * group
        if wide >= k:
            return draft
        given = evidence.inputs(draft)
        # Of inputs that are transformed already there are some rows alone.
        seen = given.received(draft).halves.flatten(0, 1) if spec.input_ops else given.peaks()
        largest = seen.abs().amax(dim=0).numpy()
        chosen = np.zeros(k, np.bool_)
        chosen[np.argsort(-largest, kind="stable")[:wide]] = True
        one = Salient(given.first, Vector(np.packbits(chosen, bitorder="little")))
        arranged = replace(spec, input_ops=(*spec.input_ops, one)).with_weight(wide=wide)
        return replace(draft, spec=arranged, weight=transformed_weight(draft.weight, [one]))
