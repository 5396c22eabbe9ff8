"""What a viewer shows of a quantized graph: notes on nodes and on the model, for people.

Netron shows a node's ``doc_string`` below its name and its ``metadata_props`` below its inputs, the
model's in the model's properties. No runtime reads them.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.manifest import Layer, Weight
from fp4dit_onnx.bundle.probe import attributes, layer_of
from fp4dit_onnx.numbers.formats import format_by_name

__all__ = ["annotate"]

Row = Layer | Weight

_ERRORS = {"weight_sqnr_db": "weight SQNR", "output_sqnr_db": "output SQNR"}
"""Entries of a layer in the manifest, and what a viewer calls them."""


def annotate(
    model: onnx.ModelProto,
    rows: Mapping[str, Row],
    facts: Mapping[str, Any],
) -> None:
    """Note on each node of our domain what its attributes do not say, and `facts` on the model.

    Args:
        model: quantized; changed. Notes of an earlier call are replaced.
        rows: the quantized layers as the manifest has them, by name.
        facts: of the whole model, text or numbers.
    """
    readers = _readers(model.graph)
    formats: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain != ops.DOMAIN:
            continue
        op, given, layer = ops.OPERATORS[node.op_type], attributes(node), layer_of(node)
        row = rows[layer] if layer else None
        if layer and op.weight_format:
            formats[layer] = given[op.weight_format]
        node.doc_string = op.caption(given, _size(row) if row else None)
        _set(node, _node_facts(node, op, given, row, readers))
    counted = sorted(Counter(formats.values()).items())
    counts = ", ".join(f"{count} {name}" for name, count in counted)
    model.doc_string = _summary(rows.values())
    _set(model, {**facts, "weight formats": counts, **_worst(rows)})
    model.producer_name = "fp4dit-onnx"
    model.producer_version = importlib.metadata.version("fp4dit-onnx")


def _size(row: Row) -> str:
    channels, inputs = row.shape
    return f"{inputs} to {channels}"


def _node_facts(
    node: onnx.NodeProto,
    op: ops.Operator,
    given: Mapping[str, Any],
    row: Row | None,
    readers: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "format" in given and op.weight_format is None:
        facts["bits"] = format_by_name(given["format"]).bits
    if op.role == "quantize":
        facts["read by"] = ", ".join(readers.get(node.output[0], ()))
    if op.weight_format and row is not None:
        facts["packed"] = f"{row.bytes:,} bytes"
        facts["density"] = f"{8 * row.bytes / row.weights:.3f} bits per weight"
    for key, label in _ERRORS.items():
        if (error := getattr(row, key, None)) is not None:
            facts[label] = f"{error:.2f} dB"
    return facts


def _readers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The modules that read each value, also through a FpDequantize."""
    found: dict[str, dict[str, None]] = {}
    for node in reversed(graph.node):
        through = ops.has_role(node, "dequantize")
        own = layer_of(node) or node.name.partition("/")[0]
        names = found.get(node.output[0], {}) if through else {own: None}
        for value in node.input:
            found[value] = {**names, **found.get(value, {})}
    return {value: list(names) for value, names in found.items()}


def _summary(rows: Collection[Row]) -> str:
    """The whole model in a sentence."""
    bits = 8 * sum(row.bytes for row in rows) / max(sum(row.weights for row in rows), 1)
    return f"{len(rows)} linear layers in {bits:.3f} bits per weight"


def _worst(rows: Mapping[str, Row]) -> dict[str, str]:
    """The layer of the least SQNR, for each error that was measured."""
    found = {}
    for key, label in _ERRORS.items():
        errors = {name: getattr(row, key) for name, row in rows.items()}
        known = [(error, name) for name, error in errors.items() if error is not None]
        if known:
            error, name = min(known)
            found[f"least {label}"] = f"{error:.2f} dB, {name}"
    return found


def _set(place: onnx.NodeProto | onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    del place.metadata_props[:]
    for key, value in facts.items():
        if text := str(value):
            place.metadata_props.add(key=key, value=text)
