"""Stored tensors as float32: exact values of each type, and what is said of those that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fp4dit_onnx.checkpoint.rows import Rows
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import (
    check_tensors,
    read_chunks,
    read_float32,
    readable,
)
from fp4dit_onnx.errors import CheckpointError

BEFORE = b"header"
"""Bytes of the file before the tensor: an odd place."""


def stored(folder: Path, dtype: str, values: np.ndarray, shape: tuple[int, ...]) -> TensorInfo:
    """A file with `values` as they are, and where they lie in it."""
    path = folder / "weights.safetensors"
    path.write_bytes(BEFORE + values.tobytes() + b"the next tensor")
    return TensorInfo(shape, dtype, path, nbytes=values.nbytes, offset=len(BEFORE))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit; NaN counts by its bits too."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_float32_is_read_as_it_is(tmp_path: Path) -> None:
    values = np.array([[0, -0.0, 1e-45], [np.inf, np.nan, 3.4e38]], np.float32)
    found = read_float32(stored(tmp_path, "F32", values, (2, 3)))
    same(found, values)
    found[0, 0] = 1  # a copy that may be changed


def test_every_float16_is_exact(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    found = read_float32(stored(tmp_path, "F16", codes, (256, 256)))
    same(found, codes.view(np.float16).astype(np.float32).reshape(256, 256))
    assert found[0, 1] == 2.0**-24


def test_every_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    found = read_float32(stored(tmp_path, "BF16", codes, (2, 1 << 15)))
    same(found, (codes.astype(np.uint32) << 16).view(np.float32).reshape(2, -1))
    assert found.reshape(-1)[[0x3F80, 0xC049, 0x0001]].tolist() == [1.0, -3.140625, 2.0**-133]


def test_float64_is_rounded_to_nearest_even(tmp_path: Path) -> None:
    last = 2.0**-23
    values = np.array([1 + last / 2, 1 + 3 * last / 2, 1 + last * (0.5 + 1e-6), -0.1])
    found = read_float32(stored(tmp_path, "F64", values, (4,)))
    same(found, np.array([1, 1 + 2 * last, 1 + last, -0.1], np.float32))


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    same(read_float32(stored(tmp_path, "F32", np.float32([7]), ())), np.array(7, np.float32))
    found = read_float32(stored(tmp_path, "F16", np.zeros(0, np.float16), (0, 5)))
    same(found, np.zeros((0, 5), np.float32))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("elements", [1, 7, 64, 65])
def test_pieces_are_the_tensor(tmp_path: Path, dtype: str, elements: int) -> None:
    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    values = (1000 * np.random.default_rng(0).random(64)).astype(types[dtype])
    place = stored(tmp_path, dtype, values, (8, 8))
    pieces = list(read_chunks(place, elements))
    assert [piece.size for piece in pieces[:-1]] == [elements] * (len(pieces) - 1)
    assert 0 < pieces[-1].size <= elements
    same(np.concatenate(pieces).reshape(8, 8), read_float32(place))


def test_joined_rows_are_cut_across_their_parts(tmp_path: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    whole = Rows(stored(tmp_path, "F32", values, (5, 3)))
    turned = Rows.joined([whole[3:], whole[:3]])
    wanted = np.concatenate([values[3:], values[:3]])
    for start, stop in ((0, 5), (1, 4), (2, 5), (3, 4)):
        same(read_float32(turned[start:stop].info), wanted[start:stop])
    assert [part.shape for part in turned.chunk(2)] == [(3, 3), (2, 3)]
    one, other = turned.info.parts
    assert readable(turned.info)
    assert not readable(replace(turned.info, parts=(one, replace(other, dtype="I8"))))


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    info = stored(tmp_path, "F32", np.zeros(64, np.float32), (8, 8))
    info.file.write_bytes(info.file.read_bytes()[:200])
    with pytest.raises(
        CheckpointError, match="ends early: expected 256 bytes from 6; it has changed"
    ):
        read_float32(info)


def test_a_file_that_went_away(tmp_path: Path) -> None:
    info = stored(tmp_path, "F32", np.zeros(4, np.float32), (4,))
    info.file.unlink()
    with pytest.raises(
        CheckpointError, match=r"weights.safetensors cannot be read \(No such file"
    ):
        read_float32(info)


def info(dtype: str = "F16", shape: tuple[int, ...] = (3, 4)) -> TensorInfo:
    return TensorInfo(shape, dtype, Path("folder") / "w.safetensors", nbytes=24, offset=8)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_fitting_tensors_pass(dtype: str) -> None:
    given = {"a.weight": info(dtype), "unused": info("I8")}
    check_tensors("Net", given, {"a.weight": (3, 4)})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"the checkpoint has no tensor 'a.weight': Net .* needs it, shape \[3, 4\]; config"),
        ({"b": info()}, r"folder has no tensor 'a.weight'"),
        (
            {"a.weight": info(shape=(4, 3))},
            r"tensor 'a.weight' has shape \[4, 3\], Net of this config.json needs \[3, 4\]; config",
        ),
        (
            {"a.weight": info("I8")},
            "tensor 'a.weight' is of type I8, expected F32, F16 or BF16; .* quantized before",
        ),
        ({"a.weight": info("F8_E4M3")}, "is of type F8_E4M3"),
    ],
)
def test_tensors_that_do_not_fit(given: dict[str, TensorInfo], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        check_tensors("Net", given, {"a.weight": (3, 4)})
