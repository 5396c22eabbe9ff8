"""Initializers whose bytes are made when they are written, of types that numpy may not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx.bundle.model_file import ModelFile
from fp4dit_onnx.bundle.skeleton import placeholder

__all__ = ["Bytes", "Deferred", "as_bytes", "fill", "write"]

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Deferred:
    """A tensor to come.

    Attributes:
        data_type: of `onnx.TensorProto`'s.
        bits: of an element.
        shape: of the tensor.
        data: gives its bytes, uint8 [bytes].
    """

    data_type: int
    bits: int
    shape: tuple[int, ...]
    data: Callable[[], Bytes]

    def placeholder(self, name: str) -> onnx.TensorProto:
        """An initializer of its bytes; `fill` and `write` make it the tensor."""
        size = -(-math.prod(self.shape) * self.bits // 8)
        return placeholder(name, (size,), onnx.TensorProto.UINT8)


def as_bytes(values: npt.NDArray[Any]) -> Bytes:
    """The bytes of an array in order."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def fill(model: onnx.ModelProto, tensors: Mapping[str, Deferred]) -> None:
    """Put the tensors into the model itself."""
    for tensor in model.graph.initializer:
        if tensor.name in tensors:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = tensors[tensor.name].data().tobytes()
    _give_types(model, tensors)


def write(
    model: onnx.ModelProto,
    tensors: Mapping[str, Deferred],
    path: Path,
    source: Path,
    done: Callable[[int], None],
) -> None:
    """Write the model to `path`, one tensor in memory at a time.

    Args:
        model: changed; data of its other initializers lie in `source`.
        tensors: by the name of their placeholder.
        path: of the model; the data file lies beside it.
        source: folder of the model that it was made of.
        done: called after each tensor with its number of elements.
    """
    kept = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in tensors:
            kept[tensor.name] = onnx.TensorProto()
            kept[tensor.name].CopyFrom(tensor)
            tensor.CopyFrom(placeholder(tensor.name, tensor.dims, tensor.data_type))

    def values(name: str) -> npt.NDArray[Any]:
        if name in kept:
            return numpy_helper.to_array(kept[name], base_dir=str(source))
        return tensors[name].data()

    with ModelFile(path) as file:
        file.write(model, values, done=done, finish=lambda: _give_types(model, tensors))


def _give_types(model: onnx.ModelProto, tensors: Mapping[str, Deferred]) -> None:
    """Let the initializers that were bytes be what they are."""
    for tensor in model.graph.initializer:
        if tensor.name in tensors:
            tensor.data_type = tensors[tensor.name].data_type
            tensor.dims[:] = tensors[tensor.name].shape
