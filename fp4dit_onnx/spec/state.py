"""The quantized state: the one object from which both the simulation and the ONNX weights are made.

On disk it is a safetensors file with ``<layer>.<role>`` for each part of each layer and one
JSON metadata entry that holds specifications and provenance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, largest_multiplier
from fp4dit_onnx.spec.low_rank import LowRank, branch_name
from fp4dit_onnx.spec.products import check_product
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import AS_KEYS, tensor_name
from fp4dit_onnx.system.outputs import written_whole

__all__ = [
    "WORK_MANIFEST",
    "LayerLayout",
    "Layout",
    "QuantizedLayer",
    "QuantizedState",
    "StoredParts",
    "load_state",
    "part_shapes",
    "save_state",
]

STATE_VERSION = 1
WORK_MANIFEST = "calibration.json"
"""Tells the work folder of an export from any other."""
_METADATA = "fp4dit_onnx"


_TYPES: dict[str, tuple[type[np.generic], ...]] = {
    "codes": (np.uint8,),
    "scale": (np.float16, np.float32),
    "multipliers": (np.uint8,),
    "channel_scale": (np.float32,),
}
"""Of each part, by role."""
BLOCK_PARTS = 2
"""Of a layer's name, that are its block's."""


def part_shapes(n: int, k: int, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's parts by role, of a weight [n, k].

    ``codes`` is packed, [N, B]; scales are ``scale`` [N, G], or ``multipliers`` [N, ceil(G / 2)] and
    ``channel_scale`` [N] (see `ScaleFormat.split`).
    """
    codes = (n, spec.code_bytes(k))
    return {"codes": codes, **spec.scale_format.shapes(n, group_count(k, spec.group_size))}


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
        parts: by role: ``codes``, packed, uint8 [N, B], and the scales as their format has them:
            ``scale``, float16 or float32 [N, G], the value of one grid integer; or ``multipliers``
            and ``channel_scale``, whose products are the scales (see `ScaleFormat.split`).
    """

    name: str
    spec: LayerSpec
    k: int
    parts: Mapping[str, npt.NDArray[Any]]

    def __post_init__(self) -> None:
        """Check that the parts fit the shape, and what they are multiplied with."""
        parts = dict(self.parts)  # read once, where they are in a file
        codes = parts.get("codes")
        n = codes.shape[0] if codes is not None and codes.ndim else 0
        found = {role: part.shape for role, part in parts.items()}
        expected = part_shapes(n, self.k, self.spec) if self.spec.group_size > 0 else {}
        if found != expected:
            listed = ", ".join(f"{role} {shape}" for role, shape in found.items())
            raise UsageError(f"layer {self.name}: {listed} do not fit K={self.k}, {self.spec}")
        for role, part in parts.items():
            if part.dtype not in _TYPES[role]:
                wanted = " or ".join(t.__name__ for t in _TYPES[role])
                raise UsageError(f"layer {self.name}: {role} {part.dtype}, expected {wanted}")
        if self.spec.branch is not None:
            shapes = {role: part.shape for role, part in self.spec.branch.tensors.items()}
            if shapes != self.spec.branch.shapes(n, self.k):
                raise UsageError(
                    f"layer {self.name}: its branch {shapes} does not fit {(n, self.k)}"
                )
        self._check_multipliers(parts.get("multipliers"))
        check_product(self.name, self.spec, self.k)

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """Packed codes, uint8 [N, B]."""
        return self.parts["codes"]

    def _check_multipliers(self, packed: npt.NDArray[np.uint8] | None) -> None:
        if packed is None:
            return
        most = unpack(packed, 2 * packed.shape[1], 4).max(initial=0)
        limit = largest_multiplier(self.spec.weight_format)
        if most > limit:
            raise UsageError(
                f"layer {self.name}: multiplier {most}: expected at most {limit}, so that its "
                f"product with {self.spec.weight_format.name} stays within int8"
            )

    @property
    def scale(self) -> npt.NDArray[np.floating]:
        """The value of one grid integer of each group, float16 or float32 [N, G]."""
        return self.spec.scale_format.join(self.parts, group_count(self.k, self.spec.group_size))

    @cached_property
    def n(self) -> int:
        """Output channels."""
        return int(self.codes.shape[0])

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Of its transforms and branch, by name in graphs; not what an earlier layer shares with it."""
        own = [one for one in self.spec.input_ops if one.owner == self.name]
        found = {tensor_name(self.name, r): v for one in own for r, v in one.tensors.items()}
        if self.spec.branch is not None:
            beside = self.spec.branch.tensors
            found |= {branch_name(self.name, role): beside[role] for role in self.spec.branch.own}
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all parts and tensors."""
        return sum(part.nbytes for part in (*self.parts.values(), *self.tensors.values()))

    @property
    def layout(self) -> LayerLayout:
        """The layer without its values."""
        return LayerLayout(self.name, self.spec.without_tensors, self.n, self.k)

    def integers(self) -> FloatArray:
        """Grid integers of the weight, float32 [N, K]."""
        fmt = self.spec.weight_format
        return decode(unpack(self.codes, self.k, fmt.storage_bits, self.spec.wide), fmt)

    def weight(self) -> FloatArray:
        """The dequantized weight, float32 [N, K]."""
        return dequantize(self.integers(), self.scale.astype(np.float32), self.spec.group_size)


@dataclass(frozen=True, eq=False)
class StoredParts(Mapping[str, npt.NDArray[Any]]):
    """Parts of a layer that take no memory: each is read from its file whenever it is looked at.

    Attributes:
        file: of `save_state`; it is to stay.
        name: of the layer in it.
        roles: of the parts.
    """

    file: Path
    name: str
    roles: tuple[str, ...]

    def __getitem__(self, role: str) -> npt.NDArray[Any]:
        """The part; raises KeyError for another role, UsageError where the file is gone."""
        if role not in self.roles:
            raise KeyError(role)
        with _opened(self.file) as file:
            part: npt.NDArray[Any] = file.get_tensor(f"{self.name}.{role}")
        return part

    def __iter__(self) -> Iterator[str]:
        """The roles."""
        return iter(self.roles)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.roles)


@dataclass(frozen=True)
class QuantizedState:
    """What is quantized, keyed by torch name, and how it was made.

    Layers of a block whose branches have the same A share that of the first.

    Attributes:
        layers: the linears.
        provenance: how they were made.
        attention: name of an attention module -> format of its q, k and v, one scale per head and
            token.
    """

    layers: Mapping[str, QuantizedLayer]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find what is shared."""
        object.__setattr__(self, "layers", _sharing(self.layers))

    @property
    def layout(self) -> Layout:
        """What is quantized, without the values."""
        layers = {name: layer.layout for name, layer in self.layers.items()}
        return Layout(layers, self.attention)


def _sharing(layers: Mapping[str, QuantizedLayer]) -> dict[str, QuantizedLayer]:
    first: dict[tuple[object, ...], str] = {}
    found = {}
    for name, layer in layers.items():
        branch = layer.spec.branch
        if branch is not None:
            owner = first.setdefault((*name.split(".")[:BLOCK_PARTS], branch.down), name)
            shared = "" if owner == name else owner
            spec = replace(layer.spec, branch=replace(branch, shared=shared))
            layer = layer if branch.shared == shared else replace(layer, spec=spec)
        found[name] = layer
    return found


def save_state(state: QuantizedState, path: Path) -> None:
    """Write `state` as a safetensors file, whole or not at all."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    layers = {}
    for name, layer in state.layers.items():
        tensors |= {f"{name}.{role}": part for role, part in layer.parts.items()}
        for one in layer.spec.input_ops:
            tensors |= {tensor_name(name, role): v for role, v in one.tensors.items()}
        if layer.spec.branch is not None:
            tensors |= {branch_name(name, r): v for r, v in layer.spec.branch.tensors.items()}
        layers[name] = _StoredLayer.of(layer)
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
    activation_group_size: Positive | None = None
    input_ops: tuple[Transform, ...] = field(default=(), metadata=AS_KEYS)
    largest: float | None = None
    branch: Positive | None = None
    wide: Positive | None = None

    @classmethod
    def of(cls, layer: QuantizedLayer) -> _StoredLayer:
        spec = layer.spec
        return cls(
            layer.k,
            *spec.formats,
            spec.group_size,
            spec.weight.scale,
            spec.activation_group_size,
            spec.input_ops,
            spec.largest,
            spec.branch.rank if spec.branch else None,
            spec.wide,
        )


@dataclass(frozen=True)
class _Header:
    """The metadata of a state file."""

    layers: Mapping[str, _StoredLayer]
    provenance: Mapping[str, Any]
    attention: Mapping[str, str] = field(default_factory=dict)


def load_state(path: Path, *, stored: bool = False) -> QuantizedState:
    """Read what `save_state` wrote.

    Args:
        path: of the file.
        stored: whether the layers' parts stay there, see `StoredParts`.

    Raises:
        UsageError: no such file, damaged, not a quantized state, of another version, or with an
            unknown format.
    """
    with _opened(path) as file:
        header = _header(path, (file.metadata() or {}).get(_METADATA, "{}"))
        for name in header.attention.values():
            format_by_name(name)
        rows, place = header.layers.items(), path if stored else None
        layers = {name: _read_layer(file, name, row, place) for name, row in rows}
    return QuantizedState(layers, header.provenance, header.attention)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A state file; refused in one line where it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError, WrongType) as error:
        raise UsageError(f"{path}: no readable quantized state ({error})") from error


def _header(path: Path, text: str) -> _Header:
    header = parse_object(text.encode(), f"{path}: its header", "a quantized state", GIVEN)
    version = header.get("version")
    if version != STATE_VERSION:
        raise UsageError(
            f"{path}: state version {version}, expected {STATE_VERSION}: "
            "write it again with this version of fp4dit-onnx"
        )
    found = decoded(_Header, header)
    for name, layer in found.layers.items():
        given = {key for key, value in header["layers"][name].items() if value is not None}
        if unknown := given - plain(layer).keys():
            raise WrongType(f"layers.{name} has {min(unknown)!r}, which this version lacks")
    return found


def _read_layer(file: Any, name: str, row: _StoredLayer, place: Path | None) -> QuantizedLayer:
    """A layer, whose parts stay in the file at `place` if that is given."""
    given = {key: value for key, value in vars(row).items() if key not in ("k", "branch")}
    branch = None
    if row.branch is not None:
        absent = LowRank(row.branch)
        branch = absent.with_tensors(lambda role: file.get_tensor(branch_name(name, role)))
    spec = LayerSpec.of(**given, branch=branch)
    spec = spec.with_tensors(lambda one, role: file.get_tensor(tensor_name(name, role)))
    roles = tuple(part_shapes(0, row.k, spec))
    if place is not None:
        return QuantizedLayer(name, spec, row.k, StoredParts(place, name, roles))
    return QuantizedLayer(name, spec, row.k, {r: file.get_tensor(f"{name}.{r}") for r in roles})
