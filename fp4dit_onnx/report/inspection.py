"""What a bundle, an ONNX file or a diffusers folder holds, as plain data; no weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import MANIFEST, Bundle
from fp4dit_onnx.bundle.probe import attention_formats, attributes, layer_of, load_graph
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.table import find_family
from fp4dit_onnx.files import plain

__all__ = ["expanded_nodes", "inspect_bundle", "inspect_model", "inspect_path", "inspect_pipeline"]

NESTED = 8
"""Levels of calls that are counted; our bodies have two."""
SUB_BYTE_BITS: dict[int, int] = {
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
}

PART_KINDS = {"codes": "packed codes"}
"""What the bytes of parts of a layer are counted as; all others are scales."""


def inspect_path(path: Path) -> dict[str, Any]:
    """Facts about `path`; entry "kind" says which: ``bundle``, ``model`` or ``pipeline``.

    Raises:
        UsageError: none of these, or damaged.
    """
    if path.is_file():
        return inspect_model(path)
    if (path / MANIFEST).is_file():
        return inspect_bundle(path)
    if not path.exists():
        raise UsageError(
            f"{path} not found: expected a bundle, an ONNX file or a diffusers folder"
        )
    return inspect_pipeline(path)


def inspect_bundle(folder: Path) -> dict[str, Any]:
    """Facts about a bundle: its manifest, its transformer, bytes of its files."""
    bundle = Bundle.open(folder)
    content = plain(bundle.manifest)
    return {
        "kind": "bundle",
        "path": str(folder),
        "manifest": content,
        "layers": content.pop("layers"),
        "files": {name: file.bytes for name, file in bundle.manifest.files.items()},
        "transformer": inspect_model(bundle.transformer),
    }


def inspect_pipeline(folder: Path) -> dict[str, Any]:
    """Facts about a diffusers pipeline: family, components, tensors of the transformer."""
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.pipeline_class)
    components = [
        {
            "name": component.name,
            "class": component.class_name,
            "tensors": len(component.tensors),
            "parameters": sum(prod(t.shape) for t in component.tensors.values()),
            "bytes": component.nbytes,
            "dtypes": sorted({t.dtype for t in component.tensors.values()}),
        }
        for component in checkpoint.components.values()
    ]
    tensors = [
        {"name": name, "shape": list(t.shape), "dtype": t.dtype, "bytes": t.nbytes}
        for name, t in checkpoint.tensors.items()
    ]
    return {
        "kind": "pipeline",
        "path": str(checkpoint.folder),
        "pipeline": checkpoint.pipeline_class,
        "transformer": checkpoint.transformer_class,
        "family": family.name if family else None,
        "components": components,
        "absent": list(checkpoint.absent),
        "tensors": tensors,
        "notes": list(checkpoint.notes),
    }


def inspect_model(path: Path) -> dict[str, Any]:
    """Facts about an ONNX file: interface, operators, functions, bytes, what is quantized.

    Raises:
        UsageError: the file is not an ONNX model, or its attentions are quantized in part.
    """
    model = load_graph(path)
    graph = model.graph
    counts = Counter((node.domain or "ai.onnx", node.op_type) for node in graph.node)
    defined = {(f.domain, f.name) for f in model.functions}
    stored = {tensor.name for tensor in graph.initializer}
    foreign = {key for key in counts if key[0] != "ai.onnx"}
    return {
        "kind": "model",
        "path": str(path),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "inputs": [_interface(value) for value in graph.input if value.name not in stored],
        "outputs": [_interface(value) for value in graph.output],
        "operators": [
            {"domain": domain, "operator": op, "count": count}
            for (domain, op), count in sorted(counts.items())
        ],
        "functions": [
            {"domain": f.domain, "name": f.name, "nodes": len(f.node)} for f in model.functions
        ],
        "expanded_nodes": expanded_nodes(model),
        "without_function": sorted(f"{domain}.{op}" for domain, op in foreign - defined),
        "bytes": _bytes_by_kind(graph),
        "layers": _layers(graph),
        "attention": attention_formats(graph),
    }


def expanded_nodes(model: onnx.ModelProto) -> int:
    """How many nodes of function bodies a runtime makes of the calls where it has no kernels for them.

    As ONNX Runtime counts them for ``session.function_expansion_node_limit``: constants too, and a
    call in a body before it is expanded itself. Of calls nested deeper than `NESTED` no more.
    """
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    sizes = dict.fromkeys(bodies, 0)

    def expanded(nodes: Iterable[onnx.NodeProto]) -> int:
        calls = ((node.domain, node.op_type) for node in nodes)
        return sum(sizes.get(call, 0) for call in calls)

    for _ in range(NESTED):
        sizes = {call: len(nodes) + expanded(nodes) for call, nodes in bodies.items()}
    return expanded(model.graph.node)


def _interface(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _nbytes(tensor: onnx.TensorProto) -> int:
    count = int(prod(tensor.dims))
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    if tensor.data_type in SUB_BYTE_BITS:
        return -(-count * SUB_BYTE_BITS[tensor.data_type] // 8)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _bytes_by_kind(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of the initializers: packed codes, weight scales, and the others by element type."""
    roles: dict[str, str] = {}
    for node in graph.node:
        op = ops.operator_of(node)
        for part, place in op.parts.items() if op else ():
            roles[node.input[place]] = PART_KINDS.get(part, "weight scales")
    found: Counter[str] = Counter()
    for tensor in graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        found[roles.get(tensor.name, name)] += _nbytes(tensor)
    return dict(found)


def _layers(graph: onnx.GraphProto) -> list[dict[str, Any]]:
    """A row for each weight of packed codes, as the first node that takes it has it."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    rows: dict[str, dict[str, Any]] = {}
    for node in graph.node:
        op = ops.operator_of(node)
        codes = tensors.get(node.input[op.parts["codes"]]) if op and op.weight_format else None
        if op and codes is not None:
            rows.setdefault(codes.name, _layer(node, op, codes))
    return list(rows.values())


def _layer(node: onnx.NodeProto, op: ops.Operator, codes: onnx.TensorProto) -> dict[str, Any]:
    given = attributes(node)
    return {
        "name": layer_of(node) or node.name or codes.name,
        "operator": node.op_type,
        "weight_format": given[str(op.weight_format)],
        "activation_format": given.get("act_format") or None,
        "group_size": given.get("group_size"),
        "shape": [int(codes.dims[0]), given["K"]],
        "bytes": _nbytes(codes),
    }
