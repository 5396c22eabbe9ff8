"""Standard types of opset 23: FLOAT4E2M1 weights and FLOAT8E4M3FN activations, quantize and dequantize.

For compilers that take quantized graphs as pairs of QuantizeLinear and DequantizeLinear, TensorRT
among them. The layout is that of NVIDIA's Model Optimizer: a weight [N, K] is an initializer of a
small type behind a DequantizeLinear over blocks of its input channels, a Transpose and a MatMul;
scales that two levels hold are FLOAT8E4M3FN behind a DequantizeLinear of their own, as NVFP4 has
them; activations pass a pair with one constant scale for the tensor. The weights are exactly the
bundle's. Attention, whose per-token scales no standard node has, computes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.calls import taken_apart
from fp4dit_onnx.bundle.names import CODES
from fp4dit_onnx.bundle.probe import attributes, load_graph, node_transform
from fp4dit_onnx.numbers.formats import FloatArray, format_by_name
from fp4dit_onnx.numbers.scale_formats import NVFP4_BLOCK, two_levels
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.targets import deferred
from fp4dit_onnx.targets.deferred import Deferred, as_bytes
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.targets.ranges import PICTURES, activation_ranges
from fp4dit_onnx.targets.rewriting import Nodes, Rewriter
from fp4dit_onnx.targets.target import Target
from fp4dit_onnx.targets.weights import block_scales, stored_weight, weight_type

__all__ = ["STANDARD", "standard"]

OPSET = 23
IR_VERSION = 11
"""The first with opset 23."""
LARGEST_E4M3 = 448.0
HEADROOM = 2.0
"""Over the largest magnitude that was seen: other prompts go beyond it, and what exceeds the range is
cut off. A floating-point type has the same relative precision with it."""

_node = onnx.helper.make_node


def standard(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """`model` in standard types.

    Args:
        model: initializers with values; it is not changed.
        ranges: largest magnitude of the linears' inputs, by the name of the float value; an input
            that it lacks stays in float.

    Raises:
        UsageError: an operator without a standard form, or weights that no standard type holds.
    """
    result, tensors = _standard(model, ranges, "")
    deferred.fill(result, tensors)
    return result


def _standard(
    model: onnx.ModelProto, ranges: Mapping[str, float], folder: str
) -> tuple[onnx.ModelProto, Mapping[str, Deferred]]:
    """The model with placeholders, and what belongs in their places."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rewriter = _Standard(result.graph, ranges, folder)
    rewriter.run()
    result = inline(result)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    result.ir_version = IR_VERSION
    return result, rewriter.tensors


class _Standard(Rewriter):
    """Types of opset 23.

    Args:
        graph: changed.
        ranges: see `standard`.
        folder: where the data of its initializers lies.
    """

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, float], folder: str) -> None:
        super().__init__(graph, folder)
        self._ranges = ranges
        self._made: set[str] = set()

    def _activation(self, node: onnx.NodeProto) -> Nodes:
        """Quantize and dequantize x with a constant scale; what reads q reads that."""
        x = node.input[0]
        largest = self._ranges.get(x, 0.0)
        if largest <= 0 or node_transform(node):  # of a transform's result no range is known
            return super()._activation(node)
        self._names[node.output[0]] = f"{x}/dequantized"
        if x in self._made:
            return []
        self._made.add(x)
        scale = self._constant(
            f"{x}/scale", np.array(HEADROOM * largest / LARGEST_E4M3, np.float32)
        )
        zero = self._constant(f"{x}/zero", np.zeros((), ml_dtypes.float8_e4m3fn))
        stem, q, y = node.name.removesuffix("/Quantize"), f"{x}/e4m3", f"{x}/dequantized"
        return [
            _node("QuantizeLinear", [x, scale, zero], [q], f"{stem}/QuantizeLinear"),
            _node("DequantizeLinear", [q, scale, zero], [y], f"{stem}/DequantizeLinear"),
        ]

    def _linear(self, node: onnx.NodeProto) -> Nodes:
        given = attributes(node)
        codes = node.input[ops.OPERATORS[node.op_type].parts["codes"]]
        value = f"{codes.removesuffix(CODES)}/weight"
        columns, product = f"{node.name}/columns", f"{node.name}/product"
        made = [
            *self._value(
                codes, self._scales(node), given | {"format": given["weight_format"]}, value
            ),
            _node("Transpose", [value], [columns], columns, perm=[1, 0]),
            _node("MatMul", [node.input[0], columns], [product], product),
            _node("Add", [product, node.input[-1]], list(node.output), node.name),
        ]
        made[-1].metadata_props.extend(node.metadata_props)
        return made

    def _weight(
        self,
        codes: str,
        scale: Callable[[], FloatArray],
        given: Mapping[str, Any],
        node: onnx.NodeProto,
    ) -> Nodes:
        return self._value(codes, scale, given, node.output[0])

    def _value(
        self, codes: str, scale: Callable[[], FloatArray], given: Mapping[str, Any], value: str
    ) -> Nodes:
        """Dequantize the weight of `codes`; its values are called `value`."""
        if value in self._made:
            return []
        self._made.add(value)
        fmt, k = format_by_name(given["format"]), given["K"]
        kind, name, group = (
            weight_type(fmt),
            f"{codes.removesuffix(CODES)}.weight",
            given["group_size"],
        )

        def scales() -> tuple[FloatArray, int]:
            steps = scale() * kind.step(fmt)
            return block_scales(steps, k, group)

        def weight() -> npt.NDArray[np.uint8]:
            return stored_weight(self._read(codes), scale(), k, fmt, group, given.get("wide"))

        steps, block = scales()
        self._later(name, Deferred(kind.data_type, kind.bits, (steps.shape[0], k), weight))
        levels = two_levels(steps) if block == NVFP4_BLOCK else None
        if levels is None:
            made: Nodes = []
            blocks = f"{name}_scale"
            given_type = (onnx.TensorProto.FLOAT, 32, steps.shape)
            self._later(blocks, Deferred(*given_type, lambda: as_bytes(scales()[0])))
        else:
            made, blocks = self._levels(name, steps.shape, levels[1], lambda: scales()[0])
        axes: dict[str, Any] = {"axis": 1, "block_size": block} if steps.ndim == 2 else {"axis": 0}
        return [*made, _node("DequantizeLinear", [name, blocks], [value], value, **axes)]

    def _levels(
        self,
        name: str,
        shape: tuple[int, ...],
        factor: np.float32,
        scales: Callable[[], FloatArray],
    ) -> tuple[Nodes, str]:
        """Scales of two levels: e4m3 numbers times a factor."""
        first, second, value = f"{name}_scale", f"{name}_scale_2", f"{name}_scale/value"

        def codes() -> npt.NDArray[np.uint8]:
            levels = two_levels(scales())
            assert levels is not None
            return as_bytes(levels[0])

        self._later(first, Deferred(onnx.TensorProto.FLOAT8E4M3FN, 8, shape, codes))
        self._constant(second, np.array(factor, np.float32))
        return [_node("DequantizeLinear", [first, second], [value], value)], value


def _linear_inputs(graph: onnx.GraphProto) -> list[str]:
    """The float values that linears read quantized: all that are, but attention's."""
    found = []
    for node in taken_apart(graph.node):
        part = node.name.removesuffix("/Quantize").rpartition(".")[2]
        plain = ops.has_role(node, "quantize") and node_transform(node) is None
        if plain and part not in ATTENTION_PARTS:
            found.append(node.input[0])
    return list(dict.fromkeys(found))


def _rewrite(source: Path, target: Path, bundle: Path, reporter: Reporter) -> Mapping[str, Any]:
    model = load_graph(source / "model.onnx")
    ranges: Mapping[str, float] = {}
    whole = (bundle / "vae_decoder" / "model.onnx").is_file()
    if source.name == "transformer" and whole:
        ranges = activation_ranges(bundle, _linear_inputs(model.graph), reporter)
    made, tensors = _standard(model, ranges, str(source))
    with reporter.stage(
        f"{source.name} in standard types", len(made.graph.initializer), "tensors"
    ) as advance:
        deferred.write(made, tensors, target / "model.onnx", source, lambda count: advance(1))
    return {
        "activations": f"e4m3, ranges of {PICTURES} images" if ranges else "float",
        "ranges": ranges,
    }


def _check(formats: Iterable[str]) -> None:
    for name in formats:
        weight_type(format_by_name(name))


STANDARD = Target(
    name="standard",
    summary="standard types of opset 23: FLOAT4E2M1 weights, FLOAT8E4M3FN activations",
    opset=OPSET,
    rewrite=_rewrite,
    linear=lambda model: standard(model, {model.graph.input[0].name: 1.0}),
    check=_check,
    group_size=NVFP4_BLOCK,
    scale="nvfp4",
    formats=(("*", "e2m1"),),
    drawable=False,
)
