"""Random weights of realistic spread, drawn tensor by tensor into safetensors files.

A model is built on torch's meta device, to learn the names and shapes of its tensors; what is drawn
goes to the files in pieces. So the memory needed does not depend on the model's size.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "Drawer", "Tensor", "tensors_of", "write_shards"]

Array = npt.NDArray[Any]
DTYPES: Mapping[str, tuple[str, int]] = {
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
}
"""Safetensors' name and the bytes of each type that can be written."""
ROW_SPREAD = 0.3
"""Standard deviation of the logarithm of a row's magnitude."""
BIAS, NORM = 0.02, 0.1
"""Standard deviations of biases, and of norms about 1."""
OUTLIER, ROWS_AN_OUTLIER, FEWEST_ROWS = 4.0, 128, 64
"""Factor of an outlier channel; channels for each of them; no layer of fewer channels has any."""
POOL = 1_048_573
"""Random numbers that a large tensor repeats; a prime, so that equal rows lie far apart."""
PIECE = 1 << 22
"""Numbers that are drawn and written at a time."""
COPIES = re.compile(r"^transformer_blocks\.\d+\.norm1\.emb\.")
"""The embedders that each block of diffusers' DiT has: in published files copies of one."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name: as it is stored.
        shape: of the tensor; may be ().
        kind: matrix, embedding, norm (about 1), offset (a norm about 0), bias, table, or grid.
        step: of a grid of positions, the distance of two neighbours.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    step: float = 0.0

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)


def tensors_of(model: Any, prefix: str = "") -> list[Tensor]:
    """What a torch module stores, tied tensors once, each name with `prefix` unless it has it."""
    found, seen = [], set()
    for path, module in model.named_modules():
        lasting = {
            name: value
            for name, value in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        for name, value in (*module.named_parameters(recurse=False), *lasting.items()):
            if id(value) in seen:
                continue
            seen.add(id(value))
            full = f"{path}.{name}" if path else name
            full = full if full.startswith(prefix) else prefix + full
            is_grid = name in lasting and "Norm" not in type(module).__name__
            kind, step = ("grid", _step(module)) if is_grid else (_kind(module, name), 0.0)
            found.append(Tensor(full, tuple(value.shape), kind, step))
    return found


def _step(patch_embed: Any) -> float:
    """Of the positions that diffusers' PatchEmbed stores."""
    largest = patch_embed.pos_embed_max_size
    return float(patch_embed.base_size / largest / patch_embed.interpolation_scale)


def _kind(module: Any, name: str) -> str:
    owner = type(module).__name__
    if name in ("bias", "running_mean", "num_batches_tracked"):
        return "bias"
    if name == "running_var":
        return "norm"
    if name != "weight":
        return "table"
    if "Norm" in owner:
        return "offset" if owner.startswith("Gemma") else "norm"
    return "embedding" if "Embedding" in owner else "matrix"


class Drawer:
    """Draws tensors: the same for the same seed, component and name, whatever else is drawn.

    Args:
        seed: of all random numbers.
        component: whose tensors are drawn.
    """

    def __init__(self, seed: int, component: str) -> None:
        self._seed, self._component = seed, component

    @cached_property
    def _pool(self) -> Array:
        return np.random.default_rng([self._seed, POOL]).standard_normal(POOL, np.float32)

    def pieces(self, tensor: Tensor) -> Iterator[Array]:
        """The tensor in float32, in its order, a piece at a time."""
        if tensor.kind == "grid":
            yield from _grid(tensor)
            return
        name = COPIES.sub("embedder.", tensor.name)
        key = zlib.crc32(f"{self._component}/{name}".encode())
        random = np.random.default_rng([self._seed, key])
        rows, columns = _rows_and_columns(tensor)
        factors = self._factors(random, tensor, rows)
        start = int(random.integers(POOL))
        height = max(1, PIECE // columns)
        for top in range(0, rows, height):
            part = factors[top : top + height]
            values = self._normal(random, tensor, start + top * columns, part.size * columns)
            values = values.reshape(part.size, columns)
            values *= part[:, None]
            if tensor.kind == "norm":
                values += 1
            yield values

    def _normal(self, random: np.random.Generator, tensor: Tensor, start: int, size: int) -> Array:
        """Normal numbers; of a large tensor, cut from the pool, which is ten times as fast."""
        if tensor.size <= POOL:
            return random.standard_normal(size, np.float32)
        values, done = np.empty(size, np.float32), 0
        while done < size:
            begin = (start + done) % POOL
            count = min(POOL - begin, size - done)
            values[done : done + count] = self._pool[begin : begin + count]
            done += count
        return values

    def _factors(self, random: np.random.Generator, tensor: Tensor, rows: int) -> Array:
        """The magnitude of each row [rows]."""
        if tensor.kind != "matrix":
            # of one row each: what has no row of its own is as large everywhere
            scale = {"embedding": 1.0, "bias": BIAS, "norm": NORM, "offset": NORM}
            size = scale.get(tensor.kind) or 1 / np.sqrt((tensor.shape or (1,))[-1])
            return np.full(rows, size, np.float32)
        factors = np.exp(ROW_SPREAD * random.standard_normal(rows))
        if rows >= FEWEST_ROWS:
            outliers = random.choice(rows, max(1, rows // ROWS_AN_OUTLIER), replace=False)
            factors[outliers] *= OUTLIER
        made: Array = (factors / np.sqrt(prod(tensor.shape[1:]))).astype(np.float32)
        return made


def _rows_and_columns(tensor: Tensor) -> tuple[int, int]:
    """A tensor as a matrix: all but the first axis are columns, of a vector none."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return rows, tensor.size // rows


def _grid(tensor: Tensor) -> Iterator[Array]:
    """Sines and cosines of the positions of a square [1, side * side, width], line by line."""
    _, places, width = tensor.shape
    side, quarter = round(np.sqrt(places)), width // 4
    rates = 10000.0 ** (-np.arange(quarter) / quarter)
    angles = np.arange(side, dtype=np.float32)[:, None] * np.float32(tensor.step) * rates
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    for line in axis:
        yield np.concatenate([axis, np.broadcast_to(line, axis.shape)], axis=1)


def bytes_of_shards(tensors: Sequence[Tensor], dtype: str, count: int) -> int:
    """The least limit with which `write_shards` makes at most `count` files."""
    low, high = max(t.size for t in tensors), sum(t.size for t in tensors)
    while low < high:
        middle = (low + high) // 2
        if len(_shards(tensors, middle)) > count:
            low = middle + 1
        else:
            high = middle
    return low * DTYPES[dtype][1]


def _shards(tensors: Sequence[Tensor], most: int) -> list[list[Tensor]]:
    """`tensors` in their order, in parts of at most `most` elements, if no single one is larger."""
    shards: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.size > most:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.size
    return shards


def write_shards(
    folder: Path, stem: str, tensors: Sequence[Tensor], drawer: Drawer, dtype: str, most: int
) -> list[Path]:
    """Write `tensors` as `stem`.safetensors, or as shards of at most `most` bytes and an index."""
    width = DTYPES[dtype][1]
    shards = _shards(tensors, most // width)
    if len(shards) == 1:
        path = folder / f"{stem}.safetensors"
        _write_file(path, shards[0], drawer, dtype)
        return [path]
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, drawer, dtype)
    places = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(tensor.size for tensor in tensors)
    metadata = {"total_parameters": total, "total_size": total * width}
    index = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def _write_file(path: Path, tensors: Sequence[Tensor], drawer: Drawer, dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stored, width = DTYPES[dtype]
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size * width
        header[tensor.name] = {
            "dtype": stored,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in drawer.pieces(tensor):
                _write_numbers(stream, piece, dtype)


def _write_numbers(stream: BinaryIO, values: Array, dtype: str) -> None:
    import torch

    converted = torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))
    stream.write(converted.view(torch.uint8).numpy().data)
