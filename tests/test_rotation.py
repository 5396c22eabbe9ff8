"""Hadamard rotations and scales a group of a token, in the simulation."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fp4dit_onnx.calibration.grid import expand_groups, quantize_rows
from fp4dit_onnx.calibration.rotation import rotated, rotated_moments, rotated_weight
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS, FloatArray
from fp4dit_onnx.spec.spec import Hadamard, LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer


def reference(x: FloatArray, block: int) -> FloatArray:
    """FpHadamard by the definition: element by element, in float32."""
    y, k = x.astype(np.float32).copy(), x.shape[-1]
    start = 0
    for size in Hadamard(block).blocks(k):
        run, half = y[..., start : start + size], 1
        while half < size:
            for i in range(size):
                if not i & half:
                    u, v = run[..., i].copy(), run[..., i + half].copy()
                    run[..., i], run[..., i + half] = u + v, u - v
            half *= 2
        exponent = size.bit_length() - 1
        root = np.float32(np.sqrt(np.float32(0.5)))
        factor = np.float32(2.0 ** -(exponent // 2))
        run *= factor * root if exponent % 2 else factor
        start += size
    return y


@pytest.mark.parametrize(
    ("k", "block"), [(203, 64), (192, 64), (7, 64), (96, 32), (1, 2), (130, 128)]
)
def test_bits_are_those_of_the_definition(k: int, block: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, k)).astype(np.float32)
    found = rotated(torch.from_numpy(x), Hadamard(block)).numpy()
    assert np.array_equal(found.view(np.uint32), reference(x, block).view(np.uint32))


def test_runs_of_what_is_left() -> None:
    assert Hadamard(64).blocks(203) == (64, 64, 64, 8, 2, 1)
    assert Hadamard(64).blocks(128) == (64, 64)
    assert Hadamard(64).blocks(5) == (4, 1)
    with pytest.raises(UsageError, match="Hadamard block 48: expected a power of two"):
        Hadamard(48)


def test_a_rotated_weight_makes_up_for_rotated_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(9, 203, generator=generator) for _ in range(2))
    spec = LayerSpec.of("int8", None, 128, hadamard=64)
    turned = rotated(x, Hadamard(64)).double()
    assert torch.allclose(
        turned @ rotated_weight(w, spec).double().T, x.double() @ w.double().T, atol=1e-4
    )
    moments = rotated_moments(x.T.double() @ x.double(), spec)
    assert torch.allclose(moments, turned.T @ turned, atol=1e-3)


@pytest.mark.parametrize(("k", "size"), [(64, 16), (50, 16), (16, 16), (10, 64)])
def test_a_group_of_a_token_is_quantized_by_itself(k: int, size: int) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, k)).astype(np.float32)
    x[0, 0, :8] = 0
    x[1, 1, 2] = np.nan
    q, scale = quantize_rows(torch.from_numpy(x), FORMATS["e2m1"], size)
    for g in range(numerics.group_count(k, size)):
        part = slice(g * size, min(k, (g + 1) * size))
        wanted, step = numerics.quantize(x[..., part], FORMATS["e2m1"])
        assert np.array_equal(q[..., part].numpy(), wanted.astype(np.float32))
        assert np.array_equal(scale[..., g : g + 1].numpy(), step, equal_nan=True)


@pytest.mark.parametrize(("hadamard", "size"), [(None, 16), (16, None), (16, 8)])
def test_the_simulation_does_what_the_specification_says(
    hadamard: int | None, size: int | None
) -> None:
    random = np.random.default_rng(0)
    spec = LayerSpec.of(
        "int8", "int6", 24, activation_group_size=size, hadamard=hadamard, scale="float32"
    )
    codes = random.integers(0, 128, (5, 24)).astype(np.uint8)
    scale = random.uniform(1, 2, (5, 1)).astype(np.float32)
    layer = QuantizedLayer("fc", spec, 24, {"codes": codes, "scale": scale})
    x = torch.from_numpy(random.standard_normal((7, 24)).astype(np.float32))
    found = SimulatedLinear(layer, torch.ones(5))(x)
    turned = rotated(x, Hadamard(hadamard)) if hadamard else x
    q, steps = quantize_rows(turned, FORMATS["int6"], size)
    value = q * expand_groups(steps, 24, size or 24)
    wanted = value @ torch.from_numpy(layer.weight()).T + 1
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-3)
    assert not torch.allclose(found, x @ torch.from_numpy(layer.weight()).T + 1, atol=1e-3)
