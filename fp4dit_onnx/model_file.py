"""Writing an ONNX model with its tensors in one aligned data file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

__all__ = ["DATA_SUFFIX", "save_model"]

DATA_SUFFIX = ".data"
INLINE_BELOW = 1024
"""Bytes; smaller tensors stay in the model file, where shape inference can read them."""
ALIGNMENT = 64
PAGE_ALIGNMENT = 1 << 16
PAGE_ALIGN_FROM = 1 << 20
"""Bytes; from here on a tensor starts at a multiple of every page size, so that it can be mapped."""


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` and its tensors to ``path + '.data'``; `model` is emptied of them.

    Offsets are multiples of 64 bytes, of 64 KiB for tensors of at least 1 MiB.
    """
    data = path.with_name(path.name + DATA_SUFFIX)
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < INLINE_BELOW:
                continue
            large = len(tensor.raw_data) >= PAGE_ALIGN_FROM
            file.write(bytes(-file.tell() % (PAGE_ALIGNMENT if large else ALIGNMENT)))
            offset = file.tell()
            file.write(tensor.raw_data)
            set_external_data(tensor, data.name, offset, len(tensor.raw_data))
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
