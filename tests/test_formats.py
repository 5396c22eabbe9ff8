"""Formats: the table of docs/design.md, ml_dtypes on every code, and the golden vectors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat, format_by_name
from fp4dit_onnx.numbers.numerics import round_to_grid

# name: (bits, largest value, unit, largest grid integer, type of quantized activations)
TABLE: dict[str, tuple[int, float, float, float, npt.DTypeLike]] = {
    "e2m1": (4, 6, 2, 12, np.int8),
    "e1m2": (4, 3.5, 2, 7, np.int8),
    "e3m0": (4, 16, 4, 64, np.int8),
    "e2m3": (6, 7.5, 8, 60, np.int8),
    "e3m2": (6, 28, 16, 448, np.int16),
    "e3m4": (8, 31, 64, 1984, np.int16),
    "e4m3": (8, 448, 512, 229376, np.float32),
    "e5m2": (8, 57344, 65536, 57344 * 65536, np.float32),
    "int4": (4, 7, 1, 7, np.int8),
    "int6": (6, 31, 1, 31, np.int8),
    "int8": (8, 127, 1, 127, np.int8),
}

REFERENCE: dict[str, Any] = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def test_table_names_every_format() -> None:
    assert list(TABLE) == list(FORMATS)
    assert [fmt.name for fmt in FORMATS.values()] == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_table(name: str) -> None:
    fmt = FORMATS[name]
    found = (fmt.bits, fmt.max, fmt.unit, fmt.max_integer, fmt.integer_type)
    assert found == TABLE[name]
    assert fmt.storage_bits == (4 if fmt.bits == 4 else 8)


@pytest.mark.parametrize(
    ("name", "magnitudes"),
    [
        ("e2m1", [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ("e1m2", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
        ("e3m0", [0, 0.25, 0.5, 1, 2, 4, 8, 16]),
        ("int4", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_magnitudes(name: str, magnitudes: list[float]) -> None:
    fmt = FORMATS[name]
    assert (fmt.magnitudes / fmt.unit).tolist() == magnitudes


@pytest.mark.parametrize("name", REFERENCE)
def test_every_code_is_that_of_ml_dtypes(name: str) -> None:
    fmt = FORMATS[name]
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    value = codes.view(REFERENCE[name]).astype(np.float64)
    number = np.isfinite(value)
    assert np.array_equal(np.isfinite(fmt.grid), number)
    assert np.array_equal(fmt.grid[number] / fmt.unit, value[number])
    assert np.array_equal(np.signbit(fmt.grid[number]), np.signbit(value[number]))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
def test_grid_is_integers_that_their_type_holds(fmt: FloatFormat) -> None:
    numbers = fmt.grid[np.isfinite(fmt.grid)]
    assert fmt.grid.shape == (2**fmt.bits,)
    assert np.array_equal(numbers.astype(fmt.integer_type).astype(np.float64), np.rint(numbers))
    assert np.all(np.diff(fmt.magnitudes) > 0)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
def test_sign_is_the_highest_bit(fmt: FloatFormat) -> None:
    positive, negative = np.split(fmt.grid, 2)
    assert np.array_equal(negative, -positive, equal_nan=True)
    count = len(fmt.magnitudes)
    assert np.signbit(negative[:count]).all()
    assert not np.signbit(positive[:count]).any()


def test_e1m2_has_the_grid_of_int4() -> None:
    assert np.array_equal(FORMATS["e1m2"].grid, FORMATS["int4"].grid)
    assert FORMATS["e1m2"].unit != FORMATS["int4"].unit


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("e2m1", {0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5: 4}),
        # In units of 16 / 64, which are the grid integers.
        ("e3m0", {0.5: 0, 0.51: 1, 0.75: 1, 1.5: 2, 3: 4, 6: 8, 48: 64}),
    ],
)
def test_golden_vectors(name: str, vectors: dict[float, float]) -> None:
    fmt = FORMATS[name]
    unit = fmt.unit if name == "e2m1" else 1.0
    x = np.array(list(vectors), np.float32)
    found = (round_to_grid(x * np.float32(unit), fmt) / unit).tolist()
    assert found == list(vectors.values())
    assert (round_to_grid(-x * np.float32(unit), fmt) / unit).tolist() == [-v for v in found]


def test_known_name() -> None:
    assert format_by_name("e3m4") is FORMATS["e3m4"]


@pytest.mark.parametrize("name", ["", "fp4", "E2M1", "e2m1 ", "none"])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        format_by_name(name)
    message = str(caught.value)
    assert repr(name) in message
    assert all(known in message for known in FORMATS)
