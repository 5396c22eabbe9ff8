"""PTQ1.61's preprocessing: what rounding took away is trained back, and rounded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from one_linear import NAME, K, N, one_linear

from fp4dit_onnx.calibration.applying import nearest_under
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.evidence import FloatUnit
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.restoring import RestoredLinear
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.restore import Restore
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


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("iterations", 0), ("learning_rate", 0)])
def test_settings_that_are_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"restore.{name}"):
        Restore(**{name: value})
