"""Kurtosis, outlier channels, and what would help against them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fp4dit_onnx.calibration.outliers import REMEDIES, outliers_of
from fp4dit_onnx.numbers.outliers import kurtosis, outlier_channels
from fp4dit_onnx.spec.spec import LayerSpec


def moment(row: list[float], power: int) -> float:
    mean = sum(row) / len(row)
    return sum((value - mean) ** power for value in row) / len(row)


def test_kurtosis_is_the_mean_over_rows_of_their_own() -> None:
    rows = [[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 8.0], [3.0, 3.0, 3.0, 3.0]]
    expected = [moment(row, 4) / moment(row, 2) ** 2 for row in rows[:2]]
    assert expected == [1.0, pytest.approx(7 / 3)]
    assert kurtosis(np.array(rows, np.float32)) == pytest.approx(sum(expected) / 2)
    assert kurtosis(np.ones((2, 4), np.float32)) == 0.0

    random = np.random.default_rng(0)
    assert kurtosis(random.normal(size=(8, 4096))) == pytest.approx(3, abs=0.1)
    assert kurtosis(random.uniform(size=(8, 4096))) == pytest.approx(1.8, abs=0.05)


def test_channels_are_outliers_against_the_median() -> None:
    x = np.ones((5, 2, 9), np.float32)
    x[..., 3], x[..., 7] = 4.1, -9
    x[..., 5] = 4.0
    assert outlier_channels(x) == (3, 7)


def sample(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    return torch.randn(40, 64, generator=make), torch.randn(70, 64, generator=make)


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_leaves_the_product_as_it_is(name: str) -> None:
    rows, weight = sample(0)
    rows[:, 5], weight[:, 9] = 0.0, 0.0
    x, turned = REMEDIES[name](rows, weight)
    assert not torch.equal(x, rows)
    torch.testing.assert_close(x @ turned.T, rows @ weight.T, rtol=0, atol=1e-4)


def test_what_would_help_against_a_planted_outlier() -> None:
    spec = LayerSpec.of("int8", "int4", 32)
    rows, weight = sample(1)
    plain = outliers_of(spec, rows, weight, rows @ weight.T)
    rows[:, 11] *= 30
    found = outliers_of(spec, rows, weight, rows @ weight.T)
    assert plain.channels == ()
    assert found.channels == (11,)
    assert plain.input_kurtosis < 3 < 20 < found.input_kurtosis
    assert found.output_kurtosis == kurtosis((rows @ weight.T).numpy()) < 4
    assert all(abs(gain) < 1 for gain in plain.gains_db.values())
    assert all(gain > 3 for gain in found.gains_db.values()), found.gains_db


def test_an_exact_layer_needs_no_help() -> None:
    rows, weight = sample(2)
    found = outliers_of(LayerSpec.of("int8", None, 64), rows, weight * 0, rows @ weight.T)
    assert set(found.gains_db.values()) == {0.0}
