"""Range: the scale of least squared error, each input's counted by its second moment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft

__all__ = ["Weighted"]


@dataclass(frozen=True)
class Weighted(LayerStage):
    """A search around the absmax scale, group by group; of multipliers, channel by channel too.

    Where there are no moments, as for text encoders, all inputs count alike.
    """

    kind: ClassVar[str] = "range"
    needs: ClassVar[str] = MOMENTS

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its scales."""
        import torch

        from fp4dit_onnx.calibration.ranges import weighted_scale

        given = evidence.inputs
        counts = torch.ones(draft.weight.shape[1]) if given is None else given(draft).diagonal
        return replace(draft, scale=weighted_scale(draft.weight, draft.spec, counts))
