"""Writes a quantized network from stored tensors, one at a time: the network is never in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx

from fp4dit_onnx.bundle.model_file import ModelFile
from fp4dit_onnx.bundle.names import codes_of, part_of
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import read_chunks, read_float32
from fp4dit_onnx.numbers.outliers import kurtosis
from fp4dit_onnx.spec.low_rank import BRANCH
from fp4dit_onnx.spec.state import LayerLayout, QuantizedLayer
from fp4dit_onnx.spec.transforms import INPUT

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages import Stage
    from fp4dit_onnx.system.progress import Advance

__all__ = [
    "GraphValues",
    "LayerNote",
    "Quantizer",
    "WeightNote",
    "from_weights",
    "nothing_quantized",
    "write_model",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WeightNote:
    """What is known of a layer's weight.

    Attributes:
        weight_sqnr_db: signal over quantization noise.
        weight_kurtosis: of the float weight, see `numbers.outliers.kurtosis`.
    """

    weight_sqnr_db: float
    weight_kurtosis: float


@dataclass(frozen=True)
class LayerNote(WeightNote):
    """What is known of a layer once it is written.

    Attributes:
        bytes: of codes and scales.
    """

    bytes: int


Quantizer = Callable[[str], tuple[QuantizedLayer, WeightNote]]
"""From a layer's name to the layer and what is known of its weight."""


def nothing_quantized(name: str) -> tuple[QuantizedLayer, WeightNote]:
    """The quantizer of a network without quantized layers; never called."""
    raise AssertionError(f"layer {name} is not to be quantized")


@dataclass
class GraphValues:
    """The values of a quantized graph's tensors by name.

    Attributes:
        tensors: the checkpoint's, by torch name.
        layers: what is quantized.
        quantizer: called once per layer.
    """

    tensors: Mapping[str, TensorInfo]
    layers: Mapping[str, LayerLayout]
    quantizer: Quantizer = nothing_quantized
    _pending: dict[str, Array] = field(default_factory=dict)
    _notes: dict[str, LayerNote] = field(default_factory=dict)

    def __call__(self, name: str) -> Array | Iterator[Array]:
        """Codes, scales, factors of inputs, branches, or a stored tensor in float32, piece by piece."""
        if name in self._pending:
            return self._pending.pop(name)
        layer = name.rpartition(".weight.")[0] or name.partition(INPUT)[0].partition(BRANCH)[0]
        if layer not in self.layers:
            return read_chunks(self.tensors[name])
        made, note = self.quantizer(layer)
        parts = {part_of(layer, role): part for role, part in made.parts.items()}
        written = parts | made.tensors
        size = sum(value.nbytes for value in written.values())
        self._notes[codes_of(layer)] = LayerNote(**vars(note), bytes=size)
        self._pending |= written
        return self._pending.pop(name)

    def note(self, name: str) -> dict[str, Any] | None:
        """What is kept of a tensor just written."""
        found = self._notes.get(name)
        return vars(found) if found else None


def from_weights(
    tensors: Mapping[str, TensorInfo], layers: Mapping[str, LayerLayout], stages: Sequence[Stage]
) -> Quantizer:
    """Reads a layer's weight and quantizes it by stages that look at nothing else."""
    import torch

    from fp4dit_onnx.calibration.applying import quantize_measured

    def quantize(name: str) -> tuple[QuantizedLayer, WeightNote]:
        weight = read_float32(tensors[f"{name}.weight"])
        layer, sqnr = quantize_measured(name, torch.from_numpy(weight), layers[name].spec, stages)
        return layer, WeightNote(sqnr, kurtosis(weight))

    return quantize


def write_model(
    model: onnx.ModelProto,
    values: GraphValues,
    path: Path,
    *,
    journal: Path | None = None,
    annotate: Callable[[Mapping[str, LayerNote]], None] = lambda notes: None,
    advance: Advance | None = None,
) -> dict[str, LayerNote]:
    """Write a quantized graph and its tensors.

    Args:
        model: its large tensors are placeholders.
        values: give them.
        path: of the model file; the data file lies beside it.
        journal: see `ModelFile`.
        annotate: may change the model once everything is known of its layers.
        advance: called for each tensor.

    Returns:
        What is known of each layer, by name.
    """
    notes: dict[str, LayerNote] = {}

    def done(count: int) -> None:
        if advance is not None:
            advance(1)

    def finish(file: ModelFile) -> None:
        found = file.notes
        for layer in values.layers:
            note = found.get(codes_of(layer)) or values.note(codes_of(layer))
            if note is not None:
                notes[layer] = LayerNote(**note)
        annotate(notes)

    with ModelFile(path, journal) as file:
        file.write(model, values, values.note, done, lambda: finish(file))
    return notes
