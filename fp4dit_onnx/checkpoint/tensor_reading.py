"""Reads stored tensors one at a time; nothing stays in memory or mapped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.checkpoint.tensor_files import LowRank, TensorInfo
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.numbers.formats import FloatArray

__all__ = ["check_tensors", "read_chunks", "read_float32", "same_data"]

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
BF16 = "BF16"
CHUNK = 1 << 24
"""Elements that are read at a time where a tensor is only passed on."""


def read_float32(info: TensorInfo) -> FloatArray:
    """The tensor at `info` in float32; float64 is rounded, the narrower types are exact.

    Raises:
        CheckpointError: the file has changed or cannot be read.
    """
    parts = list(read_chunks(info, max(1, math.prod(info.shape))))
    return parts[0].reshape(info.shape) if parts else np.zeros(info.shape, np.float32)


def read_chunks(info: TensorInfo, elements: int = CHUNK) -> Iterator[FloatArray]:
    """The tensor at `info` in float32, flat, at most `elements` at a time; see `read_float32`."""
    pairs = [_factors(added) for added in info.low_rank]
    start = 0
    for part in _stored_chunks(info, elements):
        for up, down in pairs:
            rows, place = divmod(start, down.shape[1])
            last = -(-(start + part.size) // down.shape[1])
            part = part + (up[rows:last] @ down).ravel()[place : place + part.size]
        start += part.size
        yield part


def _factors(added: LowRank) -> tuple[FloatArray, FloatArray]:
    """Both factors of what is added, [N, rank] and [rank, K], the scale in the former."""
    up, down = read_float32(added.up), read_float32(added.down)
    return up.reshape(len(up), -1) * np.float32(added.scale), down.reshape(len(down), -1)


def _stored_chunks(info: TensorInfo, elements: int) -> Iterator[FloatArray]:
    dtype = np.dtype(np.uint16 if info.dtype == BF16 else FLOATS[info.dtype]).newbyteorder("<")
    left = math.prod(info.shape)
    try:
        with info.file.open("rb") as file:
            file.seek(info.offset)
            while left:
                count = min(left, elements)
                values: npt.NDArray[Any] = np.fromfile(file, dtype, count)
                if values.size != count:
                    raise CheckpointError(
                        f"{info.file} ends early: expected {info.nbytes} bytes from {info.offset}; "
                        "it has changed since the export began: start again"
                    )
                left -= count
                yield (
                    _widened(values)
                    if info.dtype == BF16
                    else values.astype(np.float32, copy=False)
                )
    except OSError as error:
        raise CheckpointError(f"{info.file} cannot be read ({error.strerror})") from error


def _widened(values: npt.NDArray[Any]) -> FloatArray:
    """bfloat16 bits as float32."""
    wide = values.astype(np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)
    return wide.view(np.float32)


def same_data(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors are equal in type, shape, every byte, and what is added to them."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if first.low_rank != second.low_rank:
        return False
    with first.file.open("rb") as one, second.file.open("rb") as other:
        one.seek(first.offset)
        other.seek(second.offset)
        for start in range(0, first.nbytes, CHUNK):
            count = min(CHUNK, first.nbytes - start)
            if one.read(count) != other.read(count):
                return False
    return True


def check_tensors(
    what: str, stored: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a checkpoint has every tensor that a network wants, in shape and type.

    Args:
        what: the network's class, for messages.
        stored: the checkpoint's tensors.
        wanted: shapes by name.

    Raises:
        CheckpointError: names the first tensor at fault.
    """
    for name, shape in wanted.items():
        info = stored.get(name)
        if info is None:
            folder = next(iter(stored.values())).file.parent if stored else "the checkpoint"
            raise CheckpointError(
                f"{folder} has no tensor {name!r}: {what} of this config.json needs it, shape "
                f"{list(shape)}; config and weights are of different models, or the download is "
                "incomplete"
            )
        if info.shape != tuple(shape):
            raise CheckpointError(
                f"{info.file}: tensor {name!r} has shape {list(info.shape)}, {what} of this "
                f"config.json needs {list(shape)}; config and weights are of different models"
            )
        if info.dtype not in (*FLOATS, BF16):
            raise CheckpointError(
                f"{info.file}: tensor {name!r} is of type {info.dtype}, expected F32, F16 or BF16; "
                "the checkpoint was quantized before: take the original one"
            )
