"""PTQ1.61's preprocessing: what rounding took away is trained back, and rounded again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from one_linear import NAME, K, N, one_linear

from fp4dit_onnx.calibration.applying import nearest_under
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.evidence import FloatUnit
from fp4dit_onnx.calibration.methods import PARALLEL, method_by_name
from fp4dit_onnx.calibration.restoring import RestoredLinear
from fp4dit_onnx.calibration.solving import UnitRecipe, solve
from fp4dit_onnx.calibration.stages import INPUTS, Evidence, Stage
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.stages.restore import Restore
from fp4dit_onnx.calibration.stages.stage import LayerStage
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.spec import LayerSpec

ROUNDED = nearest_under(Absmax())
STRONG = Restore(iterations=80, learning_rate=1e-2, rank=8)


def tuned(given: FloatUnit, stage: Restore) -> tuple[Draft, Draft]:
    """The layer before and after the stage; two bits of its format are lost where rows are long."""
    draft = Draft(NAME, given.part.weight(NAME), LayerSpec.of("e3m0", None, K))
    return draft, stage.apply({NAME: draft}, Evidence(ROUNDED, unit=given, seed=1))[NAME]


def error(draft: Draft, wanted: torch.Tensor, x: torch.Tensor) -> float:
    """Of the outputs of a draft, rounded."""
    weight = torch.from_numpy(ROUNDED(draft).layer().weight())
    return float((x @ (weight - wanted).T).square().mean())


def test_rounded_again_weights_are_nearer(tmp_path: Path) -> None:
    given, x = one_linear(tmp_path)
    before, after = tuned(given, STRONG)
    assert after is not before
    assert error(after, before.weight, x) < error(before, before.weight, x)
    added = after.weight - torch.from_numpy(ROUNDED(before).layer().weight())
    assert int(torch.linalg.matrix_rank(added, rtol=1e-4)) == STRONG.rank
    again = tuned(given, STRONG)[1]
    assert torch.equal(again.weight, after.weight), "a function of the seed"


def test_weights_stay_where_nothing_is_gained(tmp_path: Path) -> None:
    given, _ = one_linear(tmp_path)
    before, after = tuned(given, Restore(iterations=1, learning_rate=1e-12))
    assert after is before


def test_training_begins_at_the_rounded_weight() -> None:
    weight = torch.randn(N, K)
    draft = Draft(NAME, weight, LayerSpec.of("e2m1", None, 8))
    linear = RestoredLinear(draft, weight, 99, None, torch.Generator().manual_seed(0))
    assert torch.equal(linear.matrix(), weight)
    assert linear.down.shape == (K, K)


def test_the_recipe_restores_between_the_mask_and_gptq() -> None:
    plain, restored = (method_by_name(n).stages for n in ("ptq1.61", "ptq1.61-restored"))
    assert [stage for stage in restored if not isinstance(stage, Restore)] == list(plain)
    assert [stage.kind for stage in restored] == ["choice", "tuning", "range", "rounding"]
    assert method_by_name("ptq1.61-restored").data.inputs == PARALLEL


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("iterations", 0), ("learning_rate", 0)])
def test_settings_that_are_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"restore.{name}"):
        Restore(**{name: value})


class Zeros(LayerStage):
    """A rounding to nothing."""

    kind = "rounding"

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """All codes 0."""
        codes = Nearest().layer(draft, evidence).codes
        assert codes is not None
        return replace(draft, codes=np.zeros_like(codes))


class TrainedZeros(Zeros):
    """The same, for a unit's inputs."""

    needs = INPUTS


@dataclass
class Looks(LayerStage):
    """Sees how a draft would be rounded, of its own weight and of another."""

    kind = "tuning"
    seen: list[float] = field(default_factory=list)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft as it is."""
        assert evidence.tried is not None
        for rounded in (evidence.rounded, evidence.tried):
            for weight in (draft.weight, -draft.weight):
                made = torch.from_numpy(rounded(replace(draft, weight=weight)).layer().weight())
                self.seen.append(float((made * draft.weight).sum().sign()))
        return draft


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [(Zeros(), [0, 0, 1, -1]), (TrainedZeros(), [1, -1, 1, -1]), (Nearest(), [1, -1, 1, -1])],
)
def test_weights_are_trained_for_the_methods_own_rounding(
    rounding: Stage, expected: list[int], tmp_path: Path
) -> None:
    """For nearest rounding where that is trained itself; what was rounded before is not given again."""
    given, _ = one_linear(tmp_path)
    look, parts = Looks(), given.part.parts
    stages, objective = (look, Absmax(), rounding), given.objective
    specs = {NAME: LayerSpec.of("e2m1", None, K)}
    recipe = UnitRecipe(parts, specs, stages, None, objective.guidance, objective.guided)
    solve(Unit(NAME, (NAME,)), objective.inputs, objective.targets, recipe, seed=0)
    assert look.seen == expected
