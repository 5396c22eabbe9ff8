"""The quantized state: the one object from which both the simulation and the ONNX weights are made.

On disk it is a safetensors file with ``<layer>.<role>`` for each part of each layer and one
JSON metadata entry that holds specifications and provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import GIVEN, Positive, WrongType, decoded, parse_object, plain
from fp4dit_onnx.numbers.formats import FloatArray, format_by_name
from fp4dit_onnx.numbers.numerics import decode, dequantize, group_count, unpack
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, scale_format_by_name
from fp4dit_onnx.spec.recipe import check_product
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.system.outputs import written_whole

__all__ = [
    "WORK_MANIFEST",
    "LayerLayout",
    "Layout",
    "QuantizedLayer",
    "QuantizedState",
    "load_state",
    "part_shapes",
    "save_state",
]

STATE_VERSION = 1
WORK_MANIFEST = "calibration.json"
"""Tells the work folder of an export from any other."""
_METADATA = "fp4dit_onnx"


def part_shapes(n: int, k: int, spec: LayerSpec) -> dict[str, tuple[int, int]]:
    """Shapes of a layer's parts by role, of a weight [n, k].

    ``codes`` is packed, [N, B]; ``scale`` is [N, G].
    """
    return {
        "codes": (n, -(-k * spec.weight_format.storage_bits // 8)),
        "scale": (n, group_count(k, spec.group_size)),
    }


@dataclass(frozen=True)
class LayerLayout:
    """A quantized linear as the graph knows it: all but the values.

    Attributes:
        name: torch name of the module.
        spec: formats and group size.
        n: output channels.
        k: input channels.
    """

    name: str
    spec: LayerSpec
    n: int
    k: int


@dataclass(frozen=True)
class Layout:
    """What is quantized, as the graph knows it; see `QuantizedState`."""

    layers: Mapping[str, LayerLayout]
    attention: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized linear.

    Attributes:
        name: torch name of the module.
        spec: formats and group size.
        k: input channels.
        parts: by role: ``codes``, packed, uint8 [N, B], and ``scale``, float16 or float32 [N, G], the
            value of one grid integer.
    """

    name: str
    spec: LayerSpec
    k: int
    parts: Mapping[str, npt.NDArray[Any]]

    def __post_init__(self) -> None:
        """Check that the parts fit the shape, and what they are multiplied with."""
        n = self.codes.shape[0] if self.codes.ndim else 0
        found = {role: part.shape for role, part in self.parts.items()}
        if self.spec.group_size < 1 or found != part_shapes(n, self.k, self.spec):
            raise UsageError(
                f"layer {self.name}: codes {self.codes.shape} and scales {self.scale.shape} do not "
                f"fit K={self.k}, {self.spec}"
            )
        if self.codes.dtype != np.uint8 or self.scale.dtype not in (np.float16, np.float32):
            raise UsageError(
                f"layer {self.name}: codes {self.codes.dtype} and scales {self.scale.dtype}, "
                "expected uint8 codes and float16 or float32 scales"
            )
        check_product(self.name, self.spec, min(self.k, self.spec.group_size))

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """Packed codes, uint8 [N, B]."""
        return self.parts["codes"]

    @property
    def scale(self) -> npt.NDArray[np.floating]:
        """The value of one grid integer of each group, float16 or float32 [N, G]."""
        return self.parts["scale"]

    @property
    def n(self) -> int:
        """Output channels."""
        return int(self.codes.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def layout(self) -> LayerLayout:
        """The layer without its values."""
        return LayerLayout(self.name, self.spec, self.n, self.k)

    def integers(self) -> FloatArray:
        """Grid integers of the weight, float32 [N, K]."""
        fmt = self.spec.weight_format
        return decode(unpack(self.codes, self.k, fmt.storage_bits), fmt)

    def weight(self) -> FloatArray:
        """The dequantized weight, float32 [N, K]."""
        return dequantize(self.integers(), self.scale.astype(np.float32), self.spec.group_size)


@dataclass(frozen=True)
class QuantizedState:
    """What is quantized, keyed by torch name, and how it was made.

    Attributes:
        layers: the linears.
        provenance: how they were made.
        attention: name of an attention module -> format of its q, k and v, one scale a head and
            token.
    """

    layers: Mapping[str, QuantizedLayer]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """What is quantized, without the values."""
        layers = {name: layer.layout for name, layer in self.layers.items()}
        return Layout(layers, self.attention)


def save_state(state: QuantizedState, path: Path) -> None:
    """Write `state` as a safetensors file, whole or not at all."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    layers = {}
    for name, layer in state.layers.items():
        tensors |= {f"{name}.{role}": part for role, part in layer.parts.items()}
        layers[name] = {"k": layer.k, **layer.spec.to_json()}
    header = {
        "version": STATE_VERSION,
        "layers": layers,
        "attention": dict(state.attention),
        "provenance": dict(state.provenance),
    }
    metadata = {_METADATA: json.dumps(plain(header), sort_keys=True)}
    with written_whole(path) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata=metadata)


@dataclass(frozen=True)
class _StoredLayer:
    """What the header says of a layer."""

    k: Positive
    weight: str
    activation: str | None
    group_size: Positive
    scale: str = DEFAULT_SCALE


@dataclass(frozen=True)
class _Header:
    """The metadata of a state file."""

    layers: Mapping[str, _StoredLayer]
    provenance: Mapping[str, Any]
    attention: Mapping[str, str] = field(default_factory=dict)


def load_state(path: Path) -> QuantizedState:
    """Read what `save_state` wrote.

    Raises:
        UsageError: no such file, damaged, not a quantized state, of another version, or with an
            unknown format.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = _header(path, (file.metadata() or {}).get(_METADATA, "{}"))
            for name in header.attention.values():
                format_by_name(name)
            layers = {name: _read_layer(file, name, row) for name, row in header.layers.items()}
    except (OSError, safetensors.SafetensorError, WrongType) as error:
        raise UsageError(f"{path}: no readable quantized state ({error})") from error
    return QuantizedState(layers, header.provenance, header.attention)


def _header(path: Path, text: str) -> _Header:
    header = parse_object(text.encode(), f"{path}: its header", "a quantized state", GIVEN)
    version = header.get("version")
    if version != STATE_VERSION:
        raise UsageError(
            f"{path}: state version {version}, expected {STATE_VERSION}: "
            "write it again with this version of fp4dit-onnx"
        )
    return decoded(_Header, header)


def _read_layer(file: Any, name: str, row: _StoredLayer) -> QuantizedLayer:
    spec = LayerSpec.of(row.weight, row.activation, row.group_size, row.scale)
    scale_format_by_name(row.scale)
    parts = {role: file.get_tensor(f"{name}.{role}") for role in part_shapes(0, row.k, spec)}
    return QuantizedLayer(name, spec, row.k, parts)
