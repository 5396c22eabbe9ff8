"""A graph without local functions: each call is replaced by the nodes of its body.

For runtimes that know ONNX's operators and not its functions, OpenVINO among them. What a body calls
``t`` is called ``NODE/t`` afterwards, so that names still begin with the module's path. Constants of
the bodies become initializers, each value once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.calls import body_of
from fp4dit_onnx.bundle.probe import load_graph
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.targets.target import Target

__all__ = ["INLINE", "inline"]

_CONSTANT_TYPES: Mapping[str, npt.DTypeLike] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Attributes of Constant that hold numbers, and the type of the tensor."""


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the bodies of its functions in place of the calls; initializers are not read.

    Args:
        model: its functions use standard operators and each other; it is not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Inliner(result).run()
    del result.functions[:]
    own = {function.domain for function in model.functions}
    opsets = [entry for entry in result.opset_import if entry.domain not in own]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    return result


class _Inliner:
    """Rewrites the graph of one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._functions = {(f.domain, f.name): f for f in model.functions}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        graph = model.graph
        self._taken = {named.name for named in (*graph.initializer, *graph.input)}
        self._taken |= {name for node in graph.node for name in node.output}

    def run(self) -> None:
        """Replace the nodes of the graph."""
        nodes = [inner for node in self._graph.node for inner in self._expanded(node)]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _expanded(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """`node`, or the nodes of its body in its place."""
        function = self._functions.get((node.domain, node.op_type))
        if function is None:
            return [node]
        found = []
        for inner in body_of(node, function, self._constant):
            found.extend(self._expanded(inner))
        for inner in found:
            if node.output[0] in inner.output:  # what viewers showed of the call
                inner.metadata_props.extend(node.metadata_props)
                inner.doc_string = node.doc_string
        return found

    def _constant(self, node: onnx.NodeProto) -> str:
        """The initializer that holds the value of a Constant node."""
        attribute = node.attribute[0]
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            array = numpy_helper.to_array(value)
        else:
            array = np.array(value, _CONSTANT_TYPES[attribute.name])
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._free(node.output[0])
            self._constants[key] = name
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def _free(self, stem: str) -> str:
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name


def _rewrite(source: Path, target: Path, bundle: Path, reporter: Reporter) -> Mapping[str, Any]:
    """The graph anew; the weights are the same file."""
    with reporter.stage(f"{source.name} without functions", 1) as advance:
        model = load_graph(source / "model.onnx")
        for data in source.glob("model.onnx.*"):
            data.rename(target / data.name)
        (target / "model.onnx").write_bytes(inline(model).SerializeToString())
        advance(1)
    return {}


INLINE = Target(
    name="inline",
    summary="standard operators only: the bodies in place of our operators",
    opset=ops.OPSET,
    rewrite=_rewrite,
    linear=inline,
)
