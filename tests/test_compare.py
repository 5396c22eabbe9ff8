"""Comparators are tested to fail: each is fed wrong answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import linear_rounding_bound, same_bits, sqnr_db, within

Array = npt.NDArray[Any]
NAN, INF = float("nan"), float("inf")


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


WRONG = {
    "wrong sign": (f32(1, 2), f32(1, -2)),
    "wrong magnitude": (f32(1, 30), f32(1, 59)),
    "negative pair": (f32(-2), f32(-400)),
    "zero against negative": (f32(0), f32(-5)),
    "NaN against a number": (f32(1, NAN), f32(1, 0)),
    "a number against NaN": (f32(1, 0), f32(1, NAN)),
    "infinity of the other sign": (f32(INF), f32(-INF)),
    "infinity against a number": (f32(INF), f32(3e38)),
    "one bit": (f32(1), np.nextafter(f32(1), f32(2))),
    "wrong type": (f32(1), np.ones(1, np.float64)),
    "wrong shape": (f32(1, 1), f32(1)),
    "broadcastable shape": (np.ones((1, 2), np.float32), f32(1, 1)),
}
RIGHT = {
    "equal": (f32(1, -2, 3e38), f32(1, -2, 3e38)),
    "zeros of both signs": (f32(0.0, -0.0), f32(-0.0, 0.0)),
    "NaN and infinities": (f32(NAN, INF, -INF), f32(NAN, INF, -INF)),
    "empty": (f32(), f32()),
    "empty of rank 2": (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
    "integers": (np.array([1, -2], np.int8), np.array([1, -2], np.int8)),
}


@pytest.mark.parametrize("name", WRONG)
def test_both_comparators_refuse(name: str) -> None:
    a, b = WRONG[name]
    for outcome in (same_bits(a, b), within(a, b, np.zeros(1))):
        assert not outcome.ok
        assert outcome.detail


@pytest.mark.parametrize("name", RIGHT)
def test_both_comparators_agree(name: str) -> None:
    a, b = RIGHT[name]
    for outcome in (same_bits(a, b), within(a, b, np.zeros(1))):
        assert (outcome.ok, outcome.detail, outcome.worst) == (True, "", 0.0)


def test_same_bits_tells_where_and_how_many() -> None:
    a = np.zeros((2, 3), np.int8)
    b = a.copy()
    b[1, 0], b[1, 2] = 7, -7
    assert same_bits(a, b).detail == "2 of 6 differ, first at (1, 0): 0 against 7"
    assert same_bits(a, b.astype(np.int16)).detail == "int8 (2, 3) against int16 (2, 3)"


def test_within_counts_the_edge_as_inside() -> None:
    a, b = f32(1, -8), f32(1.5, -10)
    assert within(a, b, np.array([0.5, 2.0])).ok
    outcome = within(a, b, np.array([0.5, np.nextafter(2.0, 0)]))
    assert not outcome.ok
    assert outcome.detail.startswith("at (1,): -8.0 against -10.0, allowed 2")
    assert outcome.worst == INF


@pytest.mark.parametrize(
    ("b", "bound", "worst"), [(1.25, 0.5, 0.5), (0.875, 0.5, 0.25), (1, 0, 0), (1.5, 0.5, 1)]
)
def test_within_tells_the_share_of_the_bound(b: float, bound: float, worst: float) -> None:
    outcome = within(f32(1, NAN), f32(b, NAN), np.array([bound, 0]))
    assert (outcome.ok, outcome.worst) == (True, worst)


@pytest.mark.parametrize("bound", [0.0, -1.0, NAN])
def test_within_no_bound_means_equal(bound: float) -> None:
    tiny = float(np.nextafter(np.float32(0), np.float32(1)))
    assert within(f32(0), f32(0), np.array(bound)).ok
    assert not within(f32(0), f32(tiny), np.array(bound)).ok


def test_within_does_not_subtract_in_float32() -> None:
    largest = float(np.finfo(np.float32).max)
    assert not within(f32(largest), f32(-largest), np.array(largest)).ok
    assert within(f32(largest), f32(-largest), np.array(2 * largest)).ok


def test_within_an_infinite_bound_does_not_excuse_nan() -> None:
    assert not within(f32(NAN), f32(1), np.array(INF)).ok


# --- linear_rounding_bound ---------------------------------------------------------------------


def evaluations(
    q: Array, scale: Array, weight: Array, steps: Array, bias: Array, group_size: int, seed: int
) -> list[Array]:
    """One linear in float32 in several orders of summation: the reference, and bodies of MatMuls."""
    value = numerics.dequantize(weight, steps, group_size)
    found = [numerics.linear(q, scale, weight, steps, bias, group_size)]
    random = np.random.default_rng(seed)
    for order in (np.arange(q.shape[1]), random.permutation(q.shape[1])):
        chain = np.zeros((q.shape[0], weight.shape[0]), np.float32)
        for k in order:
            chain = chain + q[:, k, None].astype(np.float32) * value[None, :, k]
        found.append(chain * scale + bias)
    found.append((q.astype(np.float32) @ value.T) * scale + bias)
    return found


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 40),
    group_size=st.sampled_from([1, 4, 16, 128]),
    integer=st.booleans(),
)
def test_linear_rounding_bound_holds_any_order(
    seed: int, k: int, group_size: int, *, integer: bool
) -> None:
    random = np.random.default_rng(seed)
    q = random.integers(-60, 61, (3, k)).astype(np.int8)
    scale = random.uniform(0.01, 2, (3, 1)).astype(np.float32)
    if not integer:
        q, scale = random.standard_normal((3, k)).astype(np.float32), np.ones(1, np.float32)
    weight = random.integers(-12, 13, (4, k)).astype(np.float32)
    groups = numerics.group_count(k, group_size)
    steps = random.uniform(0.01, 2, (4, groups)).astype(np.float32)
    bias = random.standard_normal(4).astype(np.float32)
    value = numerics.dequantize(weight, steps, group_size)
    bound = linear_rounding_bound(q, scale, value, bias, groups)
    ours = evaluations(q, scale, weight, steps, bias, group_size, seed)
    for a in ours:
        for b in ours:
            assert within(a, b, bound).ok, within(a, b, bound).detail


@pytest.mark.parametrize("k", [1, 64, 1152, 4608])
def test_linear_rounding_bound_refuses_one_percent(k: int) -> None:
    # All terms positive: y is the sum of magnitudes, and one percent of it is more than gamma of it:
    # at most (3 K + 44) 2^-24 = 0.0009 for float activations at K = 4608.
    random = np.random.default_rng(0)
    for q in (random.integers(1, 60, (2, k)).astype(np.int8), np.ones((2, k), np.float32)):
        value = random.uniform(0.5, 1, (3, k)).astype(np.float32)
        bias, one = np.ones(3, np.float32), np.ones((2, 1), np.float32)
        y = (q.astype(np.float64) @ value.T.astype(np.float64) + bias).astype(np.float32)
        bound = linear_rounding_bound(q, one, value, bias, -(-k // 128))
        assert bound.shape == y.shape
        assert within(y, y, bound).ok
        for wrong in (y * np.float32(1.01), y * np.float32(0.99), -y):
            assert not within(y, wrong, bound).ok


def test_linear_rounding_bound_known_value() -> None:
    # Float activations: K + 4 roundings in the body, K (the chain) + 1 (groups) + 3 in the kernel.
    q, value, bias = f32(2, -3)[None], f32(5, 7)[None], f32(-11)
    roundings = (2 + 4) + (2 + 1 + 3)
    gamma = roundings * 2.0**-24 / (1 - roundings * 2.0**-24)
    found = linear_rounding_bound(q, f32(0.5), value, bias, 1)
    assert found.tolist() == [[gamma * ((2 * 5 + 3 * 7) * 0.5 + 11)]]


# --- sqnr_db -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "approximation", "expected"),
    [
        (f32(10, 0), f32(9, 0), 20.0),
        (f32(1, 1), f32(0, 0), 0.0),
        (f32(1, 1), f32(-1, -1), 10 * np.log10(0.25)),
        (f32(1, -1), f32(1, -1), INF),
    ],
)
def test_sqnr_db(signal: Array, approximation: Array, expected: float) -> None:
    # Every sum here is exact, so only the logarithm and its factor round: exact equality.
    assert sqnr_db(signal, approximation) == expected


def test_sqnr_db_of_nan_is_nan() -> None:
    assert np.isnan(sqnr_db(f32(1, NAN), f32(1, 1)))
    assert np.isnan(sqnr_db(f32(1, 1), f32(1, NAN)))


def test_sqnr_db_squares_in_float64() -> None:
    assert sqnr_db(f32(2.0**120), f32(2.0**120 * 0.5)) == 10 * np.log10(4)
