"""Standard types of opset 23: FLOAT4E2M1 weights and FLOAT8E4M3FN activations, quantize and dequantize.

For compilers that take quantized graphs as pairs of QuantizeLinear and DequantizeLinear, TensorRT
among them. The layout is that of NVIDIA's Model Optimizer: a weight [N, K] is an initializer of a
small type behind a DequantizeLinear over blocks of its input channels, a Transpose and a MatMul;
scales that two levels hold are FLOAT8E4M3FN behind a DequantizeLinear of their own, as NVFP4 has
them; activations pass a pair with one constant scale for the tensor. The weights are exactly the
bundle's. Attention, whose per-token scales no standard node has, computes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.names import CODES
from fp4dit_onnx.bundle.probe import attributes, load_graph, node_transform
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatArray, format_by_name
from fp4dit_onnx.numbers.scale_formats import NVFP4_BLOCK, two_levels
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.targets import deferred
from fp4dit_onnx.targets.deferred import Deferred, as_bytes
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.targets.ranges import PICTURES, activation_ranges
from fp4dit_onnx.targets.target import Target
from fp4dit_onnx.targets.weights import block_scales, stored_weight, weight_type

__all__ = ["STANDARD", "standard"]

OPSET = 23
IR_VERSION = 11
"""The first with opset 23."""
LARGEST_E4M3 = 448.0
HEADROOM = 2.0
"""Over the largest magnitude that was seen: other prompts go beyond it, and what exceeds the range is
cut off. A floating-point type has the same relative precision with it."""

Array = npt.NDArray[Any]
Nodes = list[onnx.NodeProto]
_node = onnx.helper.make_node


def standard(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """`model` in standard types.

    Args:
        model: initializers with values; it is not changed.
        ranges: largest magnitude of the linears' inputs, by the name of the float value; an input
            that it lacks stays in float.

    Raises:
        UsageError: an operator without a standard form, or weights that no standard type holds.
    """
    result, tensors = _standard(model, ranges, "")
    deferred.fill(result, tensors)
    return result


def _standard(
    model: onnx.ModelProto, ranges: Mapping[str, float], folder: str
) -> tuple[onnx.ModelProto, Mapping[str, Deferred]]:
    """The model with placeholders, and what belongs in their places."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rewriter = _Standard(result.graph, ranges, folder)
    rewriter.run()
    result = inline(result)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    result.ir_version = IR_VERSION
    return result, rewriter.tensors


class _Standard:
    """Rewrites a graph.

    Args:
        graph: changed.
        ranges: see `standard`.
        folder: where the data of its initializers lies.
    """

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, float], folder: str) -> None:
        self._graph, self._ranges, self._folder = graph, ranges, folder
        self._given = {tensor.name: tensor for tensor in graph.initializer}
        self._names: dict[str, str] = {}  # what is read in place of a value
        self._packed: dict[str, onnx.NodeProto] = {}  # result -> FpUnpack or FpScale
        self._new: dict[str, onnx.TensorProto] = {}
        self._made: set[str] = set()
        self.tensors: dict[str, Deferred] = {}

    def run(self) -> None:
        """Replace every node of our domain."""
        nodes: Nodes = []
        for node in self._graph.node:
            node.input[:] = [self._names.get(name, name) for name in node.input]
            nodes.extend(self._replaced(node) if node.domain == ops.DOMAIN else [node])
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [t for t in (*self._graph.initializer, *self._new.values()) if t.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _replaced(self, node: onnx.NodeProto) -> Nodes:
        if node.op_type in ops.OPERATORS:
            form = {
                "quantize": self._activation,
                "dequantize": self._dequantized,
                "unpack": self._unpack,
                "scale": self._unpack,
                "linear": self._linear,
                "attention": self._attention,
            }.get(ops.OPERATORS[node.op_type].role)
            return form(node) if form else [node]  # its body
        raise UsageError(
            f"node {node.name} is of type {node.op_type}, which has no standard form: expected a "
            "bundle as this version exports it; export it again"
        )

    def _unpack(self, node: onnx.NodeProto) -> Nodes:
        """Nothing yet: what dequantizes the result makes the weight."""
        self._packed[node.output[0]] = node
        return []

    def _activation(self, node: onnx.NodeProto) -> Nodes:
        """Quantize and dequantize x with a constant scale; what reads q reads that."""
        x = node.input[0]
        if one := node_transform(node):  # of its result no range is known
            name = f"{node.name}/{one.result}"
            self._names[node.output[0]] = name
            return [_node(one.operator, [x], [name], name, domain=ops.DOMAIN, **one.attributes)]
        largest = self._ranges.get(x, 0.0)
        self._names[node.output[0]] = f"{x}/dequantized" if largest > 0 else x
        if largest <= 0 or x in self._made:
            return []
        self._made.add(x)
        scale = self._constant(
            f"{x}/scale", np.array(HEADROOM * largest / LARGEST_E4M3, np.float32)
        )
        zero = self._constant(f"{x}/zero", np.zeros((), ml_dtypes.float8_e4m3fn))
        stem, q, y = node.name.removesuffix("/Quantize"), f"{x}/e4m3", f"{x}/dequantized"
        return [
            _node("QuantizeLinear", [x, scale, zero], [q], f"{stem}/QuantizeLinear"),
            _node("DequantizeLinear", [q, scale, zero], [y], f"{stem}/DequantizeLinear"),
        ]

    def _dequantized(self, node: onnx.NodeProto) -> Nodes:
        """A weight of the form qdq; of activations nothing is left to do."""
        unpack = self._packed.get(node.input[0])
        if unpack is None:
            self._names[node.output[0]] = node.input[0]
            return []
        given = attributes(unpack) | attributes(node)
        scale = self._scales(self._packed.get(node.input[1], node))
        return self._weight(unpack.input[0], scale, given, node.output[0])

    def _linear(self, node: onnx.NodeProto) -> Nodes:
        given = attributes(node)
        codes = node.input[ops.OPERATORS[node.op_type].parts["codes"]]
        value = f"{codes.removesuffix(CODES)}/weight"
        columns, product = f"{node.name}/columns", f"{node.name}/product"
        made = [
            *self._weight(
                codes, self._scales(node), given | {"format": given["weight_format"]}, value
            ),
            _node("Transpose", [value], [columns], columns, perm=[1, 0]),
            _node("MatMul", [node.input[0], columns], [product], product),
            _node("Add", [product, node.input[-1]], list(node.output), node.name),
        ]
        made[-1].metadata_props.extend(node.metadata_props)
        return made

    def _scales(self, node: onnx.NodeProto) -> Callable[[], FloatArray]:
        """Reads the scales of a weight's groups, float32 [N, G], that `node` takes."""
        parts = {r: node.input[i] for r, i in ops.OPERATORS[node.op_type].parts.items()}
        if "scale" in parts:
            return lambda: self._read(parts["scale"]).astype(np.float32)
        record, given = ops.OPERATORS[ops.SCALE], attributes(node)
        roles = [parts[role] for role in record.parts]
        return lambda: record.reference(given, [self._read(name) for name in roles])[0]

    def _weight(
        self, codes: str, scale: Callable[[], FloatArray], given: Mapping[str, Any], value: str
    ) -> Nodes:
        """Dequantize the weight of `codes`; its values are called `value`."""
        if value in self._made:
            return []
        self._made.add(value)
        fmt, k = format_by_name(given["format"]), given["K"]
        kind, name, group = (
            weight_type(fmt),
            f"{codes.removesuffix(CODES)}.weight",
            given["group_size"],
        )

        def scales() -> tuple[FloatArray, int]:
            steps = scale() * kind.step(fmt)
            return block_scales(steps, k, group)

        def weight() -> npt.NDArray[np.uint8]:
            return stored_weight(self._read(codes), scale(), k, fmt, group, given.get("wide"))

        steps, block = scales()
        self._later(name, Deferred(kind.data_type, kind.bits, (steps.shape[0], k), weight))
        levels = two_levels(steps) if block == NVFP4_BLOCK else None
        if levels is None:
            made: Nodes = []
            blocks = f"{name}_scale"
            given_type = (onnx.TensorProto.FLOAT, 32, steps.shape)
            self._later(blocks, Deferred(*given_type, lambda: as_bytes(scales()[0])))
        else:
            made, blocks = self._levels(name, steps.shape, levels[1], lambda: scales()[0])
        axes: dict[str, Any] = {"axis": 1, "block_size": block} if steps.ndim == 2 else {"axis": 0}
        return [*made, _node("DequantizeLinear", [name, blocks], [value], value, **axes)]

    def _levels(
        self,
        name: str,
        shape: tuple[int, ...],
        factor: np.float32,
        scales: Callable[[], FloatArray],
    ) -> tuple[Nodes, str]:
        """Scales of two levels: e4m3 numbers times a factor."""
        first, second, value = f"{name}_scale", f"{name}_scale_2", f"{name}_scale/value"

        def codes() -> npt.NDArray[np.uint8]:
            levels = two_levels(scales())
            assert levels is not None
            return as_bytes(levels[0])

        self._later(first, Deferred(onnx.TensorProto.FLOAT8E4M3FN, 8, shape, codes))
        self._constant(second, np.array(factor, np.float32))
        return [_node("DequantizeLinear", [first, second], [value], value)], value

    def _attention(self, node: onnx.NodeProto) -> Nodes:
        """Attention of the float values; its body without the dequantizing."""
        factor = self._constant(
            f"{node.name}/factor", np.array(attributes(node)["attention_scale"], np.float32)
        )
        floats = (node.input[i] for i in (0, 2, 4))
        made, names = [], dict(zip(("queries", "keys", "values"), floats, strict=True))
        names |= {"bias": node.input[6], "y": node.output[0], "factor": factor}
        for template in ops.function(ops.ATTENTION).node:
            if template.domain == ops.DOMAIN or template.op_type == "Constant":
                continue
            inner = onnx.NodeProto()
            inner.CopyFrom(template)
            inner.input[:] = [names.get(i, f"{node.name}/{i}") for i in template.input]
            inner.output[:] = [names.get(o, f"{node.name}/{o}") for o in template.output]
            inner.name = f"{node.name}/{template.output[0]}"
            made.append(inner)
        return made

    def _read(self, name: str) -> Array:
        return numpy_helper.to_array(self._given[name], base_dir=self._folder)

    def _constant(self, name: str, value: Array) -> str:
        self._new.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _later(self, name: str, tensor: Deferred) -> None:
        self.tensors[name] = tensor
        self._new[name] = tensor.placeholder(name)


def _linear_inputs(graph: onnx.GraphProto) -> list[str]:
    """The float values that linears read quantized: all that are, but attention's."""
    found = []
    for node in graph.node:
        part = node.name.removesuffix("/Quantize").rpartition(".")[2]
        plain = ops.has_role(node, "quantize") and node_transform(node) is None
        if plain and part not in ATTENTION_PARTS:
            found.append(node.input[0])
    return list(dict.fromkeys(found))


def _rewrite(source: Path, target: Path, bundle: Path, reporter: Reporter) -> Mapping[str, Any]:
    model = load_graph(source / "model.onnx")
    ranges: Mapping[str, float] = {}
    whole = (bundle / "vae_decoder" / "model.onnx").is_file()
    if source.name == "transformer" and whole:
        ranges = activation_ranges(bundle, _linear_inputs(model.graph), reporter)
    made, tensors = _standard(model, ranges, str(source))
    with reporter.stage(
        f"{source.name} in standard types", len(made.graph.initializer), "tensors"
    ) as advance:
        deferred.write(made, tensors, target / "model.onnx", source, lambda count: advance(1))
    return {
        "activations": f"e4m3, ranges of {PICTURES} images" if ranges else "float",
        "ranges": ranges,
    }


def _check(formats: Iterable[str]) -> None:
    for name in formats:
        weight_type(format_by_name(name))


STANDARD = Target(
    name="standard",
    summary="standard types of opset 23: FLOAT4E2M1 weights, FLOAT8E4M3FN activations",
    opset=OPSET,
    rewrite=_rewrite,
    linear=lambda model: standard(model, {model.graph.input[0].name: 1.0}),
    check=_check,
    group_size=NVFP4_BLOCK,
    scale="nvfp4",
    formats=(("*", "e2m1"),),
    drawable=False,
)
