"""Tensors of an ONNX model that lie in a file beside it.

The onnx package refuses data files that are links, as all of Hugging Face's cache are, or that have
several names. Here `links` says which are followed.
"""

from __future__ import annotations

from pathlib import Path, PurePath

import onnx

from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.system.links import followed

__all__ = ["load_tensor"]


def load_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """Put the values of `tensor` into it, if they lie in a file.

    Args:
        tensor: changed.
        folder: of the model.

    Raises:
        BundleError: no such file, one outside the bundle, or a place beyond its end.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = PurePath(given.get("location", ""))
    if not location.name or location.is_absolute() or ".." in location.parts:
        raise BundleError(
            f"tensor {tensor.name} lies in {str(location)!r}: expected a file beside the model, in "
            f"{folder}; copy or export the bundle again"
        )
    path = followed(folder / location, folder)
    if not path.is_file():
        raise BundleError(f"{folder / location} not found: tensor {tensor.name} lies in it")
    size = path.stat().st_size
    offset, length = (_number(tensor, given, key) for key in ("offset", "length"))
    offset, length = offset or 0, size - (offset or 0) if length is None else length
    if not 0 <= offset <= offset + length <= size:
        raise BundleError(
            f"tensor {tensor.name}: {length} bytes from {offset} on, expected within the {size} of "
            f"{path}; copy or export the bundle again"
        )
    with path.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _number(tensor: onnx.TensorProto, given: dict[str, str], key: str) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BundleError(f"tensor {tensor.name}: {key} {text[:20]!r}, expected a number of bytes")
    return int(text)
