"""What rewriting a quantized graph for a runtime without our operators has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.calls import taken_apart
from fp4dit_onnx.bundle.probe import attributes, node_transform
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatArray
from fp4dit_onnx.targets.deferred import Deferred

__all__ = ["Array", "Nodes", "Rewriter"]

Array = npt.NDArray[Any]
Nodes = list[onnx.NodeProto]
_node = onnx.helper.make_node


class Rewriter:
    """Rewrites a graph; what is left of our operators are transforms, which `inline` replaces.

    Activations and attention stay in float. A target says in `_weight` and `_linear` what
    becomes of weights.

    Args:
        graph: changed.
        folder: where the data of its initializers lies.
    """

    def __init__(self, graph: onnx.GraphProto, folder: str) -> None:
        self._graph, self._folder = graph, folder
        self._given = {tensor.name: tensor for tensor in graph.initializer}
        self._names: dict[str, str] = {}  # what is read in place of a value
        self._packed: dict[str, onnx.NodeProto] = {}  # result -> FpUnpack or FpScale
        self._new: dict[str, onnx.TensorProto] = {}
        self.tensors: dict[str, Deferred] = {}

    def run(self) -> None:
        """Replace every node of our domain."""
        nodes: Nodes = []
        for node in taken_apart(self._graph.node):
            node.input[:] = [self._names.get(name, name) for name in node.input]
            nodes.extend(self._replaced(node))
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [t for t in (*self._graph.initializer, *self._new.values()) if t.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _replaced(self, node: onnx.NodeProto) -> Nodes:
        """What takes the place of `node`."""
        if node.domain != ops.DOMAIN:
            return [node]
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
        """What reads q reads the float value, transformed if the node does so."""
        x = node.input[0]
        one = node_transform(node)
        if one is None:
            self._names[node.output[0]] = x
            return []
        name = f"{node.name}/{one.result}"
        self._names[node.output[0]] = name
        return [_node(one.operator, [x], [name], name, domain=ops.DOMAIN, **one.attributes)]

    def _dequantized(self, node: onnx.NodeProto) -> Nodes:
        """A weight of the form qdq; of activations nothing is left to do."""
        unpack = self._packed.get(node.input[0])
        if unpack is None:
            self._names[node.output[0]] = node.input[0]
            return []
        scale = self._scales(self._packed.get(node.input[1], node))
        given = attributes(unpack) | attributes(node)
        return self._weight(unpack.input[0], scale, given, node)

    def _linear(self, node: onnx.NodeProto) -> Nodes:
        """FpLinear of any kind."""
        raise NotImplementedError

    def _weight(
        self,
        codes: str,
        scale: Callable[[], FloatArray],
        given: Mapping[str, Any],
        node: onnx.NodeProto,
    ) -> Nodes:
        """The weight of `codes`, which `node` dequantizes.

        Args:
            codes: initializer.
            scale: reads the scales of its groups, float32 [N, G].
            given: attributes of the nodes that unpack and dequantize it.
            node: FpDequantize.
        """
        raise NotImplementedError

    def _scales(self, node: onnx.NodeProto) -> Callable[[], FloatArray]:
        """Reads the scales of a weight's groups, float32 [N, G], that `node` takes."""
        parts = {r: node.input[i] for r, i in ops.OPERATORS[node.op_type].parts.items()}
        if "scale" in parts:
            return lambda: self._read(parts["scale"]).astype(np.float32)
        record, given = ops.OPERATORS[ops.SCALE], attributes(node)
        roles = [parts[role] for role in record.parts]
        return lambda: record.reference(given, [self._read(name) for name in roles])[0]

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
