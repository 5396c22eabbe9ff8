"""Scales that are an integer per group times one float per channel: int4*f32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.layers import layer_size
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.scale_formats import MULTIPLIED, SCALE_FORMATS, largest_multiplier
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState, load_state, save_state

FORMAT = SCALE_FORMATS[MULTIPLIED]
SPEC = LayerSpec.of("e2m1", "e2m3", 8, MULTIPLIED)
N, K = 40, 60


def scales(seed: int = 0) -> np.ndarray:
    """Scales [N, G] over two decades, a group and a channel without."""
    found = np.exp(np.random.default_rng(seed).uniform(-9, -4, (N, 8))).astype(np.float32)
    found[2, 3] = found[5] = 0
    return found


def layer(multiplier: int | None = None) -> QuantizedLayer:
    """A layer of SPEC; with `multiplier`, its first group has that one."""
    fmt = FORMATS["e2m1"]
    weight = np.random.default_rng(1).standard_normal((N, K)).astype(np.float32) * 0.05
    scale = FORMAT.rounded(scales(), fmt)
    codes = numerics.pack(numerics.quantize_groups(weight, scale, fmt, 8), 4)
    parts = {"codes": codes, **FORMAT.split(scale, fmt)}
    if multiplier is not None:
        parts["multipliers"][0, 0] = multiplier
    return QuantizedLayer("fc", SPEC, K, parts)


@pytest.mark.parametrize(
    ("name", "most"), [("e2m1", 10), ("e1m2", 15), ("int4", 15), ("e3m0", 1), ("int8", 1)]
)
def test_products_with_grid_integers_stay_within_int8(name: str, most: int) -> None:
    assert largest_multiplier(FORMATS[name]) == most
    assert most * FORMATS[name].max_integer <= 127


@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0"])
def test_rounded_scales_are_exact_products(name: str) -> None:
    fmt, full = FORMATS[name], scales()
    found = FORMAT.rounded(full, fmt)
    assert np.array_equal(found > 0, full > 0), "no group vanishes"
    parts = FORMAT.split(found, fmt)
    multiplier = numerics.unpack(parts["multipliers"], 8, 4)
    assert multiplier.max() <= largest_multiplier(fmt)
    exact = multiplier.astype(np.float64) * parts["channel_scale"].astype(np.float64)[:, None]
    assert np.array_equal(exact, found), "without rounding"
    assert np.array_equal(FORMAT.join(parts, 8), found)
    assert np.array_equal(FORMAT.rounded(found, fmt), found) or name == "e3m0"
    large = full >= full.max(axis=1, keepdims=True) / 2
    assert (np.abs(found - full)[large] <= 0.11 * full[large]).all() or name == "e3m0"


def test_other_scales_are_refused() -> None:
    with pytest.raises(UsageError, match="not integers up to 10 times one float per channel"):
        FORMAT.split(scales(), FORMATS["e2m1"])


def test_a_layer_keeps_them_as_parts(tmp_path: Path) -> None:
    made = layer()
    assert set(made.parts) == {"codes", "multipliers", "channel_scale"}
    assert made.nbytes == N * (30 + 4 + 4) == layer_size(N, K, SPEC).bytes
    step = np.repeat(made.scale, 8, axis=1)[:, :K]
    assert np.array_equal(made.weight(), made.integers() * step)
    save_state(QuantizedState({"fc": made}), tmp_path / "state")
    read = load_state(tmp_path / "state").layers["fc"]
    assert read.spec == SPEC
    assert all(np.array_equal(read.parts[role], part) for role, part in made.parts.items())


def test_multipliers_that_overflow_are_refused() -> None:
    layer(10)
    with pytest.raises(UsageError, match="layer fc: multiplier 11: expected at most 10"):
        layer(11)


def test_sums_go_over_the_whole_row() -> None:
    codes, shapes = np.zeros((1, 4200), np.uint8), SPEC.scale_format.shapes(1, 263)
    spec = LayerSpec.of("e2m1", "e3m4", 32, MULTIPLIED)
    parts = {
        "codes": codes,
        "multipliers": np.zeros(shapes["multipliers"], np.uint8),
        "channel_scale": np.zeros(1, np.float32),
    }
    with pytest.raises(UsageError, match=r"a row of 8400 products of int8 and e3m4 .*\b8256$"):
        QuantizedLayer("fc", spec, 8400, parts)
