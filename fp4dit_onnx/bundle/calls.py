"""Calls of functions, and the nodes of their bodies in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx

from fp4dit_onnx import ops

__all__ = ["body_of", "take_apart", "taken_apart"]


def body_of(
    node: onnx.NodeProto,
    function: onnx.FunctionProto,
    constant: Callable[[onnx.NodeProto], str] | None = None,
) -> list[onnx.NodeProto]:
    """The nodes of the body of `function` as `node` calls it, which may be calls.

    What the body calls ``t`` is ``NODE/t``; a node of it is named after its first output.

    Args:
        node: the call.
        function: what it calls.
        constant: from a Constant node of the body to the name of its value; None keeps the node.
    """
    names = dict(zip(function.output, node.output, strict=False))
    names |= dict(zip(function.input, node.input, strict=False))
    given = {attribute.name: attribute for attribute in node.attribute}
    found = []
    for template in function.node:
        inner = onnx.NodeProto()
        inner.CopyFrom(template)
        _resolve(inner, given)
        if constant and inner.op_type == "Constant" and not inner.domain:
            names[inner.output[0]] = constant(inner)
            continue
        first = inner.output[0]
        inner.input[:] = [names.get(name, name) for name in inner.input]
        for name in inner.output:
            names.setdefault(name, f"{node.name}/{name}")
        inner.output[:] = [names[name] for name in inner.output]
        inner.name = f"{node.name}/{first}"
        found.append(inner)
    return found


def taken_apart(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """`nodes`, but those that quantize what they compute first as the nodes that they are in one.

    The quantizer keeps the name. So readers of graphs know quantizers of float values alone.
    """
    found = []
    for node in nodes:
        op = ops.operator_of(node)
        if op is None or op.quantizer is None:
            found.append(node)
            continue
        *first, last = body_of(node, ops.function(op.name))
        last.name = node.name
        found += [*first, last]
    return found


def take_apart(graph: onnx.GraphProto) -> None:
    """Change `graph` so; see `taken_apart`."""
    nodes = taken_apart(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)


def _resolve(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> None:
    """Put the caller's attributes where the body refers to them."""
    kept = []
    for attribute in node.attribute:
        resolved = onnx.AttributeProto()
        if not attribute.ref_attr_name:
            resolved.CopyFrom(attribute)
        elif attribute.ref_attr_name in given:
            resolved.CopyFrom(given[attribute.ref_attr_name])
            resolved.name = attribute.name
        else:  # the operator's default
            continue
        kept.append(resolved)
    del node.attribute[:]
    node.attribute.extend(kept)
