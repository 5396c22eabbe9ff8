"""What a viewer shows of a quantized graph: notes on nodes and on the model, for people.

Netron shows a node's ``metadata_props`` below its attributes, the model's in its properties. No
runtime reads them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.formats import format_by_name

__all__ = ["annotate"]

_ERRORS = {"weight_sqnr_db": "weight SQNR", "output_sqnr_db": "output SQNR"}
"""Entries of a layer in the manifest, and what a viewer calls them."""


def annotate(
    model: onnx.ModelProto,
    rows: Iterable[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Note on each node of our domain what its attributes do not say, and `facts` on the model.

    Args:
        model: quantized; changed.
        rows: the quantized layers as the manifest has them: name, shape, bytes and, where they
            were measured, weight_sqnr_db and output_sqnr_db.
        facts: of the whole model, text or numbers.
    """
    by_name = {row["name"]: row for row in rows}
    readers = _readers(model.graph)
    for node in model.graph.node:
        if node.domain == ops.DOMAIN:
            row = by_name.get(node.name.removesuffix(".weight/Unpack"))
            _set(node, _node_facts(node, row, readers))
    _set(model, facts)
    model.producer_name = "fp4dit-onnx"
    model.producer_version = importlib.metadata.version("fp4dit-onnx")


def _node_facts(
    node: onnx.NodeProto, row: Mapping[str, Any] | None, readers: Mapping[str, list[str]]
) -> dict[str, Any]:
    attributes = {a.name: a for a in node.attribute}
    facts: dict[str, Any] = {}
    if node.op_type in (*ops.QUANTIZE_OPS, ops.ATTENTION):
        facts["bits"] = format_by_name(attributes["format"].s.decode()).bits
    if node.op_type in ops.QUANTIZE_OPS:
        facts["read by"] = ", ".join(readers.get(node.output[0], ()))
    if node.op_type in (ops.LINEAR, ops.UNPACK) and row is not None:
        channels, inputs = row["shape"]
        facts["layer"] = f"{inputs} inputs, {channels} outputs"
        facts["packed"] = f"{row['bytes']:,} bytes"
        facts["density"] = f"{8 * row['bytes'] / (channels * inputs):.3f} bits a weight"
        for key, label in _ERRORS.items():
            if row.get(key) is not None:
                facts[label] = f"{row[key]:.2f} dB"
    return facts


def _readers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The names of the nodes that read each value."""
    found: dict[str, list[str]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node.name)
    return found


def _set(place: onnx.NodeProto | onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        place.metadata_props.add(key=key, value=str(value))
