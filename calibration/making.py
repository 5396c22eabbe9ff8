"""Every way in which the layers of a unit may be quantized: a pure function of values, as `solve` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fp4dit_onnx.calibration.applying import Alternatives
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.evidence import Part, Parts
from fp4dit_onnx.calibration.layer_inputs import UnitInputs
from fp4dit_onnx.calibration.moments import Moments
from fp4dit_onnx.calibration.stages import Stage
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.spec.state import QuantizedLayer

__all__ = ["ChoiceRecipe", "Ways", "ways"]


@dataclass(frozen=True)
class ChoiceRecipe:
    """How the layers of any unit are chosen for and rounded.

    Attributes:
        parts: of the float network.
        specs: name -> specification of each linear before any choice.
        stages: of the method.
        moments: of what layers receive.
        candidates: weight formats to choose among, by layer.
        precisions: what a weight may be under a budget, by layer.
        priced: whether the error of everything that was made is wanted, for a budget.
    """

    parts: Parts
    specs: Mapping[str, LayerSpec]
    stages: tuple[Stage, ...]
    moments: Moments
    candidates: Mapping[str, Sequence[str]]
    precisions: Mapping[str, Sequence[TensorSpec]]
    priced: bool

    def draft(self, name: str) -> Draft:
        """A layer before any stage."""
        return Draft(
            name,
            self.parts.tensor(f"{name}.weight").float(),
            self.specs[name],
            tuple(self.candidates.get(name, ())),
            tuple(self.precisions.get(name, ())),
        )


@dataclass(frozen=True)
class Ways:
    """What was made of a unit.

    Attributes:
        layers: ``NUMBER@NAME`` -> a layer; of each name the chosen one has the least number.
        losses: ``tr(E H E^T)`` of each under the same keys; empty if not asked for.
        error: mean over the chosen layers, in units of nearest rounding's.
    """

    layers: dict[str, QuantizedLayer]
    losses: dict[str, float]
    error: float


@torch.no_grad()
def ways(unit: Unit, recipe: ChoiceRecipe, on_step: Callable[[], None] = lambda: None) -> Ways:
    """Make the choices of a unit, and keep what was looked at. All but `on_step` can be pickled.

    Raises:
        UsageError: what a stage raises.
    """
    part = Part.of(unit.name, recipe.parts)
    inputs = UnitInputs(recipe.moments, part)
    alternatives = Alternatives(recipe.stages, inputs)
    best = alternatives.best({name: recipe.draft(name) for name in unit.layers})
    drafts = [*best.values(), *alternatives.made.values()]
    named = {f"{i}@{draft.name}": draft for i, draft in enumerate(drafts)}
    layers = {key: replace(draft.layer(), name=key) for key, draft in named.items()}
    losses = {}
    if recipe.priced:
        losses = {key: inputs(draft).loss(draft) for key, draft in named.items()}
    return Ways(layers, losses, _mean_error(best))


def _mean_error(drafts: Drafts) -> float:
    errors = [draft.error for draft in drafts.values() if draft.error is not None]
    return sum(errors) / len(errors) if errors else 1.0
