"""Running the stages of a method over layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.stages.stage import INPUTS, Evidence, Stage
from fp4dit_onnx.calibration.transforming import transformed_weight
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer

__all__ = [
    "Alternatives",
    "apply_stages",
    "check_weight",
    "nearest_under",
    "quantize_layer",
    "quantize_layers",
    "quantize_measured",
]

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.layer_inputs import LayerInputs
    from fp4dit_onnx.network.network import Network
    from fp4dit_onnx.system.progress import Reporter

NEAREST: tuple[Stage, ...] = (Absmax(), Nearest())


def check_weight(name: str, weight: torch.Tensor) -> None:
    """Raise UsageError where a layer's weight holds NaN or infinity."""
    if not bool(torch.isfinite(weight).all()):
        raise UsageError(
            f"layer {name}: its weight holds NaN or infinity; the checkpoint is damaged, or was "
            "saved in half precision after an overflow"
        )


def apply_stages(stages: Iterable[Stage], drafts: Drafts, evidence: Evidence) -> Drafts:
    """`drafts` after every stage in turn.

    Raises:
        UsageError: a weight holds NaN or infinity, or what a stage raises.
    """
    for draft in drafts.values():
        check_weight(draft.name, draft.weight)
    for stage in stages:
        drafts = stage.apply(drafts, evidence)
    return drafts


def nearest_under(range_stage: Stage) -> Callable[[Draft], Draft]:
    """Rounds a draft to nearest under scales that `range_stage` finds."""

    def nearest(draft: Draft) -> Draft:
        drafts: Drafts = {draft.name: draft}
        for stage in (range_stage, Nearest()):
            drafts = stage.apply(drafts, Evidence(nearest))
        return drafts[draft.name]

    return nearest


@dataclass
class Alternatives:
    """Rounds drafts by a method's range and rounding, each once: stages that choose look at many.

    Attributes:
        stages: of the method; where rounding is trained, nearest rounding stands for it.
        inputs: what layers receive; None unless a stage of the method asks for ``moments``.
        made: what was rounded so far, by layer and specification.
    """

    stages: Sequence[Stage]
    inputs: Callable[[Draft], LayerInputs] | None
    made: dict[tuple[str, LayerSpec], Draft] = field(default_factory=dict)

    def rounded(self, draft: Draft) -> Draft:
        """The draft with scales and codes, made once."""
        key = draft.name, draft.spec
        if key not in self.made:
            self.made[key] = self.afresh(draft)
        return self.made[key]

    def afresh(self, draft: Draft) -> Draft:
        """The draft with scales and codes, for a weight that may be another than the layer's own."""
        stages = self._of("range", "rounding")
        return self._after(draft, (s if s.needs != INPUTS else Nearest() for s in stages))

    def tried(self, draft: Draft) -> Draft:
        """The draft rounded to nearest; nothing is kept of it."""
        return self._after(draft, (*self._of("range"), Nearest()))

    def chosen(self, draft: Draft) -> Draft:
        """The draft after the method's branch and choices, rounded."""
        return self.rounded(self._after(draft, self._of("branch", "choice")))

    def _after(self, draft: Draft, stages: Iterable[Stage]) -> Draft:
        drafts: Drafts = {draft.name: draft}
        for stage in stages:
            drafts = stage.apply(drafts, self.evidence)
        return drafts[draft.name]

    @property
    def evidence(self) -> Evidence:
        """What stages may look at."""
        return Evidence(self.rounded, self.chosen, self.inputs, tried=self.tried)

    def best(self, drafts: Drafts) -> Drafts:
        """The drafts after transforms and choices, rounded; under a budget `made` has more of them."""
        for stage in self._of("transform", "branch"):
            drafts = stage.apply(drafts, self.evidence)
        drafts = {name: self.chosen(draft) for name, draft in drafts.items()}
        for stage in self._of("budget"):
            drafts = stage.apply(drafts, self.evidence)
        return drafts

    def _of(self, *kinds: str) -> Iterator[Stage]:
        return (stage for stage in self.stages if stage.kind in kinds)


def quantize_layer(
    name: str, weight: torch.Tensor, spec: LayerSpec, stages: Iterable[Stage] = NEAREST
) -> QuantizedLayer:
    """The layer alone; see `quantize_measured`."""
    return quantize_measured(name, weight, spec, stages)[0]


def quantize_layers(
    network: Network, specs: Mapping[str, LayerSpec], stages: Sequence[Stage], reporter: Reporter
) -> dict[str, QuantizedLayer]:
    """Layers of a network by stages that look at weights alone; raises as `quantize_measured`."""
    layers = {}
    with reporter.stage("quantizing layers", len(specs), "layers") as advance:
        for name, spec in specs.items():
            layers[name] = quantize_layer(name, network.tensor(f"{name}.weight"), spec, stages)
            advance(1)
    return layers


def quantize_measured(
    name: str, weight: torch.Tensor, spec: LayerSpec, stages: Iterable[Stage] = NEAREST
) -> tuple[QuantizedLayer, float]:
    """Quantize the weight of one linear by stages that look at nothing else.

    Args:
        name: torch name of the layer, for messages and the state.
        weight: float32 [N, K].
        spec: formats and group size.
        stages: of a method; by default absmax and nearest.

    Returns:
        The layer, and signal over quantization noise of its weight in dB.

    Raises:
        UsageError: the weight holds NaN or infinity.
    """
    chosen = tuple(stages)
    (scale,) = (stage for stage in chosen if stage.kind == "range")
    evidence = Evidence(nearest_under(scale))
    draft = apply_stages(chosen, {name: Draft(name, weight, spec)}, evidence)[name]
    layer, known = draft.layer(), draft.weight_sqnr_db
    if known is None:
        wanted = transformed_weight(weight, layer.spec.input_ops)
        known = sqnr_db(wanted.numpy(), layer.weight())
    return layer, known
