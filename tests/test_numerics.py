"""The numpy reference of rounding, packing and quantizing, against ml_dtypes and exact arithmetic."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_rows import rows_near_ties

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat

Array = npt.NDArray[Any]

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
REFERENCE: dict[str, Any] = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def points(fmt: FloatFormat) -> Array:
    """Grid points, midpoints and the float32 neighbours of both, of either sign; and far beyond."""
    exact = np.concatenate([fmt.magnitudes, (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2])
    middle = exact.astype(np.float32)
    assert np.array_equal(middle, exact)  # all of them are float32 numbers
    around = [
        middle,
        np.nextafter(middle, np.float32(np.inf)),
        np.nextafter(middle, np.float32(0)),
    ]
    beyond = np.array([1.01 * fmt.max_integer, 1e30, np.finfo(np.float32).max], np.float32)
    positive = np.concatenate([*around, beyond])
    return np.concatenate([positive, -positive])


def nearest(t: float, fmt: FloatFormat) -> float:
    """The nearest grid integer by exact arithmetic: a tie goes to an even multiple of the step."""
    top, bottom = abs(t).as_integer_ratio()
    grid = [int(m) for m in fmt.magnitudes]
    distance = [abs(top - g * bottom) for g in grid]  # in units of 1 / bottom
    best = min(distance)
    found = [g for g, d in zip(grid, distance, strict=True) if d == best]
    if len(found) == 2:
        step = found[1] - found[0]
        found = [g for g in found if g % (2 * step) == 0]
    (result,) = found
    return math.copysign(float(result), t)


# --- round_to_grid, encode, decode -------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE)
def test_round_to_grid_is_the_cast_of_ml_dtypes(name: str) -> None:
    fmt = FORMATS[name]
    t = points(fmt)
    if fmt.specials != "finite":  # where we saturate, ml_dtypes gives NaN or infinity
        t = t[np.abs(t) <= fmt.max_integer]
    # The unit is a power of two; only the neighbours of 0 are too small to be divided by it exactly.
    value = (t.astype(np.float64) / fmt.unit).astype(np.float32)
    wanted = value.astype(REFERENCE[name]).astype(np.float32) * np.float32(fmt.unit)
    found = numerics.round_to_grid(t, fmt)
    assert same_bits(wanted, found).ok
    assert np.array_equal(np.signbit(wanted), np.signbit(found))


@EVERY_FORMAT
def test_round_to_grid_is_nearest(fmt: FloatFormat) -> None:
    random = np.random.default_rng(0)
    t = np.concatenate(
        [points(fmt), (random.standard_normal(200) * fmt.max_integer / 2).astype(np.float32)]
    )
    found = numerics.round_to_grid(t, fmt)
    wanted = np.array([nearest(float(v), fmt) for v in t], np.float32)
    assert found.dtype == np.float32
    assert same_bits(wanted, found).ok, same_bits(wanted, found).detail
    assert np.array_equal(np.signbit(t), np.signbit(found))


@EVERY_FORMAT
def test_round_to_grid_saturates_and_keeps_the_grid(fmt: FloatFormat) -> None:
    limit = fmt.max_integer
    t = np.array([np.inf, -np.inf, 2 * limit, -2 * limit], np.float32)
    assert numerics.round_to_grid(t, fmt).tolist() == [limit, -limit, limit, -limit]
    grid = fmt.grid[np.isfinite(fmt.grid)]
    assert np.array_equal(numerics.round_to_grid(grid, fmt), grid)


def test_round_to_grid_gives_zero_for_nan_and_keeps_the_shape() -> None:
    t = np.array([[np.nan, 2.4], [0.4, -3.6]], np.float32)
    assert numerics.round_to_grid(t, FORMATS["int4"]).tolist() == [[0, 2], [0, -4]]


@pytest.mark.parametrize(
    ("name", "ties"),
    [
        ("int4", {0.5: 0, 1.5: 2, 2.5: 2, 6.5: 6, 7.5: 7}),
        ("e2m1", {0.5: 0, 1.5: 2, 2.5: 2, 3.5: 4, 5: 4, 7: 8, 10: 8}),
        ("e3m0", {0.5: 0, 1.5: 2, 3: 4, 6: 8, 12: 16, 24: 32, 48: 64}),
    ],
)
def test_ties(name: str, ties: dict[float, float]) -> None:
    t = np.array(list(ties), np.float32)
    assert numerics.round_to_grid(t, FORMATS[name]).tolist() == list(ties.values())


@EVERY_FORMAT
def test_encode_is_the_inverse_of_decode(fmt: FloatFormat) -> None:
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    codes = codes[np.isfinite(fmt.grid)]
    integers = numerics.decode(codes, fmt)
    assert integers.dtype == np.float32
    assert same_bits(numerics.encode(integers, fmt), codes).ok
    assert len(np.unique(integers)) == len(codes) - 1  # +0 equals -0, and nothing else is twice


# --- packing -----------------------------------------------------------------------------------


def test_unpack_every_byte() -> None:
    packed = np.arange(256, dtype=np.uint8)[None, :]
    low_then_high = [nibble for byte in range(256) for nibble in (byte % 16, byte // 16)]
    assert numerics.unpack(packed, 512, 4).tolist() == [low_then_high]
    assert same_bits(numerics.pack(numerics.unpack(packed, 512, 4), 4), packed).ok
    assert same_bits(numerics.unpack(packed, 256, 8), packed).ok


def test_pack_pads_an_odd_row_with_zero() -> None:
    codes = np.array([[1, 2, 15], [4, 5, 6]], np.uint8)
    assert numerics.pack(codes, 4).tolist() == [[0x21, 0x0F], [0x54, 0x06]]


@settings(deadline=None)
@given(
    n=st.integers(1, 5), k=st.integers(1, 19), bits=st.sampled_from([4, 8]), seed=st.integers(0)
)
def test_unpack_is_the_inverse_of_pack(n: int, k: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (n, k)).astype(np.uint8)
    packed = numerics.pack(codes, bits)
    assert packed.shape == (n, (k * bits + 7) // 8)
    assert same_bits(numerics.unpack(packed, k, bits), codes).ok


# --- quantize ----------------------------------------------------------------------------------


def quantize_row(row: Array, fmt: FloatFormat) -> tuple[list[float], float]:
    """The definition for a row of finite numbers, element by element."""
    amax = max(abs(v) for v in row)
    if amax < 2.0**-90:
        return [0.0] * len(row), 0.0
    factor = np.float32(fmt.max_integer) / amax
    return [nearest(float(v * factor), fmt) for v in row], float(
        amax / np.float32(fmt.max_integer)
    )


@EVERY_FORMAT
def test_quantize_next_to_ties_is_the_definition(fmt: FloatFormat) -> None:
    x = rows_near_ties(fmt)
    q, _ = numerics.quantize(x, fmt)
    assert q.tolist() == [quantize_row(row, fmt)[0] for row in x]


@EVERY_FORMAT
def test_quantize_is_the_definition(fmt: FloatFormat) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((2, 8, 23)) * 10.0 ** random.uniform(-20, 20, (2, 8, 1))
    x = x.astype(np.float32)
    q, scale = numerics.quantize(x, fmt)
    assert (q.dtype, q.shape, scale.dtype, scale.shape) == (
        *(np.dtype(fmt.integer_type), x.shape),
        *(np.dtype(np.float32), (2, 8, 1)),
    )
    wanted = [quantize_row(row, fmt) for row in x.reshape(16, 23)]
    assert q.reshape(16, 23).tolist() == [w[0] for w in wanted]
    assert scale.ravel().tolist() == [w[1] for w in wanted]


@EVERY_FORMAT
def test_quantize_maps_the_largest_magnitude_to_the_largest_integer(fmt: FloatFormat) -> None:
    random = np.random.default_rng(2)
    amax = (2.0 ** random.uniform(-90, 127.9, 2000)).astype(np.float32)
    x = np.stack([amax, -amax, amax / 3, np.zeros_like(amax)], axis=1)
    q, scale = numerics.quantize(x, fmt)
    limit = fmt.max_integer
    assert np.array_equal(q[:, 0], np.full(2000, limit))
    assert np.array_equal(q[:, 1], np.full(2000, -limit))
    assert np.abs(q.astype(np.float64)).max() == limit
    assert np.all(np.isfinite(scale) & (scale > 0))


@EVERY_FORMAT
def test_quantize_special_rows(fmt: FloatFormat) -> None:
    below = float(np.nextafter(np.float32(2.0**-90), np.float32(0)))
    largest = float(np.finfo(np.float32).max)
    x = np.array(
        [
            [0.0, -0.0, 0.0],
            [below, -below, 2.0**-149],
            [1.0, np.nan, 2.0],
            [1.0, np.inf, 2.0],
            [-np.inf, np.nan, np.inf],
            [largest, -largest, 0.0],
        ],
        np.float32,
    )
    q, scale = numerics.quantize(x, fmt)
    limit = fmt.max_integer
    assert q[:5].tolist() == [[0, 0, 0]] * 5
    assert scale[:2].tolist() == [[0], [0]]
    assert np.isnan(scale[2:5]).all()
    assert q[5].tolist() == [limit, -limit, 0]
    assert scale[5] == np.float32(largest) / np.float32(limit)


@EVERY_FORMAT
def test_quantize_smallest_live_row(fmt: FloatFormat) -> None:
    edge = np.float32(2.0**-90)
    x = np.array([[edge, -edge, 2.0**-149, 0.0]], np.float32)
    q, scale = numerics.quantize(x, fmt)
    assert edge == numerics.SMALLEST_AMAX
    assert q.tolist() == [[fmt.max_integer, -fmt.max_integer, 0, 0]]
    assert scale[0, 0] == edge / np.float32(fmt.max_integer)


def test_quantize_without_rows() -> None:
    q, scale = numerics.quantize(np.zeros((0, 5), np.float32), FORMATS["e2m3"])
    assert (q.shape, scale.shape) == ((0, 5), (0, 1))


@EVERY_FORMAT
@settings(deadline=None)
@given(row=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_quantize_is_odd(fmt: FloatFormat, row: list[float]) -> None:
    x = np.array([row], np.float32)
    q, scale = numerics.quantize(x, fmt)
    mirrored, same_scale = numerics.quantize(-x, fmt)
    assert np.array_equal(mirrored, -q)
    assert np.array_equal(scale, same_scale)


# --- weights -----------------------------------------------------------------------------------


@EVERY_FORMAT
@pytest.mark.parametrize("scale_type", [np.float16, np.float32])
def test_quantize_groups_is_nearest_of_each_quotient(fmt: FloatFormat, scale_type: type) -> None:
    random = np.random.default_rng(3)
    w = random.standard_normal((4, 11)).astype(np.float32)
    scale = random.uniform(0.5, 2, (4, 3)).astype(scale_type) / scale_type(fmt.max)
    scale = scale.astype(scale_type)
    scale[1, 2] = 0  # the short last group
    scale[2, 0] = 0
    codes = numerics.quantize_groups(w, scale, fmt, 4)
    assert codes.dtype == np.uint8
    integers = numerics.decode(codes, fmt)
    for n in range(4):
        for k in range(11):
            step = np.float32(scale[n, k // 4])
            wanted = nearest(float(w[n, k] / step), fmt) if step > 0 else 0.0
            assert integers[n, k] == wanted
            assert step > 0 or codes[n, k] == 0


def test_group_count_and_expand_groups() -> None:
    assert [numerics.group_count(k, 4) for k in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    scale = np.array([[1, 2, 3]], np.float32)
    assert numerics.expand_groups(scale, 5, 2).tolist() == [[1, 1, 2, 2, 3]]


def test_dequantize() -> None:
    q = np.array([[3, -4, 5, 6, -7]], np.int8)
    scale = np.array([[0.5, 2, -1]], np.float16)
    found = numerics.dequantize(q, scale, 2)
    assert found.dtype == np.float32
    assert found.tolist() == [[1.5, -2, 10, 12, 7]]
