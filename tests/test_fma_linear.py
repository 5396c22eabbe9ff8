"""The numpy reference of fma and FpLinear against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS

Array = npt.NDArray[Any]

SPECIAL = [
    *(0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-126), 2.0**-24, 2.0**-75),
    *(float(np.finfo(np.float32).max), -float(np.finfo(np.float32).max), 2.0**64, -(2.0**126)),
]


def nearest_float32(exact: Fraction) -> float:
    """The float32 next to an exact number, ties to even; `round` of a Fraction is exact."""
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(magnitude / step) * step
    value = math.inf if rounded >= Fraction(2) ** 128 else float(rounded)
    return math.copysign(value, exact)


def exact_fma(a: float, b: float, c: float) -> float:
    """float32 a * b + c, rounded once."""
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c  # no rounding where there is no number
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # the sign of a zero
    return nearest_float32(exact)


# --- fma ---------------------------------------------------------------------------------------

FLOATS = st.one_of(
    st.floats(width=32),
    st.sampled_from(SPECIAL),
    st.builds(math.ldexp, st.integers(-(2**24) + 1, 2**24 - 1), st.integers(-60, 60)),
)


def assert_fma(a: float, b: float, c: float) -> None:
    with np.errstate(invalid="ignore"):  # infinity times zero
        found = float(numerics.fma([a], [b], [c])[0])
    wanted = exact_fma(a, b, c)
    if math.isnan(wanted):
        assert math.isnan(found)
    else:
        assert (found, math.copysign(1, found)) == (wanted, math.copysign(1, wanted))


@settings(deadline=None)
@given(a=FLOATS, b=FLOATS, c=FLOATS)
def test_fma_is_correctly_rounded(a: float, b: float, c: float) -> None:
    assert_fma(a, b, c)


@settings(deadline=None)
@given(a=FLOATS, b=FLOATS, ulps=st.integers(-2, 2))
def test_fma_with_cancellation(a: float, b: float, ulps: int) -> None:
    with np.errstate(all="ignore"):
        c = -np.float32(a) * np.float32(b)
        for _ in range(abs(ulps)):
            c = np.nextafter(c, np.float32(math.copysign(np.inf, ulps)))
    assert_fma(a, b, float(c))


@settings(deadline=None)
@given(
    odd=st.integers(2**22, 2**23 - 1).map(lambda i: 2 * i + 1),
    tail=st.integers(-149, -60),
    sign=st.sampled_from([-1.0, 1.0]),
    exponent=st.integers(-20, 20),
)
def test_fma_where_float64_rounds_twice(odd: int, tail: int, sign: float, exponent: int) -> None:
    # 3 * odd has 25 or 26 bits and is odd: with 25 it is a tie of float32. The addend is below the last
    # bit of float64, so the sum rounds to the tie there, and the second rounding has lost its side.
    assert_fma(math.ldexp(odd, exponent - 23), 3.0, sign * math.ldexp(1, tail))


def test_fma_tie_that_float64_loses() -> None:
    a, b, c = 1 + 2.0**-23, 1.5, -(2.0**-80)  # 1.5 + 2^-23 + 2^-24 - 2^-80
    naive = np.float32(a * b + c)
    assert naive == np.float32(1.5 + 2.0**-22)
    assert numerics.fma([a], [b], [c]) == np.float32(1.5 + 2.0**-23)
    assert_fma(a, b, c)


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [
        (2.0**-75, 2.0**-75, 0.0),  # half of the smallest subnormal: a tie, to zero
        (2.0**-75, 2.0**-75, 2.0**-149),  # 1.5 subnormals: a tie, up
        (2.0**-75, 2.0**-75 * (1 + 2.0**-23), 0.0),
        (-(2.0**-75), 2.0**-75, 0.0),
        (2.0**-149, 2.0**-149, 2.0**-126),
        (2.0**-149, -(2.0**-149), 2.0**-126),
        (2.0**64, 2.0**64, 0.0),
        (2.0**64, 2.0**64, -(2.0**104)),  # exactly the largest float32
        (2.0**64, 2.0**64, -(2.0**103)),  # halfway between it and 2^128
        (2.0**127, 2.0**127, -float(np.finfo(np.float32).max)),
        (math.inf, 1.0, -math.inf),
        (math.inf, 0.0, 1.0),
        (1.0, 1.0, math.nan),
        (math.inf, -1.0, 1.0),
        (-0.0, 1.0, -0.0),
        (0.0, 1.0, -0.0),
    ],
)
def test_fma_edges(a: float, b: float, c: float) -> None:
    assert_fma(a, b, c)


def test_fma_broadcasts() -> None:
    a, b = np.array([[1], [2]], np.float32), np.array([[3, 4, 5]], np.float32)
    assert numerics.fma(a, b, np.float32(1)).tolist() == [[4, 5, 6], [7, 9, 11]]


def test_nearest_float32_is_the_conversion_of_numpy() -> None:
    random = np.random.default_rng(4)
    x = random.standard_normal(300) * 2.0 ** random.integers(-160, 128, 300)
    wanted = x.astype(np.float32)
    assert [nearest_float32(Fraction(v)) for v in x] == wanted.astype(np.float64).tolist()


# --- linear ------------------------------------------------------------------------------------


def literal_linear(
    q: Array, scale: Array, weight: Array, weight_scale: Array, bias: Array, group_size: int
) -> Array:
    """The definition of FpLinear in python numbers."""
    rows, k = q.shape
    y = np.zeros((rows, weight.shape[0]), np.float32)
    for m in range(rows):
        for n in range(weight.shape[0]):
            total = 0.0
            for g in range(math.ceil(k / group_size)):
                part = range(g * group_size, min(k, (g + 1) * group_size))
                if q.dtype == np.float32:
                    acc = 0.0
                    for i in part:
                        acc = exact_fma(float(q[m, i]), float(weight[n, i]), acc)
                else:
                    exact = sum(int(q[m, i]) * int(weight[n, i]) for i in part)
                    acc = nearest_float32(Fraction(exact))
                total = exact_fma(float(weight_scale[n, g]), acc, total)
            step = float(scale[m, 0] if scale.ndim == 2 else scale[0])
            y[m, n] = exact_fma(step, total, float(bias[n]))
    return y


@pytest.mark.parametrize("act", [None, "e2m3", "e3m4", "e4m3", "int8"])
@pytest.mark.parametrize("weight_name", ["e2m1", "e3m0", "e2m3", "int8"])
@pytest.mark.parametrize(("k", "group_size"), [(1, 8), (7, 3), (8, 4)])
def test_linear_is_the_definition(
    act: str | None, weight_name: str, k: int, group_size: int
) -> None:
    random = np.random.default_rng(5)
    fmt = FORMATS[weight_name]
    x = random.standard_normal((3, k)).astype(np.float32)
    q, scale = numerics.quantize(x, FORMATS[act]) if act else (x, np.ones(1, np.float32))
    codes = random.integers(0, 2**fmt.bits, (5, k)).astype(np.uint8)
    weight = numerics.decode(codes, fmt)
    weight_scale = random.standard_normal((5, math.ceil(k / group_size))).astype(np.float16)
    bias = random.standard_normal(5).astype(np.float32)
    arguments = (q, scale, weight, weight_scale, bias, group_size)
    found, wanted = numerics.linear(*arguments), literal_linear(*arguments)
    assert same_bits(wanted, found).ok, same_bits(wanted, found).detail


def test_linear_rounds_a_large_integer_sum_once() -> None:
    # 32767 * 127 * 9 = 37452681 takes 26 bits: between 37452680 and 37452684.
    q = np.full((1, 9), 32767, np.int16)
    weight = np.full((1, 9), 127, np.float32)
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    assert 32767 * 127 * 9 == 37452681
    assert numerics.linear(q, one, weight, one, zero, 9).tolist() == [[37452680]]


def test_linear_of_a_poisoned_row_is_nan() -> None:
    x = np.array([[1, np.nan], [1, 2]], np.float32)
    q, scale = numerics.quantize(x, FORMATS["e2m3"])
    weight, steps = np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)
    y = numerics.linear(q, scale, weight, steps, np.zeros(3, np.float32), 8)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()
