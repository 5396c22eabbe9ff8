"""What a viewer shows of a quantized graph: notes on nodes and on the model, for people.

Netron shows a node's ``doc_string`` below its name and its ``metadata_props`` below its inputs, the
model's in the model's properties. No runtime reads them.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
_WEIGHT_FORMAT = {ops.LINEAR: "weight_format", ops.UNPACK: "format"}
"""The attribute that names the format, of the operators that take a layer's codes."""


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
        given, layer = attributes(node), layer_of(node)
        row = rows[layer] if layer else None
        if layer and node.op_type in _WEIGHT_FORMAT:
            formats[layer] = given[_WEIGHT_FORMAT[node.op_type]]
        node.doc_string = _SENTENCES[node.op_type](given, row)
        _set(node, _node_facts(node, given, row, readers))
    counted = sorted(Counter(formats.values()).items())
    counts = ", ".join(f"{count} {name}" for name, count in counted)
    model.doc_string = _summary(rows.values())
    _set(model, {**facts, "weight formats": counts, **_worst(rows)})
    model.producer_name = "fp4dit-onnx"
    model.producer_version = importlib.metadata.version("fp4dit-onnx")


def _linear(given: Mapping[str, Any], row: Row | None) -> str:
    weights = f"{given['weight_format']} in groups of {given['group_size']}"
    return f"Linear {_size(row)}: W {weights}, A {given['act_format'] or 'float'}"


def _unpack(given: Mapping[str, Any], row: Row | None) -> str:
    return f"Weight, {_size(row)}: packed {given['format']}"


def _dequantize(given: Mapping[str, Any], row: Row | None) -> str:
    if row:
        return f"Weight, {_size(row)}: {given['format']} in groups of {given['group_size']}"
    return f"Activations in {given['format']}, one scale per row"


def _quantize(given: Mapping[str, Any], row: Row | None) -> str:
    return f"Activations to {given['format']}, one scale per row"


def _attention(given: Mapping[str, Any], row: Row | None) -> str:
    return f"Attention on {given['format']} queries, keys and values"


_SENTENCES: dict[str, Callable[[Mapping[str, Any], Row | None], str]] = {
    **dict.fromkeys(ops.QUANTIZE_OPS, _quantize),
    ops.LINEAR: _linear,
    ops.UNPACK: _unpack,
    ops.DEQUANTIZE: _dequantize,
    ops.ATTENTION: _attention,
}
"""What a node does, from its attributes and its layer's row. Netron shows some 60 letters."""


def _size(row: Row | None) -> str:
    assert row is not None  # what reads or makes a weight belongs to a layer
    channels, inputs = row.shape
    return f"{inputs} to {channels}"


def _node_facts(
    node: onnx.NodeProto,
    given: Mapping[str, Any],
    row: Row | None,
    readers: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if node.op_type in (*ops.QUANTIZE_OPS, ops.DEQUANTIZE, ops.ATTENTION):
        facts["bits"] = format_by_name(given["format"]).bits
    if node.op_type in ops.QUANTIZE_OPS:
        facts["read by"] = ", ".join(readers.get(node.output[0], ()))
    if node.op_type in _WEIGHT_FORMAT and row is not None:
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
        through = node.domain == ops.DOMAIN and node.op_type == ops.DEQUANTIZE
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
