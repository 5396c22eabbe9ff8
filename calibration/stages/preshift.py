"""Transform: LLM-FP4's pre-shifted exponent bias, a power of two for each input of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fp4dit_onnx.calibration.stages.balance import Balance
from fp4dit_onnx.calibration.stages.stage import Evidence

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["Preshift"]


@dataclass(frozen=True)
class Preshift(Balance):
    """Inputs are multiplied by powers of two that bring their ranges next to the largest one's.

    The weight, not yet quantized, is divided by them, so that both products are exact. Linears that
    read one tensor have one vector, by the fewest exponent bits among them; without exponent bits, as
    integers are, nothing is done. Layers whose activations stay in float are left alone.
    """

    def takes(self, draft: Draft) -> bool:
        """See `Together`."""
        return draft.spec.input is not None

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`."""
        import torch

        from fp4dit_onnx.calibration.balancing import balanced
        from fp4dit_onnx.calibration.output_search import exponent_shifts

        assert evidence.inputs is not None
        formats = [member.spec.activation_format for member in members]
        narrow = min((f for f in formats if f), key=lambda f: f.exponent_bits)
        peaks = evidence.inputs(members[0]).peaks().amax(dim=0)
        shifts = exponent_shifts(peaks, narrow.exponent_bits, narrow.mantissa_bits)
        return balanced(members, torch.exp2(-shifts)) if bool(shifts.any()) else {}
