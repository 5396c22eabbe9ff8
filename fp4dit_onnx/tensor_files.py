"""Reads what safetensors files hold, without their weights: names, shapes, types, places.

A safetensors file is 8 bytes of header length (little-endian), the header in JSON, and the
tensors' bytes. A component may be split into shards, which an index file lists by tensor name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, parse_object, read_json

__all__ = ["TensorInfo", "WeightFiles", "read_header", "read_weights"]

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
        file: the safetensors file.
        nbytes: bytes of the data.
        offset: first byte of the data, counted from the start of the file.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    nbytes: int
    offset: int


@dataclass(frozen=True)
class WeightFiles:
    """The stored tensors of one component.

    Attributes:
        tensors: by name, as the header has it.
        variant: the infix of the file names, such as ``fp16``; None for the plain ones.
    """

    tensors: Mapping[str, TensorInfo]
    variant: str | None


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
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _damaged(path, f"{size} bytes, too short for a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > LARGE:
            raise _damaged(path, f"its first 8 bytes announce a header of {length} bytes")
        if 8 + length > size:
            raise _damaged(path, f"header of {length} bytes in a file of {size}")
        raw = stream.read(length)
    header = parse_object(raw, f"{path}: its header", "a safetensors header", CHECKPOINT)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    end = max((t.offset + t.nbytes for t in tensors.values()), default=8 + length)
    if end != size:
        found = "is truncated" if end > size else "has bytes that no tensor owns"
        raise _damaged(path, f"it {found}: the header describes {end} bytes, the file has {size}")
    return tensors


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


def read_weights(folder: Path) -> WeightFiles:
    """The tensors of a component folder: one safetensors file, or shards listed by an index.

    Plain file names are preferred to variants (``...fp16.safetensors``).

    Raises:
        CheckpointError: no safetensors weights, a shard missing or damaged, or a tensor that the
            index promises and its shard lacks.
    """
    candidates = sorted(
        (variant is not None, variant or "", path.name.endswith(".json"), path)
        for path in folder.iterdir()
        if path.is_file() and (variant := _variant(path.name)) != "-"
    )
    if not candidates:
        raise _no_weights(folder)
    _, variant, is_index, path = candidates[0]
    tensors = _read_shards(path) if is_index else read_header(path)
    return WeightFiles(tensors, variant or None)


def _variant(name: str) -> str | None:
    """The variant of a weight file or index called `name`; "-" for every other file."""
    for stem in ("diffusion_pytorch_model", "model"):
        for suffix in (".safetensors", ".safetensors.index.json"):
            if name == stem + suffix:
                return None
            if name.startswith(stem + ".") and name.endswith(suffix):
                infix = name[len(stem) + 1 : -len(suffix)]
                if infix and "." not in infix and "-" not in infix:
                    return infix
        # model.safetensors.index.fp16.json is diffusers' other spelling
        head, tail = stem + ".safetensors.index.", ".json"
        if name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail):
            return name[len(head) : -len(tail)]
    return "-"


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(p.name for p in folder.glob("*.bin"))
    if pickles:
        return CheckpointError(
            f"{folder} holds PyTorch weights only ({pickles[0]}): expected safetensors; load the "
            "pipeline in diffusers and save it with save_pretrained(..., safe_serialization=True)"
        )
    return CheckpointError(
        f"{folder} holds no weights: expected a .safetensors file or index; "
        "download the folder again, large files included"
    )


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    content = read_json(index, "the index of a model's shards", CHECKPOINT, limit=LARGE)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(
            f"{index} has no table 'weight_map' of tensor names and files; download it again"
        )
    headers = {name: _shard(index, name) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in headers[shard]:
            raise CheckpointError(
                f"{index.parent / shard} lacks tensor {tensor!r}, which {index.name} places "
                "there; index and shards must come from one save: download the folder again"
            )
    return {tensor: headers[shard][tensor] for tensor, shard in weight_map.items()}


def _shard(index: Path, name: str) -> dict[str, TensorInfo]:
    path = index.parent / name
    if Path(name).name != name or not path.is_file():
        raise CheckpointError(
            f"shard {name!r} not found in {index.parent}: {index.name} names it; "
            "download the missing shard"
        )
    return read_header(path)
