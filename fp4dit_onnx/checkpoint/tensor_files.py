"""Reads what safetensors files hold, without their weights: names, shapes, types, places.

A safetensors file is 8 bytes of header length (little-endian), the header in JSON, and the
tensors' bytes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, parse_object

__all__ = ["LowRank", "TensorInfo", "read_header", "read_metadata"]

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BF16": 16,
    "F16": 16,
    "I16": 16,
    "U16": 16,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by the header's name of its type."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a stored tensor lies.

    Attributes:
        shape: sizes, outermost first.
        dtype: the header's name of the element type, such as ``F16``.
        file: the safetensors or GGUF file.
        nbytes: bytes of the data.
        offset: first byte of the data, counted from the start of the file.
        low_rank: what is added to it when it is read.
        parts: where it is made of rows that lie in several places: these, in order.
        block: values that are packed together, as GGUF does; `dtype` is its name of the type.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    nbytes: int
    offset: int
    low_rank: tuple[LowRank, ...] = ()
    parts: tuple[TensorInfo, ...] = ()
    block: int = 1


@dataclass(frozen=True)
class LowRank:
    """A product that is added to a weight [N, ...]: scale * up @ down.

    Attributes:
        down: [rank, ...], as many per row as the weight has.
        up: [N, rank], or with axes of 1 after them.
        scale: factor.
    """

    down: TensorInfo
    up: TensorInfo
    scale: float


def _damaged(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: {found}; expected a whole safetensors file: download it again"
    )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name; their data is not read.

    Raises:
        CheckpointError: the header is unreadable, contradicts itself, or promises other bytes than
            the file has.
    """
    header, start, size = _header(path)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    end = max((t.offset + t.nbytes for t in tensors.values()), default=start)
    if end != size:
        found = "is truncated" if end > size else "has bytes that no tensor owns"
        raise _damaged(path, f"it {found}: the header describes {end} bytes, the file has {size}")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file says of itself; raises as `read_header` does."""
    found = _header(path)[0].get("__metadata__") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise _damaged(path, "its header has metadata that are not texts")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """A file's header, where its data begin, and its size in bytes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _damaged(path, f"{size} bytes, too short for a header")
        if prefix == b"version ":
            raise CheckpointError(
                f"{path} is a pointer of Git LFS: expected the file itself; fetch it with  git lfs "
                "pull, or download it again"
            )
        (length,) = struct.unpack("<Q", prefix)
        if length > LARGE:
            raise _damaged(path, f"its first 8 bytes announce a header of {length} bytes")
        if 8 + length > size:
            raise _damaged(path, f"header of {length} bytes in a file of {size}")
        raw = stream.read(length)
    header = parse_object(raw, f"{path}: its header", "a safetensors header", CHECKPOINT)
    return header, 8 + length, size


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    try:
        fields = dict(entry)  # type: ignore[call-overload]
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
        consistent = whole and math.prod(shape) * BITS[dtype] == 8 * (end - begin)
    except (KeyError, TypeError, ValueError):
        consistent = False
    if not consistent:
        raise _damaged(path, f"header entry {name!r} has no consistent type, shape and offsets")
    return TensorInfo(shape, dtype, path, end - begin, data_start + begin)
