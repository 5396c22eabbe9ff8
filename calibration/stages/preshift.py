"""Transform: LLM-FP4's pre-shifted exponent bias, a power of two for each input of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, by_reader
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.transform import Transform

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Preshift"]


@dataclass(frozen=True)
class Preshift:
    """Inputs are multiplied by powers of two that bring their ranges next to the largest one's.

    The weight, not yet quantized, is divided by them, so that both products are exact. Linears that
    read one tensor have one vector, by the fewest exponent bits among them; without exponent bits, as
    integers are, nothing is done. Layers whose activations stay in float are left alone.
    """

    kind: ClassVar[str] = "transform"
    needs: ClassVar[str] = MOMENTS
    iterations: ClassVar[int] = 0
    transform: ClassVar[type[Transform]] = Diagonal

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with `input_ops` and other weights."""
        import torch

        from fp4dit_onnx.calibration.balancing import balanced
        from fp4dit_onnx.calibration.output_search import exponent_shifts

        assert evidence.inputs is not None
        found = dict(drafts)
        quantized = [draft for draft in drafts.values() if draft.spec.input is not None]
        for members in by_reader(quantized, evidence):
            formats = [member.spec.activation_format for member in members]
            narrow = min((f for f in formats if f), key=lambda f: f.exponent_bits)
            peaks = evidence.inputs(members[0]).peaks().amax(dim=0)
            shifts = exponent_shifts(peaks, narrow.exponent_bits, narrow.mantissa_bits)
            if bool(shifts.any()):
                found |= balanced(members, torch.exp2(-shifts))
        return found
