"""What a viewer shows of a quantized graph: notes on nodes and on the model, for people.

Netron shows a node's ``doc_string`` below its name and its ``metadata_props`` below its inputs, the
model's in the model's properties. No runtime reads them.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.formats import format_by_name
from fp4dit_onnx.probe import attributes, layer_of

__all__ = ["annotate"]

_ERRORS = {"weight_sqnr_db": "weight SQNR", "output_sqnr_db": "output SQNR"}
"""Entries of a layer in the manifest, and what a viewer calls them."""
_WEIGHT_FORMAT = {ops.LINEAR: "weight_format", ops.UNPACK: "format"}
"""The attribute that names the format, of the operators that take a layer's codes."""


def annotate(
    model: onnx.ModelProto,
    rows: Iterable[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Note on each node of our domain what its attributes do not say, and `facts` on the model.

    Args:
        model: quantized; changed. Notes of an earlier call are replaced.
        rows: the quantized layers as the manifest has them: name, shape, bytes and, where they
            were measured, weight_sqnr_db and output_sqnr_db.
        facts: of the whole model, text or numbers.
    """
    by_name = {row["name"]: row for row in rows}
    readers = _readers(model.graph)
    formats: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain != ops.DOMAIN:
            continue
        given, layer = attributes(node), layer_of(node)
        row = by_name[layer] if layer else {}
        if layer and node.op_type in _WEIGHT_FORMAT:
            formats[layer] = given[_WEIGHT_FORMAT[node.op_type]]
        node.doc_string = _SENTENCES[node.op_type](given, row)
        _set(node, _node_facts(node, given, row, readers))
    counted = sorted(Counter(formats.values()).items())
    counts = ", ".join(f"{count} {name}" for name, count in counted)
    model.doc_string = _summary(by_name.values())
    _set(model, {**facts, "weight formats": counts, **_worst(by_name.values())})
    model.producer_name = "fp4dit-onnx"
    model.producer_version = importlib.metadata.version("fp4dit-onnx")


def _linear(given: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    weights = f"{given['weight_format']} in groups of {given['group_size']}"
    return f"Linear {_size(row)}: W {weights}, A {given['act_format'] or 'float'}"


def _unpack(given: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return f"Weight, {_size(row)}: packed {given['format']}"


def _dequantize(given: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if row:
        return f"Weight, {_size(row)}: {given['format']} in groups of {given['group_size']}"
    return f"Activations in {given['format']}, one scale a row"


def _quantize(given: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return f"Activations to {given['format']}, one scale a row"


def _attention(given: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return f"Attention on {given['format']} queries, keys and values"


_SENTENCES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    **dict.fromkeys(ops.QUANTIZE_OPS, _quantize),
    ops.LINEAR: _linear,
    ops.UNPACK: _unpack,
    ops.DEQUANTIZE: _dequantize,
    ops.ATTENTION: _attention,
}
"""What a node does, from its attributes and its layer's row. Netron shows some 60 letters."""


def _size(row: Mapping[str, Any]) -> str:
    channels, inputs = row["shape"]
    return f"{inputs} to {channels}"


def _node_facts(
    node: onnx.NodeProto,
    given: Mapping[str, Any],
    row: Mapping[str, Any],
    readers: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if node.op_type in (*ops.QUANTIZE_OPS, ops.DEQUANTIZE, ops.ATTENTION):
        facts["bits"] = format_by_name(given["format"]).bits
    if node.op_type in ops.QUANTIZE_OPS:
        facts["read by"] = ", ".join(readers.get(node.output[0], ()))
    if node.op_type in _WEIGHT_FORMAT:
        channels, inputs = row["shape"]
        facts["packed"] = f"{row['bytes']:,} bytes"
        facts["density"] = f"{8 * row['bytes'] / (channels * inputs):.3f} bits a weight"
    if row:
        facts |= {
            label: f"{row[key]:.2f} dB"
            for key, label in _ERRORS.items()
            if row.get(key) is not None
        }
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


def _summary(rows: Collection[Mapping[str, Any]]) -> str:
    """The whole model in a sentence."""
    weights = sum(row["shape"][0] * row["shape"][1] for row in rows)
    bits = 8 * sum(row["bytes"] for row in rows) / max(weights, 1)
    return f"{len(rows)} linear layers in {bits:.3f} bits a weight"


def _worst(rows: Collection[Mapping[str, Any]]) -> dict[str, str]:
    """The layer of the least SQNR, for each error that was measured."""
    found = {}
    for key, label in _ERRORS.items():
        known = [(row[key], row["name"]) for row in rows if row.get(key) is not None]
        if known:
            error, name = min(known)
            found[f"least {label}"] = f"{error:.2f} dB, {name}"
    return found


def _set(place: onnx.NodeProto | onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    del place.metadata_props[:]
    for key, value in facts.items():
        if text := str(value):
            place.metadata_props.add(key=key, value=text)
