"""Standard types of opset 23: FLOAT4E2M1 weights and FLOAT8E4M3FN activations, quantize and dequantize.

For compilers that take quantized graphs as pairs of QuantizeLinear and DequantizeLinear, TensorRT
among them. The layout is that of NVIDIA's Model Optimizer: a weight [N, K] is an initializer of a
small type behind a DequantizeLinear over blocks of its input channels, a Transpose and a MatMul;
activations pass a pair with one constant scale for the tensor. The weights are exactly the bundle's.
Attention, whose per-token scales no standard node has, computes in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import numerics, ops
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.formats import FloatFormat, format_by_name
from fp4dit_onnx.probe import NodeView, attributes, custom_nodes
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.targets.ranges import PICTURES, activation_ranges
from fp4dit_onnx.targets.target import Target

__all__ = ["STANDARD", "WEIGHT_TYPES", "standard", "weight_type"]

OPSET = 23
IR_VERSION = 11
"""The first with opset 23."""
WEIGHT_TYPES: tuple[npt.DTypeLike, ...] = (
    ml_dtypes.float4_e2m1fn,
    ml_dtypes.float8_e4m3fn,
    np.int8,
)
"""Smallest first; a layer takes the first that holds every value of its format."""
LARGEST_E4M3 = 448.0
_FUSED = "expected a bundle of the form fused; export it again without --form qdq"

Array = npt.NDArray[Any]


def weight_type(fmt: FloatFormat) -> npt.DTypeLike:
    """The standard type that holds every value of `fmt`.

    Raises:
        UsageError: none does.
    """
    values = _values(fmt)
    for dtype in WEIGHT_TYPES:
        if np.array_equal(values.astype(dtype).astype(np.float32), values):
            return dtype
    raise UsageError(
        f"weights of {fmt.name}: expected a format whose values FLOAT4E2M1, FLOAT8E4M3FN or INT8 "
        "hold; export again with another --weight-format"
    )


def _values(fmt: FloatFormat) -> npt.NDArray[np.float32]:
    """The number of every code, 0 for codes of none."""
    return np.asarray(np.nan_to_num(fmt.grid, nan=0.0) / fmt.unit, np.float32)


def standard(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """`model` in standard types.

    Args:
        model: in the form ``fused``, initializers with values; it is not changed.
        ranges: largest magnitude of the linears' inputs, by the name of the float value; an input
            that it lacks stays in float.

    Raises:
        UsageError: another form, or weights that no standard type holds.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Standard(result, ranges).run()
    result = inline(result)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    result.ir_version = IR_VERSION
    return result


class _Standard:
    """Rewrites the graph of one model."""

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, float]) -> None:
        self._graph, self._ranges = model.graph, ranges
        self._views = {view.node.name: view for view in custom_nodes(model)}
        self._quantized: dict[str, str] = {}  # q -> the float value it was made of
        self._new: list[onnx.TensorProto] = []
        self._used: set[str] = set()

    def run(self) -> None:
        """Replace every node of our domain."""
        nodes = [new for node in self._graph.node for new in self._replaced(node)]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [t for t in (*self._graph.initializer, *self._new) if t.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _replaced(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.domain != ops.DOMAIN:
            return [node]
        if node.op_type in ops.QUANTIZE_OPS:
            return self._activation(node)
        if node.op_type == ops.LINEAR:
            return self._linear(self._views[node.name])
        if node.op_type == ops.ATTENTION:
            return self._attention(node)
        raise UsageError(f"node {node.name} is of type {node.op_type}: {_FUSED}")

    def _activation(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Quantize and dequantize x with a constant scale; what reads q and scale reads that."""
        x, q = node.input[0], node.output[0]
        largest = self._ranges.get(x, 0.0)
        if largest <= 0:
            self._quantized[q] = x
            return []
        scale = self._constant(f"{x}/scale", np.array(largest / LARGEST_E4M3, np.float32))
        zero = self._constant(f"{x}/zero", np.zeros((), ml_dtypes.float8_e4m3fn))
        self._quantized[q] = f"{x}/dequantized"
        stem = node.name.removesuffix("/Quantize")
        return [
            onnx.helper.make_node(
                "QuantizeLinear", [x, scale, zero], [f"{x}/e4m3"], f"{stem}/QuantizeLinear"
            ),
            onnx.helper.make_node(
                "DequantizeLinear",
                [f"{x}/e4m3", scale, zero],
                [f"{x}/dequantized"],
                f"{stem}/DequantizeLinear",
            ),
        ]

    def _linear(self, view: NodeView) -> list[onnx.NodeProto]:
        node, given = view.node, attributes(view.node)
        fmt = format_by_name(given["weight_format"])
        codes, scale = (view.constants[name] for name in node.input[2:4])
        name = node.input[2].removesuffix(".weight.codes")
        weight = _values(fmt)[numerics.unpack(codes, given["K"], fmt.storage_bits)]
        scales, block = _blocks(scale.astype(np.float32) * np.float32(fmt.unit), given)
        stored = self._constant(f"{name}.weight", weight.astype(weight_type(fmt)))
        steps = self._constant(f"{name}.weight_scale", scales)
        x = self._quantized.get(node.input[0], node.input[0])
        blocks: dict[str, Any] = {"axis": 0}
        if scales.ndim == 2:
            blocks = {"axis": 1, "block_size": block}
        make = onnx.helper.make_node
        made = [
            make(
                "DequantizeLinear", [stored, steps], [f"{name}/weight"], f"{name}/weight", **blocks
            ),
            make(
                "Transpose",
                [f"{name}/weight"],
                [f"{name}/columns"],
                f"{name}/columns",
                perm=[1, 0],
            ),
            make("MatMul", [x, f"{name}/columns"], [f"{name}/product"], f"{name}/product"),
            make("Add", [f"{name}/product", node.input[4]], list(node.output), name),
        ]
        made[-1].metadata_props.extend(node.metadata_props)
        return made

    def _attention(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Attention of the float values; its body without the dequantizing."""
        floats = [self._quantized[name] for name in (node.input[i] for i in (0, 2, 4))]
        factor = self._constant(
            f"{node.name}/factor", np.array(attributes(node)["attention_scale"], np.float32)
        )
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

    def _constant(self, name: str, value: Array) -> str:
        if name not in self._used:
            self._used.add(name)
            self._new.append(numpy_helper.from_array(value, name))
        return name


def _blocks(scale: Array, given: Mapping[str, Any]) -> tuple[Array, int]:
    """Scales [N, K / block] and the block that divides K: OpenVINO takes no short one at the end.

    A group of several blocks repeats its scale. One group is a scale a channel, [N].
    """
    k, group = given["K"], given["group_size"]
    if scale.shape[1] == 1:
        return scale[:, 0], k
    block = math.gcd(k, group)
    return scale[:, np.arange(0, k, block) // group], block


def _linear_inputs(model: onnx.ModelProto) -> list[str]:
    """The float values that linears read quantized."""
    read = {n.input[0] for n in model.graph.node if n.op_type == ops.LINEAR}
    made = [n for n in model.graph.node if n.op_type in ops.QUANTIZE_OPS and n.output[0] in read]
    return list(dict.fromkeys(node.input[0] for node in made))


def _rewrite(source: Path, target: Path, bundle: Path) -> Mapping[str, Any]:
    model = onnx.load(source / "model.onnx")
    ranges: Mapping[str, float] = {}
    whole = (bundle / "vae_decoder" / "model.onnx").is_file()
    if source.name == "transformer" and whole:
        ranges = activation_ranges(bundle, _linear_inputs(model))
    onnx.save_model(
        standard(model, ranges),
        target / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    (target / "model.onnx.data").chmod(0o644)  # onnx makes it the owner's alone
    return {
        "activations": f"e4m3, ranges of {PICTURES} pictures" if ranges else "float",
        "ranges": ranges,
    }


def _check(form: str, formats: Iterable[str]) -> None:
    if form != "fused":
        raise UsageError(f"target standard of the form {form}: {_FUSED}")
    for name in formats:
        weight_type(format_by_name(name))


STANDARD = Target(
    name="standard",
    summary="standard types of opset 23: FLOAT4E2M1 weights, FLOAT8E4M3FN activations",
    opset=OPSET,
    rewrite=_rewrite,
    drawable=False,
    check=_check,
)
