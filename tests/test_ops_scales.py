"""Rotations, group scales, four-over-six, multipliers: bodies and kernels against the records."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnxruntime")

from one_operator import Run, agrees, run_library, run_ort, run_reference

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.numbers.hadamard import hadamard, hadamard_runs
from fp4dit_onnx.numbers.scale_formats import largest_multiplier

Array = npt.NDArray[Any]


@pytest.fixture(params=[run_ort, run_reference, run_library], ids=["ort", "reference", "library"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


def rows(seed: int, *shape: int) -> Array:
    """Random rows, with NaN in the last but one and zeros in the last."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[..., -2, -1], x[..., -1, :] = np.nan, 0
    return x


# --- FpHadamard --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "block"),
    [(203, 64), (192, 64), (7, 64), (96, 32), (1, 2), (130, 128), (1408, 1024), (6, 2)],
)
def test_hadamard(k: int, block: int, run: Run) -> None:
    x = rows(0, 2, 4, k)
    x[0, 0, 0] = np.inf
    agrees(run, ops.HADAMARD, {"block": block}, x)


def test_hadamard_is_a_rotation_of_each_run() -> None:
    assert hadamard_runs(203, 64) == (64, 64, 64, 8, 2, 1)
    matrix = hadamard(np.eye(203, dtype=np.float32), 64)
    assert np.allclose(matrix @ matrix.T, np.eye(203), atol=1e-6)
    assert np.array_equal(matrix, matrix.T)
    start = 0
    for size in hadamard_runs(203, 64):
        part = slice(start, start + size)
        assert np.unique(np.abs(matrix[part, part])).size == 1
        assert not matrix[part, start + size :].any()
        start += size


# --- FpQuantize --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e2m1", "int6", "e3m4", "e4m3"])
@pytest.mark.parametrize("group_size", [1, 7, 16, 40])
def test_a_group_is_quantized_as_a_row(name: str, group_size: int, run: Run) -> None:
    fmt = FORMATS[name]
    x = rows(1, 2, 5, 40) * np.float32(1e5)
    x[0, 0, 20:] = 2.0**-95
    given = ops.quantize_attributes(fmt, group_size)
    q, scale = agrees(run, ops.quantize_op(fmt), given, x)
    for g in range(scale.shape[-1]):
        part = slice(g * group_size, (g + 1) * group_size)
        own, own_scale = numerics.quantize(x[..., part], fmt)
        assert same_bits(q[..., part], own).ok
        assert same_bits(scale[..., g : g + 1], own_scale).ok


@pytest.mark.parametrize("name", ["e2m1", "int8", "e3m4", "e4m3"])
def test_under_a_given_scale(name: str, run: Run) -> None:
    """As dynamically where it is the row's own; what exceeds it is cut off; by its values alone."""
    fmt = FORMATS[name]
    x = rows(3, 2, 5, 40)
    x[0, 0, 3], x[0, 1] = np.inf, 0
    largest = float(np.abs(x[0, 2]).max())
    q, scale = agrees(
        run, ops.quantize_op(fmt, static=True), ops.static_attributes(fmt, largest), x
    )
    own, own_scale = numerics.quantize(x[0, 2], fmt)
    assert same_bits(q[0, 2], own).ok
    assert scale.shape == (2, 5, 1)
    poisoned = ~np.isfinite(x).all(axis=-1)
    assert np.array_equal(np.isnan(scale[..., 0]), poisoned)
    assert set(scale[~poisoned].ravel()) == {own_scale[0]}
    assert not q[poisoned].any()
    half = ops.static_attributes(fmt, largest / 2)
    q, scale = agrees(run, ops.quantize_op(fmt, static=True), half, x)
    value = q[~poisoned] * scale[~poisoned].astype(np.float64)
    grid = fmt.grid[np.isfinite(fmt.grid)].astype(np.float64) * float(scale[0, 2, 0])
    wanted = np.clip(x[~poisoned], -largest / 2, largest / 2)
    nearest = np.abs(wanted[..., None] - grid).min(axis=-1)
    assert np.allclose(np.abs(value - wanted), nearest, rtol=0, atol=1e-6)
    assert np.abs(value).max() == pytest.approx(largest / 2, rel=1e-6)


def best_of(x: Array, fmt: FloatFormat, limits: list[int]) -> tuple[float, Array]:
    """Scale and grid integers of one group, by exact fractions."""
    amax = np.abs(x).max()
    found = []
    for limit in limits:
        t = x * (np.float32(limit) / amax)
        q = numerics.round_to_grid(t, fmt)
        steps = [round(Fraction(float(a)) * 64) for a in t - q]  # ties to even, as rint
        found.append((Fraction(sum(s * s for s in steps), limit**2), limit, q))
    _, limit, q = min(found, key=lambda item: item[0])  # the first of equals
    return float(amax / np.float32(limit)), q


@pytest.mark.parametrize("candidates", [[8], [8, 6]])
def test_the_candidate_that_errs_least(candidates: list[int], run: Run) -> None:
    fmt = FORMATS["e2m1"]
    x = rows(2, 60, 35)
    x[0, :16] = np.resize([12, 8], 16)  # no error with 12, some with 8
    x[1, :16] = 3  # none with either: the first
    given = ops.quantize_attributes(fmt, 16, candidates)
    q, scale = agrees(run, "FpQuantize", given, x)
    chosen = set()
    for row, g in np.ndindex(58, 3):
        part = slice(16 * g, 16 * (g + 1))
        wanted, integers = best_of(x[row, part], fmt, [12, *candidates])
        assert scale[row, g] == np.float32(wanted)
        assert np.array_equal(q[row, part], integers)
        chosen.add(round(float(np.abs(x[row, part]).max() / scale[row, g])))
    assert chosen == {12, *candidates}
    assert scale[0, 0] == 1
    assert scale[1, 0] == np.float32(3) / np.float32(12)


def test_rotated_and_quantized_in_one(run: Run) -> None:
    fmt = FORMATS["int6"]
    x = rows(3, 6, 75)
    given = {"block": 32, **ops.quantize_attributes(fmt, 16)}
    q, scale = agrees(run, ops.HADAMARD_QUANTIZE, given, x)
    for own, both in zip(numerics.quantize(hadamard(x, 32), fmt, 16), (q, scale), strict=True):
        assert same_bits(own, both).ok


# --- FpLinear, FpLinearInteger -----------------------------------------------------------------

LAYERS = [
    ("e2m3", "e2m1", 32, None),
    ("int6", "e1m2", 32, 64),
    ("e2m1", "e2m1", 64, 16),
    ("int8", "int8", 150, 50),
]
EVERY_LAYER = pytest.mark.parametrize(("act", "weight", "group_size", "of_row"), LAYERS)
M, N, K = 5, 6, 150


def packed(fmt: FloatFormat) -> Array:
    random = np.random.default_rng(4)
    codes = random.integers(0, len(fmt.magnitudes), (N, K)) + (
        random.integers(0, 2, (N, K)) << (fmt.bits - 1)
    )
    return numerics.pack(codes.astype(np.uint8), fmt.storage_bits)


@EVERY_LAYER
def test_linear(act: str, weight: str, group_size: int, of_row: int | None, run: Run) -> None:
    fmt, random = FORMATS[weight], np.random.default_rng(5)
    q, scale = numerics.quantize(rows(6, M, K), FORMATS[act], of_row)
    steps = random.uniform(0.5, 2, (N, numerics.group_count(K, group_size))).astype(np.float16)
    bias = random.standard_normal(N).astype(np.float32)
    given = ops.linear_attributes(FORMATS[act], fmt, K, group_size, of_row)
    (y,) = agrees(run, ops.LINEAR, given, q, scale, packed(fmt), steps, bias)
    assert np.isnan(y[-2]).all()
    assert not np.isnan(y[:-2]).any()
    assert np.array_equal(y[-1], bias)


def test_linear_of_floats_under_several_scales(run: Run) -> None:
    """Integers wider than 16 bits are floats: a chain of fused multiply-adds within each run."""
    fmt = FORMATS["e5m2"]
    q, scale = numerics.quantize(rows(7, M, K), FORMATS["e4m3"], 32)
    steps = np.full((N, 3), 0.01, np.float32)
    given = ops.linear_attributes(FORMATS["e4m3"], fmt, K, 64, 32)
    agrees(run, ops.LINEAR, given, q, scale, packed(fmt), steps, np.ones(N, np.float32))


@EVERY_LAYER
def test_linear_integer(
    act: str, weight: str, group_size: int, of_row: int | None, run: Run
) -> None:
    """With several scales per row it is FpLinear of the integer weights in one group."""
    fmt, random = FORMATS[weight], np.random.default_rng(8)
    groups = numerics.group_count(K, group_size)
    q, scale = numerics.quantize(rows(9, M, K), FORMATS[act], of_row)
    times = random.integers(0, largest_multiplier(fmt) + 1, (N, groups)).astype(np.uint8)
    channel = random.uniform(0.01, 0.02, N).astype(np.float32)
    multipliers, bias = numerics.pack(times, 4), random.standard_normal(N).astype(np.float32)
    given = ops.linear_integer_attributes(FORMATS[act], fmt, K, group_size, of_row)
    codes = packed(fmt)
    (y,) = agrees(run, ops.LINEAR_INTEGER, given, q, scale, codes, multipliers, channel, bias)

    grid = numerics.decode(numerics.unpack(codes, K, fmt.storage_bits), fmt)
    integers = numerics.dequantize(grid, times.astype(np.float32), group_size)
    assert np.abs(integers).max() <= 127
    assert same_bits(numerics.linear_integer(q, scale, integers, channel, bias, of_row), y).ok
    if of_row is not None:
        whole = numerics.linear(q, scale, integers, channel[:, None], bias, K, of_row)
        assert same_bits(whole, y).ok
    (scales,) = agrees(run, ops.SCALE, ops.scale_attributes(groups), multipliers, channel)
    assert same_bits(scales, times * channel[:, None]).ok
