"""How weights and activations of a few characteristic layers lie on the grids of their formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.calls import take_apart
from fp4dit_onnx.bundle.external_data import load_tensor
from fp4dit_onnx.bundle.manifest import Layer
from fp4dit_onnx.bundle.names import CODES, WEIGHT, part_of
from fp4dit_onnx.bundle.probe import load_graph, node_transform
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.compare import ratio_db
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.numbers.numerics import (
    dequantize,
    expand_groups,
    group_count,
    quantize,
    quantize_static,
)
from fp4dit_onnx.numbers.scale_formats import scale_format_by_name
from fp4dit_onnx.report.data import Histogram
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import tensor_name

__all__ = ["Chosen", "chosen_layers", "histograms"]

Array = npt.NDArray[Any]
BINS = {"weight": 120, "input": 60}
"""By part; rows of inputs are few on a small model."""
BEYOND = 1.1
"""How far the bins reach, in largest values of the format: weights may lie beyond their range."""
STEPS = 3
"""Of the sampler, spread from the first to the last, at which activations are looked at."""
MOST_BYTES = 2**31 - 2**24
"""Of a transformer whose inner tensors can be looked at: it becomes one protobuf in memory."""


@dataclass(frozen=True)
class Chosen:
    """A characteristic layer.

    Attributes:
        row: its row of the manifest.
        why: the rule that chose it.
    """

    row: Layer
    why: str

    @property
    def name(self) -> str:
        """Torch name."""
        return self.row.name


def _first_of_feed_forward(rows: Sequence[Layer]) -> Layer | None:
    """Of the middle block; it is the layer that FP4DiT gives another format."""
    named = [r for r in rows if re.search(r"\bff\w*\.(net\.0\.proj|linear_1|linear_in)$", r.name)]
    return named[len(named) // 2] if named else None


def chosen_layers(rows: Sequence[Layer]) -> list[Chosen]:
    """The layers with the least and the largest error, and the first linear of a feed-forward.

    Errors are those of outputs where they were measured, else of weights.

    Args:
        rows: of the manifest.
    """
    key = next(
        (
            k
            for k in ("output_sqnr_db", "weight_sqnr_db")
            if any(getattr(r, k) is not None for r in rows)
        ),
        None,
    )
    candidates: list[tuple[Layer | None, str]] = []
    if key is not None:
        measured = sorted(
            (r for r in rows if getattr(r, key) is not None), key=lambda r: float(getattr(r, key))
        )
        what = key.partition("_")[0]
        candidates += [
            (measured[0], f"lowest {what} SQNR"),
            (measured[-1], f"highest {what} SQNR"),
        ]
    candidates.append((_first_of_feed_forward(rows), "first feed-forward linear, middle block"))
    found: dict[str, Chosen] = {}
    for row, why in candidates:
        if row is not None:
            found.setdefault(row.name, Chosen(row, why))
    return list(found.values())


def histograms(
    bundle: Bundle,
    tensors: Mapping[str, TensorInfo],
    prompts: Sequence[str],
    seeds: Sequence[int],
    pipeline: Pipeline,
) -> tuple[Histogram, ...]:
    """Weights of the chosen layers from the float checkpoint, and their inputs during generation.

    Args:
        bundle: a bundle that can generate images.
        tensors: of the float transformer, by torch name.
        prompts: one image of each is generated to see activations.
        seeds: one per prompt.
        pipeline: of the bundle; its transformer is replaced.
    """
    graph = load_graph(bundle.transformer)
    take_apart(graph.graph)
    folder = bundle.transformer.parent
    layers = [_whole(graph, layer, folder) for layer in chosen_layers(bundle.manifest.layers)]
    found = []
    for layer in layers:
        if (info := tensors.get(layer.name + WEIGHT)) is not None:
            scale = _scale(graph, layer, folder)
            found.append(_of_weight(layer, read_float32(info), scale))
    found += _of_inputs(bundle, graph, layers, prompts, seeds, pipeline)
    order = {layer.name: number for number, layer in enumerate(layers)}
    return tuple(sorted(found, key=lambda h: order[h.layer]))


def _whole(model: onnx.ModelProto, layer: Chosen, folder: Path) -> Chosen:
    """The layer with the tensors of its transforms, which the manifest has not."""
    input_ops = tuple(
        one.with_tensors(
            {r: _initializer(model, tensor_name(one.owner, r), folder) for r in one.roles}
        )
        for one in layer.row.input_ops
    )
    return replace(layer, row=replace(layer.row, input_ops=input_ops))


def _scale(model: onnx.ModelProto, layer: Chosen, folder: Path) -> Array:
    """The scales of a layer's groups, [N, G]."""
    (n, k), scale = layer.row.shape, scale_format_by_name(layer.row.scale_format)
    groups = group_count(k, layer.row.group_size)
    roles = scale.shapes(n, groups)
    parts = {role: _initializer(model, part_of(layer.name, role), folder) for role in roles}
    return scale.join(parts, groups)


def _initializer(model: onnx.ModelProto, name: str, folder: Path) -> Array:
    tensor = next((t for t in model.graph.initializer if t.name == name), None)
    if tensor is None:
        raise UsageError(f"{folder}: the graph has no {name}: expected it of a quantized layer")
    load_tensor(tensor, folder)
    return numpy_helper.to_array(tensor)


def _of_weight(layer: Chosen, weight: Array, scale: Array) -> Histogram:
    """Weight [N, K], transformed as it is quantized, under its group scales [N, G]."""
    for one in layer.row.input_ops:
        weight = one.of_weight(weight.astype(np.float32))
    fmt, group = format_by_name(layer.row.weight_format), layer.row.group_size
    step = expand_groups(scale.astype(np.float32), weight.shape[1], group)
    live = step > 0
    integers = np.where(live, weight, 0) / np.where(live, step, 1)
    # The error is that of the codes which the method chose; the manifest has it.
    error = layer.row.weight_sqnr_db
    return _histogram(layer, "weight", fmt, None, integers[live], error)


def _histogram(
    layer: Chosen,
    part: str,
    fmt: FloatFormat,
    step: int | None,
    integers: Array,
    sqnr: float | None,
) -> Histogram:
    """Counts of `integers`, in units of the grid before rounding."""
    high = BEYOND * fmt.max
    values = np.clip(integers / fmt.unit, -high, high)
    counts, _ = np.histogram(values, BINS[part], (-high, high))
    finite = None if sqnr is None or not np.isfinite(sqnr) else float(sqnr)
    return Histogram(
        layer.name, layer.why, part, fmt.name, step, -high, high, tuple(map(int, counts)), finite
    )


@dataclass
class _Inputs:
    """Collects what is quantized for a layer, step by step.

    Attributes:
        layer: of which.
        later: what is done to the tensors that are noted before they are quantized.
        integers: of each step, in units of the grid before rounding.
        sqnr: of each step.
    """

    layer: Chosen
    later: Sequence[Transform]
    integers: dict[int, Array] = field(default_factory=dict)
    sqnr: dict[int, float] = field(default_factory=dict)

    @property
    def fmt(self) -> FloatFormat:
        """The format of the layer's activations."""
        return format_by_name(str(self.layer.row.activation_format))

    def add(self, step: int, x: Array) -> None:
        """Note the rows [..., K] of one step."""
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
        for one in self.later:
            rows = one(rows)
        size = self.layer.row.activation_group_size or rows.shape[1]
        if self.layer.row.largest is None:
            q, scale = quantize(rows, self.fmt, size)
        else:
            q, scale = quantize_static(rows, self.fmt, self.layer.row.largest)
        each = expand_groups(scale, rows.shape[1], size)
        live = each > 0
        self.integers[step] = rows[live] / each[live]
        noise = (rows - dequantize(q, scale, size)).astype(np.float64)
        signal = rows.astype(np.float64)
        self.sqnr[step] = ratio_db(float((signal**2).sum()), float((noise**2).sum()))


class _Watching:
    """A session that hands inner tensors of some calls to `note`, else like the one it wraps."""

    def __init__(self, session: Any, inner: Sequence[str], note: Callable[..., None]) -> None:
        self._session, self._inner, self._note = session, list(inner), note
        self._outputs = [o.name for o in session.get_outputs() if o.name not in self._inner]
        self.calls = 0

    def get_inputs(self) -> Sequence[Any]:
        """What the model takes."""
        inputs: Sequence[Any] = self._session.get_inputs()
        return inputs

    def get_outputs(self) -> Sequence[Any]:
        """What the model gives, the inner tensors left out."""
        return [o for o in self._session.get_outputs() if o.name in self._outputs]

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Run the model once."""
        names = list(outputs or self._outputs)
        found: list[Any] = self._session.run([*names, *self._inner], dict(feed))
        self._note(self.calls, dict(zip(self._inner, found[len(names) :], strict=True)))
        self.calls += 1
        return found[: len(names)]


def _of_inputs(
    bundle: Bundle,
    graph: onnx.ModelProto,
    layers: Sequence[Chosen],
    prompts: Sequence[str],
    seeds: Sequence[int],
    pipeline: Pipeline,
) -> list[Histogram]:
    """Inputs of the layers whose activations are quantized, while one image per prompt is generated."""
    found = {layer.name: quantizer_input(graph.graph, layer.name) for layer in layers}
    read = {name: given for name, given in found.items() if given is not None}
    watched = [layer for layer in layers if layer.name in read]
    if not watched or bundle.transformer.with_suffix(".onnx.data").stat().st_size > MOST_BYTES:
        return []
    collected = {}
    for layer in watched:
        first = len(layer.row.input_ops) - read[layer.name][1]
        collected[layer.name] = _Inputs(layer, layer.row.input_ops[first:])
    last = pipeline.defaults.steps - 1
    steps = sorted({round(last * i / (STEPS - 1)) for i in range(STEPS)})

    def note(call: int, tensors: Mapping[str, Array]) -> None:
        if call in steps:
            for name, inputs in collected.items():
                inputs.add(call, tensors[read[name][0]])

    names = sorted({name for name, _ in read.values()})
    session = _exposing(bundle.transformer, names)
    pipeline.transformer = _Watching(session, names, note)
    pipeline.generate(prompts, seeds=list(seeds), batch_size=len(prompts))
    return [
        _histogram(layer, "input", inputs.fmt, step, values, inputs.sqnr[step])
        for layer in watched
        for inputs in (collected[layer.name],)
        for step, values in inputs.integers.items()
    ]


def quantizer_input(graph: onnx.GraphProto, layer: str) -> tuple[str, int] | None:
    """The float tensor that a layer reads; None where its activations are not quantized.

    It is as it was before the layer's `input_ops`, as many as nodes do: the last ones, whose number is
    given too. One that is in an adaLN or a norm has no node.

    From the packed codes forward to the product, then back along the other operand.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in graph.node for name in node.output}
    reached = layer + CODES
    while node := next(iter(readers.get(reached, ())), None):
        operand = next((name for name in node.input if name in makers and name != reached), None)
        if operand is not None:
            maker = makers[operand]
            if ops.has_role(maker, "dequantize"):
                maker = makers.get(maker.input[0], maker)
            if not ops.has_role(maker, "quantize"):
                return None
            count = 0
            while (before := makers.get(maker.input[0])) and node_transform(before):
                maker, count = before, count + 1
            return str(maker.input[0]), count
        if ops.has_role(node, "linear"):
            return None
        reached = node.output[0]
    return None


def _exposing(path: Path, names: Sequence[str]) -> Any:
    """A session of the model at `path` whose outputs are also the float tensors `names`."""
    from fp4dit_onnx.benchmark.sessions import make_session
    from fp4dit_onnx.bundle.probe import load_model
    from fp4dit_onnx.runtime.library import supported_isas
    from fp4dit_onnx.system.resources import usable_cores

    model = load_model(path)
    take_apart(model.graph)
    declared = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in declared
    )
    return make_session(model.SerializeToString(), usable_cores(), isa=supported_isas()[0])
