"""Reads what GGUF files hold, without their weights, by the package ``gguf``."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.errors import CheckpointError, MissingExtraError
from fp4dit_onnx.numbers.formats import FloatArray

__all__ = ["read_gguf", "unpacked"]

PLAIN = ("F64", "F32", "F16", "BF16")
"""Types that safetensors has too, under these names."""
RESHAPED = "comfy.gguf.orig_shape."
"""Before the name of a tensor whose shape ComfyUI's converter changed: its shape in torch."""
BLOCKS = 1 << 12
"""That are unpacked at a time."""


def read_gguf(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file by name; their data is not read.

    Raises:
        MissingExtraError: the package ``gguf`` is not installed.
        CheckpointError: the file is damaged or truncated, or a tensor is of an unknown type.
    """
    gguf = _package()
    try:
        reader = gguf.GGUFReader(path)
        shapes = {
            name.removeprefix(RESHAPED): tuple(map(int, field.contents()))
            for name, field in reader.fields.items()
            if name.startswith(RESHAPED)
        }
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        if gguf.GGMLQuantizationType.__name__ in str(error):
            number = re.sub(r"np\.\w+|\D", "", str(error).partition(" ")[0])
            raise _unknown(path, f"a tensor is of GGUF type {number}") from error
        raise CheckpointError(
            f"{path} is damaged: {error}; expected a whole GGUF file: download it again"
        ) from error
    unreadable = {
        t.tensor_type.name: t.name for t in reader.tensors if not _unpacks(t.tensor_type)
    }
    for dtype, name in unreadable.items():
        raise _unknown(path, f"tensor {name!r} is of GGUF type {dtype}")
    return {tensor.name: _info(path, tensor, shapes) for tensor in reader.tensors}


def _package() -> Any:
    try:
        import gguf
    except ImportError as cause:
        raise MissingExtraError("gguf", "export") from cause
    return gguf


def _unknown(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {found}, which gguf {importlib.metadata.version('gguf')} cannot turn into numbers: "
        "expected F32, F16, BF16, or a type such as Q8_0, Q4_K; install a newer gguf, or take a file "
        "of another type"
    )


def _unpacks(kind: Any) -> bool:
    """Whether the package makes numbers of a type."""
    gguf = _package()
    try:
        gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return kind.name in PLAIN
    return True


def _info(path: Path, tensor: Any, shapes: Mapping[str, tuple[int, ...]]) -> TensorInfo:
    usual = tuple(int(size) for size in reversed(tensor.shape))
    shape = shapes.get(tensor.name, usual)
    if math.prod(shape) != math.prod(usual):
        raise CheckpointError(
            f"{path} is damaged: tensor {tensor.name!r} has shape {list(usual)}, and {list(shape)} "
            "before it was converted; expected as many values: download it again"
        )
    kind = tensor.tensor_type
    block = _package().GGML_QUANT_SIZES[kind][0]
    return TensorInfo(
        shape, kind.name, path, int(tensor.n_bytes), int(tensor.data_offset), block=block
    )


def unpacked(dtype: str, blocks: npt.NDArray[np.void]) -> FloatArray:
    """The values of blocks of a GGUF type, flat, as the package computes them."""
    gguf = _package()
    kind = gguf.GGMLQuantizationType[dtype]
    parts = [blocks[at : at + BLOCKS].view(np.uint8) for at in range(0, len(blocks), BLOCKS)]
    values: FloatArray = np.concatenate([gguf.dequantize(part, kind) for part in parts])
    return values
