"""The unit of work of a calibration: a pure function of values, so that it may run anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fp4dit_onnx.calibration.applying import Alternatives, apply_stages
from fp4dit_onnx.calibration.draft import Draft, Drafts, finished
from fp4dit_onnx.calibration.evidence import FloatUnit, Objective, Part, Parts
from fp4dit_onnx.calibration.layer_inputs import UnitInputs
from fp4dit_onnx.calibration.moments import Moments
from fp4dit_onnx.calibration.samples import Array, Samples
from fp4dit_onnx.calibration.stages import Evidence, Stage
from fp4dit_onnx.calibration.transforming import target_weight
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer

__all__ = ["Layers", "Solved", "UnitRecipe", "solve"]

Layers = dict[str, QuantizedLayer]
"""By name."""


@dataclass(frozen=True)
class UnitRecipe:
    """How the layers of any unit are quantized.

    Attributes:
        parts: of the float network.
        specs: name -> specification of each linear.
        stages: that follow transforms and choices.
        moments: of what layers receive in the float network, where a stage looks at them.
        guidance: of the sampler.
        guided: weight of the guided combination's error.
    """

    parts: Parts
    specs: Mapping[str, LayerSpec]
    stages: tuple[Stage, ...]
    moments: Moments | None
    guidance: Guided
    guided: float

    def part(self, name: str) -> Part:
        """The block or linear called `name`."""
        return Part.of(name, self.parts)

    def drafts(self, unit: Unit, part: Part) -> Drafts:
        """The layers of a unit before any stage."""
        drafts = {}
        for name in unit.layers:
            spec = self.specs[name]
            weight = target_weight(part.weight(name), spec)
            drafts[name] = Draft(name, weight, spec)
        return drafts

    @property
    def iterations(self) -> int:
        """Of a unit, for progress; 0 for none."""
        return sum(stage.iterations for stage in self.stages)

    def inputs(self, part: Part) -> UnitInputs | None:
        """Moments and rows of what a unit's layers receive, where a stage looks at them."""
        return None if self.moments is None else UnitInputs(self.moments, part)


@dataclass(frozen=True)
class Solved:
    """What becomes of a unit.

    Attributes:
        layers: quantized.
        error: of the unit's results in units of nearest rounding's; 1 where none was measured.
        trained: whether it was measured, after training.
    """

    layers: Layers
    error: float = 1.0
    trained: bool = False


@torch.no_grad()
def solve(
    unit: Unit,
    inputs: Samples,
    targets: Mapping[int, Array],
    recipe: UnitRecipe,
    seed: int,
    on_step: Callable[[float], None] = lambda error: None,
) -> Solved:
    """Quantize the layers of a unit. All arguments but the last can be pickled.

    Args:
        unit: what to quantize.
        inputs: what it receives.
        targets: what it should give, see `Objective`.
        recipe: how.
        seed: of every random choice.
        on_step: told the error so far after each iteration.

    Raises:
        UsageError: a weight holds NaN or infinity, or what a stage raises.
    """
    if not unit.layers:
        return Solved({})
    part = recipe.part(unit.name)
    received = recipe.inputs(part)
    alternatives = Alternatives(recipe.stages, received)
    evidence = Evidence(
        rounded=alternatives.afresh,
        tried=alternatives.tried,
        inputs=received,
        unit=FloatUnit(part, Objective(inputs, targets, recipe.guidance, recipe.guided)),
        seed=seed,
        on_step=on_step,
    )
    drafts = apply_stages(recipe.stages, recipe.drafts(unit, part), evidence)
    errors = [draft.error for draft in drafts.values() if draft.error is not None]
    return Solved(finished(drafts), next(iter(errors), 1.0), bool(errors))
