"""A layer on its way from float to quantized: what the stages of a method pass on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.spec.state import QuantizedLayer

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["Draft", "Drafts", "finished"]


@dataclass(frozen=True)
class Draft:
    """One linear layer between two stages.

    Attributes:
        name: torch name of the layer.
        weight: float32 [N, K].
        spec: as chosen so far.
        candidates: weight formats among which a stage may choose; empty for no choice.
        precisions: what the weight may be under a budget; empty for as it is.
        scale: of each group, float16 or float32 [N, G], once a stage found it.
        codes: packed, uint8 [N, B], once a stage rounded the weight.
        weight_sqnr_db: of the rounded weight, where the stage that rounded it knows.
        error: of the unit's output in units of nearest rounding's, where a stage measured it.
    """

    name: str
    weight: torch.Tensor
    spec: LayerSpec
    candidates: tuple[str, ...] = ()
    precisions: tuple[TensorSpec, ...] = ()
    scale: torch.Tensor | None = None
    codes: npt.NDArray[Any] | None = None
    weight_sqnr_db: float | None = None
    error: float | None = None

    def layer(self) -> QuantizedLayer:
        """The quantized layer, once it has codes and scales."""
        assert self.scale is not None, self.name
        assert self.codes is not None, self.name
        scales = self.spec.scale_format.split(self.scale.numpy(), self.spec.weight_format)
        parts = {"codes": self.codes, **scales}
        return QuantizedLayer(self.name, self.spec, int(self.weight.shape[1]), parts)


Drafts = Mapping[str, Draft]


def finished(drafts: Drafts) -> dict[str, QuantizedLayer]:
    """The layers of `drafts` by name."""
    return {name: draft.layer() for name, draft in drafts.items()}
