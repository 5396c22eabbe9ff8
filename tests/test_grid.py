"""The grid and the scales in torch, bit for bit against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from quantizer_rows import rows_near_ties

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration import grid
from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.ranges import _grouped, absmax_scale, group_absmax, mse_scale
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.numbers.scale_formats import SCALE_FORMATS, stored
from fp4dit_onnx.spec.spec import LayerSpec

Array = npt.NDArray[Any]

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
SPEC = LayerSpec.of("e2m1", "e2m3", 8)


def assert_same(wanted: Array, found: Any) -> None:
    same = same_bits(wanted, found.numpy())
    assert same.ok, same.detail


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the grid ----------------------------------------------------------------------------------


def points(fmt: FloatFormat) -> Array:
    """Grid points, midpoints, the float32 neighbours of both, of either sign; beyond; random."""
    exact = np.concatenate([fmt.magnitudes, (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2])
    middle = exact.astype(np.float32)
    around = [
        middle,
        np.nextafter(middle, np.float32(np.inf)),
        np.nextafter(middle, np.float32(0)),
    ]
    beyond = np.array([1.5 * fmt.max_integer, np.finfo(np.float32).max], np.float32)
    noise = np.random.default_rng(0).uniform(0, 1.1 * fmt.max_integer, 5000).astype(np.float32)
    positive = np.concatenate([*around, beyond, noise])
    return np.concatenate([positive, -positive])


@EVERY_FORMAT
def test_round_to_grid(fmt: FloatFormat) -> None:
    t = points(fmt)
    wanted, found = numerics.round_to_grid(t, fmt), grid.round_to_grid(torch.from_numpy(t), fmt)
    assert_same(wanted, found)
    assert_same(np.signbit(wanted), torch.signbit(found))


@EVERY_FORMAT
def test_binade_step_is_the_distance_of_neighbours(fmt: FloatFormat) -> None:
    below, above = fmt.magnitudes[:-1], fmt.magnitudes[1:]
    inside = torch.from_numpy(((below + above) / 2).astype(np.float32))
    start = torch.from_numpy(below.astype(np.float32))
    wanted = (above - below).astype(np.float32)
    assert_same(wanted, grid.binade_step(inside, fmt))
    assert_same(wanted, grid.binade_step(start, fmt))


def special_rows() -> Array:
    rows = np.zeros((9, 6), np.float32)
    rows[1] = 2.0**-91
    rows[2, 0], rows[3, 1], rows[4, 2] = np.nan, np.inf, -np.inf
    rows[5, :2] = np.nan, np.inf
    rows[6] = -0.0
    rows[7, :3] = np.finfo(np.float32).max, -np.finfo(np.float32).max, 1
    rows[8, :3] = 2.0**-89, -(2.0**-90), 2.0**-149
    return rows


@EVERY_FORMAT
def test_quantize_rows_next_to_ties(fmt: FloatFormat) -> None:
    x = rows_near_ties(fmt)
    q, _ = grid.quantize_rows(torch.from_numpy(x), fmt)
    assert_same(numerics.quantize(x, fmt)[0].astype(np.float32), q)


@EVERY_FORMAT
def test_quantize_rows_on_both_sides_of_zero(fmt: FloatFormat) -> None:
    edge = numerics.SMALLEST_AMAX
    x = np.array([[edge, 0], [np.nextafter(edge, np.float32(0)), 0]], np.float32)
    q, scale = grid.quantize_rows(torch.from_numpy(x), fmt)
    wanted_q, wanted_scale = numerics.quantize(x, fmt)
    assert_same(wanted_q.astype(np.float32), q)
    assert_same(wanted_scale, scale)
    assert (scale.ravel() > 0).tolist() == [True, False]


@EVERY_FORMAT
def test_quantize_rows(fmt: FloatFormat) -> None:
    random = np.random.default_rng(1)
    noise = random.standard_normal((200, 6)) * 10.0 ** random.uniform(-25, 37, (200, 1))
    x = np.concatenate([special_rows(), noise.astype(np.float32)])
    q, scale = grid.quantize_rows(torch.from_numpy(x), fmt)
    wanted_q, wanted_scale = numerics.quantize(x, fmt)
    assert_same(wanted_q.astype(np.float32), q)
    assert_same(wanted_scale, scale)


def test_quantize_rows_any_rank() -> None:
    x = normal(2, 3, 7)
    q, scale = grid.quantize_rows(x, FORMATS["e3m4"])
    wanted_q, wanted_scale = numerics.quantize(x.numpy(), FORMATS["e3m4"])
    assert_same(wanted_q.astype(np.float32), q)
    assert_same(wanted_scale, scale)


def test_expand_groups() -> None:
    scale = normal(3, 4)
    assert_same(numerics.expand_groups(scale.numpy(), 13, 4), grid.expand_groups(scale, 13, 4))


# --- weights -----------------------------------------------------------------------------------


def test_group_absmax_of_a_short_group() -> None:
    weight = torch.tensor([[1.0, -2, 3, 0.5, -4], [0, 0, 0, 0, 0]])
    assert group_absmax(weight, 2).tolist() == [[2, 3, 4], [0, 0, 0]]


@EVERY_FORMAT
@pytest.mark.parametrize("k", [24, 21])
def test_absmax_scale(fmt: FloatFormat, k: int) -> None:
    weight = normal(5, k) * 100
    weight[1, 8:16] = 0
    found = absmax_scale(weight, LayerSpec.of(fmt.name, None, 8))
    padded = np.pad(np.abs(weight.numpy()), ((0, 0), (0, -k % 8))).reshape(5, 3, 8)
    exact = padded.max(axis=-1) / np.float32(fmt.max_integer)  # [N, G, group] -> [N, G]
    fits = fmt.name != "e5m2"  # 100 / 2^31.8 is below float16's normal numbers
    assert found.dtype == (torch.float16 if fits else torch.float32)
    assert_same(exact.astype(np.float16 if fits else np.float32), found)
    assert found[1, 1] == 0


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        ([0.0, 0.0], np.float16),
        ([2.0**-14, 65504.0, 0.0], np.float16),
        ([float(np.nextafter(np.float32(2.0**-14), np.float32(0))), 1.0], np.float32),
        ([float(np.nextafter(np.float32(65504), np.float32(np.inf))), 1.0], np.float32),
    ],
)
def test_scales_are_float16_where_all_are_normal(scale: list[float], dtype: Any) -> None:
    fmt = SCALE_FORMATS["float16"]
    found = stored(fmt.rounded(np.array([scale], np.float32), FORMATS["e2m1"]), fmt)
    assert found.dtype == dtype
    assert found.tolist() == [scale]


def test_absmax_scale_of_a_tiny_group_is_zero() -> None:
    weight = torch.tensor([[2.0**-91, 0, 1, 1]])
    assert absmax_scale(weight, LayerSpec.of("int8", None, 2))[0, 0] == 0


@EVERY_FORMAT
@pytest.mark.parametrize("k", [24, 21])
def test_round_to_nearest_gives_the_codes_of_numpy(fmt: FloatFormat, k: int) -> None:
    weight = normal(6, k)
    weight[2, :8], weight[3, :] = 0, -0.0
    scale = absmax_scale(weight, LayerSpec.of(fmt.name, None, 8))
    found = numerics.encode(round_to_nearest(weight, scale, fmt, 8).numpy(), fmt)
    assert same_bits(numerics.quantize_groups(weight.numpy(), scale.numpy(), fmt, 8), found).ok
    smaller = scale * 0.5  # saturates
    found = numerics.encode(round_to_nearest(weight, smaller, fmt, 8).numpy(), fmt)
    assert same_bits(numerics.quantize_groups(weight.numpy(), smaller.numpy(), fmt, 8), found).ok


@pytest.mark.parametrize("name", ["e2m1", "e3m0", "e2m3", "int8"])
def test_quantize_layer(name: str) -> None:
    weight, spec, fmt = normal(4, 21), LayerSpec.of(name, None, 8), FORMATS[name]
    layer = quantize_layer("a.b", weight, spec)
    scale = absmax_scale(weight, spec).numpy()
    codes = numerics.quantize_groups(weight.numpy(), scale, fmt, 8)
    assert (layer.name, layer.spec, layer.k) == ("a.b", spec, 21)
    assert same_bits(layer.scale, scale).ok
    assert same_bits(layer.codes, numerics.pack(codes, fmt.storage_bits)).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_quantize_layer_refuses_a_weight_that_is_not_finite(value: float) -> None:
    weight = normal(4, 16)
    weight[3, 15] = value
    with pytest.raises(UsageError, match=r"layer blocks\.0\.fc: its weight holds NaN or infinity"):
        quantize_layer("blocks.0.fc", weight, SPEC)


def test_a_group_longer_than_a_row_takes_no_more_memory() -> None:
    """Recipes with one scale per row give groups a size beyond every row."""
    row = torch.arange(1.0, 25.0).reshape(2, 12)
    assert _grouped(row, 65536).shape == (2, 1, 12)
    scale = torch.tensor([[0.5], [2.0]])
    assert torch.equal(grid.expand_groups(scale, 12, 65536), scale.expand(2, 12))
    assert grid.expand_groups(scale, 12, 65536).untyped_storage().nbytes() == 4 * 2
    for name in ("e2m1", "int4"):
        long, whole = (LayerSpec.of(name, None, size) for size in (65536, 16))
        assert torch.equal(mse_scale(row, long, 0.5, 20), mse_scale(row, whole, 0.5, 20))
