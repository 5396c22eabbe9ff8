"""Activation regularization: the kurtosis of outputs, and weights that are trained to lower it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from one_linear import K, one_linear

from fp4dit_onnx.calibration.applying import nearest_under
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.evidence import FloatUnit
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.regularizing import RegularizedLinear, kurtosis
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.regularize import Regularize
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers import outliers as reference
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec

STRONG = Regularize(iterations=60, learning_rate=1e-2, weight=100.0)


def never(draft: Draft) -> Draft:
    """The method's own rounding."""
    raise AssertionError(draft.name)


def tuned(given: FloatUnit, stage: Regularize, activation: str | None) -> tuple[Draft, Draft]:
    """The layer before and after the stage."""
    spec = LayerSpec.of("e2m1", activation, 8)
    draft = Draft("fc", given.part.weight("fc"), spec)
    # Its unit is nearest rounding's error, whatever the method's own rounding is.
    evidence = Evidence(never, unit=given, seed=1, tried=nearest_under(Absmax()))
    return draft, stage.apply({"fc": draft}, evidence)["fc"]


def test_kurtosis_is_that_of_the_report() -> None:
    y = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0))
    assert float(kurtosis(y)) == pytest.approx(reference.kurtosis(y.numpy()), rel=1e-4)
    assert float(kurtosis(torch.ones(3, 8))) == 0


def test_activations_are_quantized_and_gradients_pass() -> None:
    spec = LayerSpec.of("e2m1", "e2m3", 8, activation_group_size=8)
    weight, x = torch.randn(3, K), torch.randn(4, K, requires_grad=True)
    linear = RegularizedLinear(Draft("fc", weight, spec), weight, None)
    q, scale = numerics.quantize(x.detach().numpy(), FORMATS["e2m3"], 8)
    wanted = numerics.dequantize(q, scale, 8) @ weight.numpy().T
    np.testing.assert_allclose(linear(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    linear(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(4, K))


def test_outliers_of_outputs_shrink(tmp_path: Path) -> None:
    given, x = one_linear(tmp_path)
    before, after = tuned(given, STRONG, "e2m3")
    found = [float(kurtosis(x @ draft.weight.T)) for draft in (before, after)]
    assert found[0] > 8
    assert found[1] < 0.8 * found[0]
    assert float((after.weight - before.weight).abs().max()) <= 60 * 1e-2
    again = tuned(given, STRONG, "e2m3")[1]
    assert torch.equal(again.weight, after.weight), "a function of the seed"


def test_weights_stay_where_nothing_is_gained(tmp_path: Path) -> None:
    given, _ = one_linear(tmp_path)
    before, after = tuned(given, Regularize(iterations=5, weight=0.0), None)
    assert after is before


def test_the_recipe_tunes_before_it_rounds() -> None:
    kinds = [stage.kind for stage in method_by_name("activation-regularization").stages]
    assert kinds == ["tuning", "range", "rounding"]
