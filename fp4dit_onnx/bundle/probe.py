"""Taking a quantized model apart: its layers as a state, its nodes as a model of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.calls import taken_apart
from fp4dit_onnx.bundle.external_data import load_tensor
from fp4dit_onnx.bundle.names import CODES, WEIGHT
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.spec.low_rank import LowRank, branch_name
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import tensor_name, transform_of

__all__ = [
    "NodeView",
    "attention_formats",
    "attributes",
    "custom_nodes",
    "exposed",
    "layer_of",
    "load_graph",
    "load_model",
    "node_model",
    "node_transform",
    "read_state",
]

Array = npt.NDArray[Any]
PART_SIZES = {"channel_scale": "one size"}
"""Of the parts of a layer that have no two: how many sizes."""


def load_graph(path: Path) -> onnx.ModelProto:
    """Read a model without its external data; its nodes of our domain have all attributes.

    Raises:
        BundleError: no such file, no ONNX model, one without nodes or of unknown element types, or a
            node of our domain that is not an operator of ours or lacks an attribute, input or output.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: no readable ONNX model ({error})") from error
    except DecodeError:
        model = onnx.ModelProto()
    if not model.ir_version or not model.graph.node:
        raise BundleError(
            f"{path} is not an ONNX model: expected an .onnx file, a bundle or a diffusers folder"
        )
    graph = model.graph
    types = {t.data_type for t in graph.initializer}
    types |= {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    unknown = types - set(onnx.TensorProto.DataType.values())
    if unknown:
        raise BundleError(f"{path}: element type {min(unknown)} is none of ONNX; copy it again")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.domain == ops.DOMAIN:
            _check_node(node, path)
            for role, place in ops.OPERATORS[node.op_type].parts.items():
                tensor, sizes = tensors.get(node.input[place]), PART_SIZES.get(role, "two sizes")
                if tensor is not None and _sizes(tensor) != sizes:
                    raise BundleError(
                        f"{path}: tensor {tensor.name!r} of {node.op_type} has shape "
                        f"{list(tensor.dims)}: expected {sizes} from 1; copy it again"
                    )
    return model


def _sizes(tensor: onnx.TensorProto) -> str | None:
    """How many sizes it has, in words; None if one is below 1."""
    words = {1: "one size", 2: "two sizes"}
    return words.get(len(tensor.dims)) if min(tensor.dims, default=0) > 0 else None


def _check_node(node: onnx.NodeProto, path: Path) -> None:
    """Refuse what is not as `ops` defines it: later steps look attributes and inputs up."""
    what = f"{path}: node {node.name!r}"
    if node.op_type not in ops.OPERATORS:
        raise BundleError(
            f"{what} is of operator {node.op_type!r}: expected one of {', '.join(ops.OPERATORS)}"
        )
    body = ops.function(node.op_type)
    absent = sorted(set(body.attribute) - {a.name for a in node.attribute})
    if absent:
        raise BundleError(
            f"{what}, {node.op_type}, lacks the attribute {absent[0]!r}: export it again"
        )
    found, wanted = (len(node.input), len(node.output)), (len(body.input), len(body.output))
    if found != wanted:
        raise BundleError(
            f"{what}, {node.op_type}, has {found[0]} inputs and {found[1]} outputs: expected "
            f"{wanted[0]} and {wanted[1]}"
        )


def load_model(path: Path) -> onnx.ModelProto:
    """Read a model with its external data.

    Raises:
        BundleError: see `load_graph` and `load_tensor`.
    """
    model = load_graph(path)
    for tensor in model.graph.initializer:
        load_tensor(tensor, path.parent)
    return model


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name; strings are decoded, bytes that are no UTF-8 as escapes."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {
        k: v.decode(errors="backslashreplace") if isinstance(v, bytes) else v
        for k, v in values.items()
    }


def layer_of(node: onnx.NodeProto) -> str | None:
    """The layer whose packed weight or scales the node takes, None where it takes neither.

    The name of the node will not do: where a linear is called again, that of the second has a number.
    """
    op = ops.operator_of(node)
    for role, place in op.parts.items() if op else ():
        name = str(node.input[place])
        if name.endswith(end := f"{WEIGHT}.{role}"):
            return name.removesuffix(end)
    return None


@dataclass(frozen=True)
class NodeView:
    """A node of our domain and what it reads that does not change.

    Attributes:
        node: the node.
        constants: its constant inputs by tensor name.
    """

    node: onnx.NodeProto
    constants: Mapping[str, Array]

    @property
    def variables(self) -> list[str]:
        """Names of the inputs that are computed."""
        return [name for name in self.node.input if name not in self.constants]


def custom_nodes(model: onnx.ModelProto) -> list[NodeView]:
    """Every node of our domain, in graph order."""
    values = {t.name: t for t in model.graph.initializer}
    return [
        NodeView(n, {i: numpy_helper.to_array(values[i]) for i in n.input if i in values})
        for n in model.graph.node
        if n.domain == ops.DOMAIN
    ]


def read_state(model: onnx.ModelProto) -> QuantizedState:
    """The quantized state that a fused model carries: one layer for each FpLinear, and attentions.

    Raises:
        BundleError: an FpLinear whose weight is not an initializer, or a tensor of a transform or
            branch is none; see `attention_formats` too.
    """
    layers = {}
    makers = {name: node for node in taken_apart(model.graph.node) for name in node.output}
    tensors = {t.name: t for t in model.graph.initializer}
    for view in custom_nodes(model):
        op = ops.OPERATORS[view.node.op_type]
        if op.spec is None:
            continue
        given, inputs = attributes(view.node), view.node.input
        name = inputs[op.parts["codes"]].removesuffix(CODES)
        try:
            parts = {role: view.constants[inputs[place]] for role, place in op.parts.items()}
        except KeyError as error:
            raise BundleError(f"node {name}: input {error} is not an initializer") from error
        spec = _with_makers(op.spec(given), inputs[0], makers)
        spec = spec.with_tensors(lambda one, role: _tensor(tensors, tensor_name(one.owner, role)))
        if (up := branch_name(name, "up")) in tensors:
            down = _down_of(up, model.graph, makers)
            spec = replace(spec, branch=LowRank.of(*(_tensor(tensors, n) for n in (down, up))))
        layers[name] = QuantizedLayer(name, spec, given["K"], parts)
    return QuantizedState(layers, attention=attention_formats(model.graph))


def _tensor(tensors: Mapping[str, onnx.TensorProto], name: str) -> Array:
    if name not in tensors:
        raise BundleError(f"the graph has no {name}: expected it of a quantized layer")
    return numpy_helper.to_array(tensors[name])


def _down_of(up: str, graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Name of the matrix whose product is multiplied by a branch's other one, `up`."""
    readers = {name: node for node in graph.node for name in node.input}
    high = readers[readers[up].output[0]]
    low = makers[high.input[0]]
    return str(makers[low.input[1]].input[0])


def _with_makers(spec: LayerSpec, q: str, makers: Mapping[str, onnx.NodeProto]) -> LayerSpec:
    """The same with what the nodes that make a linear's input `q` say of it."""
    node = makers.get(q)
    if spec.input and node is not None and ops.has_role(node, "quantize"):
        given, own = attributes(node), spec.input
        if "largest" in given:
            spec = spec.with_largest(given["largest"])
        else:
            own = replace(own, candidates=tuple(given["candidates"][1:]))
            spec = replace(spec, input=own)
        if node_transform(node) is None:
            node = makers.get(node.input[0])
    found: list[Transform] = []
    while node is not None and (one := node_transform(node)):
        found.insert(0, one)
        node = makers.get(node.input[0])
    if node is not None and (one := _folded(node, makers)):
        found.insert(0, one)
    return replace(spec, input_ops=tuple(found))


def _folded(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> Transform | None:
    """The transform that is in what `node` adds or multiplies by: `fold_factor` puts it there."""
    further = (node_transform(makers[name]) for name in node.input if name in makers)
    return next(filter(None, further), None)


def node_transform(node: onnx.NodeProto) -> Transform | None:
    """What a node does to its input, alone or before it quantizes; None for no transform."""
    found = transform_of(node.op_type, attributes(node), node.input[1:])
    return found if found and node.domain == ("" if found.stock else ops.DOMAIN) else None


def attention_formats(graph: onnx.GraphProto) -> dict[str, str]:
    """Attention module -> format of its q, k and v, read off the nodes that quantize them.

    Raises:
        BundleError: an attention of which only a part is quantized, or in several formats.
    """
    found: dict[str, dict[str, str]] = {}
    for node in graph.node:
        attention, _, part = node.name.removesuffix("/Quantize").rpartition(".")
        if ops.has_role(node, "quantize") and part in ATTENTION_PARTS:
            found.setdefault(attention, {})[part] = attributes(node)["format"]
    for attention, formats in found.items():
        if len(formats) < len(ATTENTION_PARTS) or len(set(formats.values())) > 1:
            listed = ", ".join(f"{part} in {fmt}" for part, fmt in formats.items())
            raise BundleError(
                f"attention {attention}: found {listed}, expected "
                f"{', '.join(ATTENTION_PARTS)} in one format"
            )
    return {attention: formats[ATTENTION_PARTS[0]] for attention, formats in found.items()}


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        said = " ".join(str(error).split())
        raise BundleError(f"the model contradicts itself ({said}): export it again") from error
    graph = inferred.graph
    return {i.name: i for i in (*graph.value_info, *graph.input, *graph.output)}


def exposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose outputs are the model's own, then all that custom nodes read and write."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = _types(model)
    named = {o.name for o in copy.graph.output}
    for view in custom_nodes(model):
        for name in (*view.variables, *view.node.output):
            if name not in named and name not in {i.name for i in model.graph.input}:
                named.add(name)
                copy.graph.output.append(types[name])
    return copy


def node_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The custom nodes alone: what they read is an input, what they write an output.

    Running it on recorded tensors evaluates every node on the same inputs, so that evaluators can
    be compared node by node, without one node's rounding reaching the next.
    """
    types = _types(model)
    views = custom_nodes(model)
    nodes, inputs, outputs = [], {}, []
    constants = {name for view in views for name in view.constants}
    for view in views:
        node = onnx.NodeProto()
        node.CopyFrom(view.node)
        node.input[:] = [i if i in constants else f"{i}:in" for i in node.input]
        for name in view.variables:
            info = onnx.ValueInfoProto()
            info.CopyFrom(types[name])
            info.name = f"{name}:in"
            inputs[name] = info
        outputs += [types[name] for name in node.output]
        nodes.append(node)
    graph = onnx.helper.make_graph(
        nodes,
        "custom_nodes",
        list(inputs.values()),
        outputs,
        [t for t in model.graph.initializer if t.name in constants],
    )
    result = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    result.functions.extend(model.functions)
    return result


def node_feed(model: onnx.ModelProto, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs of a `node_model` from recorded tensors."""
    return {i.name: np.asarray(tensors[i.name.removesuffix(":in")]) for i in model.graph.input}
