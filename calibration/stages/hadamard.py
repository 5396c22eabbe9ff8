"""Transform: inputs rotated by Hadamard matrices where that lowers the error of a layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence
from fp4dit_onnx.spec.spec import Hadamard

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["Rotate"]


@dataclass(frozen=True)
class Rotate:
    """x becomes x R and the weight W R, R block diagonal of normalized Hadamard matrices.

    Linears of a unit that read one tensor are rotated together or not at all: the rotation is one
    operator. Both ways are rounded, and the lower error of the outputs with quantized activations
    decides. Layers whose activations stay in float are left alone.

    Attributes:
        block: size of the matrices, a power of two.
    """

    kind: ClassVar[str] = "transform"
    needs: ClassVar[str] = MOMENTS
    iterations: ClassVar[int] = 0
    block: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        Hadamard(self.block)

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with `input_ops` and rotated weights where they are worth it."""
        assert evidence.inputs is not None
        groups: dict[str, list[Draft]] = {}
        for draft in drafts.values():
            if draft.spec.input is not None:
                groups.setdefault(evidence.inputs(draft).reader, []).append(draft)
        found = dict(drafts)
        for members in groups.values():
            turned = [self._turned(draft) for draft in members]
            gains = [_gain(p, t, evidence) for p, t in zip(members, turned, strict=True)]
            if sum(gains) > 0:
                found |= {draft.name: draft for draft in turned}
        return found

    def _turned(self, draft: Draft) -> Draft:
        from fp4dit_onnx.calibration.rotation import rotated_weight

        spec = replace(draft.spec, input_ops=(Hadamard(self.block),))
        return replace(draft, spec=spec, weight=rotated_weight(draft.weight, spec))


def _gain(plain: Draft, turned: Draft, evidence: Evidence) -> float:
    """Logarithm of the error without rotation over that with it."""
    assert evidence.inputs is not None
    assert evidence.chosen is not None
    errors = [evidence.inputs(d).error(evidence.chosen(d)) for d in (plain, turned)]
    before, after = (max(error, 1e-30) for error in errors)
    return math.log(before / after)
