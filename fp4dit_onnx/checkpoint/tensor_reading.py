"""Reads stored tensors one at a time; nothing stays in memory or mapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.checkpoint.gguf_files import unpacked
from fp4dit_onnx.checkpoint.tensor_files import LowRank, TensorInfo
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.numbers.formats import FloatArray

__all__ = ["check_tensors", "read_chunks", "read_float32", "readable", "same_data"]

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
BF16 = "BF16"
CHUNK = 1 << 24
"""Elements that are read at a time where a tensor is only passed on."""


def read_float32(info: TensorInfo) -> FloatArray:
    """The tensor at `info` in float32; float64 is rounded, the narrower types are exact.

    Raises:
        CheckpointError: the file has changed or cannot be read.
    """
    read = list(read_chunks(info, max(1, math.prod(info.shape))))
    if not read:
        return np.zeros(info.shape, np.float32)
    return (read[0] if len(read) == 1 else np.concatenate(read)).reshape(info.shape)


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
    if info.parts:
        for part in info.parts:
            yield from _stored_chunks(part, elements)
        return
    dtype, of_item, widened = _items(info)
    left = math.prod(info.shape) // of_item
    try:
        with info.file.open("rb") as file:
            file.seek(info.offset)
            while left:
                count = min(left, max(1, elements // of_item))
                values: npt.NDArray[Any] = np.fromfile(file, dtype, count)
                if values.size != count:
                    raise CheckpointError(
                        f"{info.file} ends early: expected {info.nbytes} bytes from {info.offset}; "
                        "it has changed since the export began: start again"
                    )
                left -= count
                yield widened(values)
    except OSError as error:
        raise CheckpointError(f"{info.file} cannot be read ({error.strerror})") from error


def _items(
    info: TensorInfo,
) -> tuple[npt.DTypeLike, int, Callable[[npt.NDArray[Any]], FloatArray]]:
    """What a tensor is stored as: the type of an item, values in one, and what makes float32 of some."""
    if info.dtype == BF16:
        return np.dtype("<u2"), 1, _widened
    if info.dtype in FLOATS:
        stored = np.dtype(FLOATS[info.dtype]).newbyteorder("<")
        return stored, 1, lambda values: values.astype(np.float32, copy=False)
    blocks = math.prod(info.shape) // info.block
    return np.dtype((np.void, info.nbytes // blocks)), info.block, partial(unpacked, info.dtype)


def readable(info: TensorInfo) -> bool:
    """Whether a tensor is of a type that can be read as numbers: floats, and what GGUF packs."""
    return all(i.dtype in (*FLOATS, BF16) or i.block > 1 for i in info.parts or (info,))


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
    if first.parts or second.parts:
        return read_float32(first).tobytes() == read_float32(second).tobytes()
    pairs = zip(read_chunks(first), read_chunks(second), strict=True)
    return all(one.tobytes() == other.tobytes() for one, other in pairs)


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
        if not readable(info):
            raise CheckpointError(
                f"{info.file}: tensor {name!r} is of type {info.dtype}, expected F32, F16 or BF16; "
                "the checkpoint was quantized before: take the original one"
            )
