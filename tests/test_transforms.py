"""Hadamard rotations and scales per group of a token, in the simulation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fp4dit_onnx.calibration.grid import expand_groups, quantize_rows
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.transforming import (
    transformed,
    transformed_moments,
    transformed_weight,
)
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.hadamard import hadamard
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.spec import FOUR_OVER_SIX, LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer
from fp4dit_onnx.spec.vector import Vector


@pytest.mark.parametrize(
    ("k", "block"), [(203, 64), (192, 64), (7, 64), (96, 32), (1, 2), (130, 128)]
)
def test_bits_are_those_of_the_definition(k: int, block: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, k)).astype(np.float32)
    found = Hadamard(block)(torch.from_numpy(x), torch).numpy()
    assert np.array_equal(found.view(np.uint32), hadamard(x, block).view(np.uint32))


@pytest.mark.parametrize("block", [48, 1, 2048])
def test_blocks_that_are_none(block: int) -> None:
    with pytest.raises(UsageError, match=f"Hadamard block {block}: expected a power of two"):
        Hadamard(block)


def test_a_rotated_weight_makes_up_for_rotated_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(9, 203, generator=generator) for _ in range(2))
    turned = Hadamard(64)(x, torch).double()
    assert torch.allclose(
        turned @ transformed_weight(w, [Hadamard(64)]).double().T,
        x.double() @ w.double().T,
        atol=1e-4,
    )
    moments = transformed_moments(x.T.double() @ x.double(), [Hadamard(64)])
    assert torch.allclose(moments, turned.T @ turned, atol=1e-3)


FACTOR = np.array([0.5, 3.0, 0.125, 7.25, 1.0, 0.1, 2.0, 9.0], np.float32)


def test_a_balanced_weight_makes_up_for_balanced_activations() -> None:
    """In numpy and torch to the bit, before a rotation too; a pickled one is equal."""
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((5, 8)).astype(np.float32) for _ in range(2))
    both = Diagonal("fc", Vector(FACTOR)), Hadamard(8)
    one = both[0]
    assert np.array_equal(one(x), x * FACTOR)
    assert np.array_equal(one(torch.from_numpy(x), torch).numpy(), x * FACTOR)
    assert np.array_equal(one.of_weight(w), w / FACTOR)
    turned = transformed(torch.from_numpy(x), both).double()
    weight = transformed_weight(torch.from_numpy(w), both).double()
    assert np.allclose((turned @ weight.T).numpy(), x @ w.T, atol=1e-4)
    moments = transformed_moments(torch.from_numpy(x.T @ x).double(), both)
    assert torch.allclose(moments, turned.T @ turned, rtol=1e-4, atol=1e-3)
    assert pickle.loads(pickle.dumps(both)) == both
    assert one != Diagonal("fc", Vector(FACTOR[::-1]))
    assert one.stored == "fc"
    assert Diagonal.restored("fc", "row") == one.without_tensors != one


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_factors_that_cannot_be_divided_by(bad: float) -> None:
    with pytest.raises(UsageError, match="factors of fc: expected positive, finite numbers"):
        Diagonal("fc", Vector(np.array([1, bad], np.float32)))


@pytest.mark.parametrize(("k", "size"), [(64, 16), (50, 16), (16, 16), (10, 64)])
def test_a_group_of_a_token_is_quantized_by_itself(k: int, size: int) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, k)).astype(np.float32)
    x[0, 0, :8] = 0
    x[1, 1, 2] = np.nan
    q, scale = quantize_rows(torch.from_numpy(x), FORMATS["e2m1"], size)
    wanted, steps = numerics.quantize(x, FORMATS["e2m1"], size)
    assert np.array_equal(q.numpy(), wanted.astype(np.float32))
    assert np.array_equal(scale.numpy(), steps, equal_nan=True)
    q, scale = quantize_rows(torch.from_numpy(x), FORMATS["e2m1"], size, FOUR_OVER_SIX)
    better, steps = numerics.quantize(x, FORMATS["e2m1"], size, FOUR_OVER_SIX)
    assert np.array_equal(q.numpy(), better.astype(np.float32))
    assert np.array_equal(scale.numpy(), steps, equal_nan=True)
    assert not np.array_equal(better, wanted)


@pytest.mark.parametrize(("block", "size"), [(None, 16), (16, None), (16, 8)])
def test_the_simulation_does_what_the_specification_says(
    block: int | None, size: int | None
) -> None:
    random = np.random.default_rng(0)
    before = (Hadamard(block),) if block else ()
    spec = LayerSpec.of("int8", "int6", 24, "float32", size, before)
    codes = random.integers(0, 128, (5, 24)).astype(np.uint8)
    scale = random.uniform(1, 2, (5, 1)).astype(np.float32)
    layer = QuantizedLayer("fc", spec, 24, {"codes": codes, "scale": scale})
    x = torch.from_numpy(random.standard_normal((7, 24)).astype(np.float32))
    found = SimulatedLinear(layer, torch.ones(5))(x)
    turned = Hadamard(block)(x, torch) if block else x
    q, steps = quantize_rows(turned, FORMATS["int6"], size)
    value = q * expand_groups(steps, 24, size or 24)
    wanted = value @ torch.from_numpy(layer.weight()).T + 1
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-3)
    assert not torch.allclose(found, x @ torch.from_numpy(layer.weight()).T + 1, atol=1e-3)
