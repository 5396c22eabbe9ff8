"""A linear layer with activations quantized at run time, and its backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fp4dit_onnx import ops
from fp4dit_onnx.benchmark.backend import Absent, Backend, Loaded
from fp4dit_onnx.benchmark.case import Array, checked_sqnr, sample_rows
from fp4dit_onnx.benchmark.openvino_models import linear_f32, linear_u4
from fp4dit_onnx.benchmark.sessions import MICROSOFT, graph_model, on_onnxruntime
from fp4dit_onnx.benchmark.torch_models import linear_bf16
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer
from fp4dit_onnx.spec.transform import Transform

__all__ = ["DEFAULT_SHAPES", "PEERS", "LinearCase", "layer_of", "ours", "ours_model"]

DEFAULT_SHAPES = (
    (1024, 1152, 1152),
    (1024, 1152, 4608),
    (1024, 4608, 1152),
    (1, 1152, 6912),
    (120, 4096, 1152),
)
"""M, K, N of PixArt-XL at 512 x 512 pixels: attention, feed-forward, adaLN, caption projection."""

BLOCK = 128
"""Inputs that share a scale in the peers' 4-bit weights, as in ours by default."""


@dataclass(frozen=True)
class LinearCase:
    """``y = x weight^T + bias`` of normal random numbers, always the same for the same sizes.

    Attributes:
        m: rows of activations.
        k: input features.
        n: output features.
        spec: how ours is quantized.
    """

    m: int
    k: int
    n: int
    spec: LayerSpec

    kind = "linear"

    @property
    def name(self) -> str:
        """M x K x N."""
        return f"{self.m}x{self.k}x{self.n}"

    @property
    def operations(self) -> float:
        """A product and an addition each."""
        return 2.0 * self.m * self.k * self.n

    @property
    def product(self) -> str:
        """The type that holds the integers of both formats: int8, int16 or float."""
        act = self.spec.activation_format
        if act is None:
            return "float"
        wider = np.result_type(act.integer_type, self.spec.weight_format.integer_type)
        return wider.name.replace("float32", "float")

    @cached_property
    def x(self) -> Array:
        """Activations, float32 [M, K]."""
        return np.random.default_rng(0).standard_normal((self.m, self.k), np.float32)

    @property
    def feed(self) -> dict[str, Array]:
        """The models' input."""
        return {"x": self.x}

    @cached_property
    def weight(self) -> Array:
        """Float32 [N, K], scaled so that results are about as large as the activations."""
        drawn = np.random.default_rng(1).standard_normal((self.n, self.k), np.float32)
        return drawn / np.float32(np.sqrt(self.k))

    @cached_property
    def bias(self) -> Array:
        """Float32 [N]."""
        return np.random.default_rng(2).standard_normal(self.n, np.float32)

    @cached_property
    def reference(self) -> Array:
        """The sampled rows of the result, computed in float64."""
        rows = self.x[sample_rows(self.m)].astype(np.float64)
        found: Array = rows @ self.weight.T.astype(np.float64) + self.bias
        return found

    def sqnr(self, result: Array) -> float | None:
        """See `Case.sqnr`."""
        if result.shape != (self.m, self.n):
            raise ValueError(f"a result of shape {result.shape}, expected {(self.m, self.n)}")
        return checked_sqnr(self.reference, result[sample_rows(self.m)])


def layer_of(case: LinearCase) -> QuantizedLayer:
    """The weight rounded to nearest under absmax scales of the spec's format (docs/design.md)."""
    spec, fmt = case.spec, case.spec.weight_format
    weight = case.weight
    for one in spec.input_ops:
        weight = one.of_weight(weight)
    starts = np.arange(0, case.k, spec.group_size)
    amax = np.maximum.reduceat(np.abs(weight), starts, axis=1)  # [N, G]
    full = (amax / np.float32(fmt.max_integer)).astype(np.float32)
    full[amax < numerics.SMALLEST_AMAX] = 0
    scale = spec.scale_format.rounded(full, fmt)
    codes = numerics.quantize_groups(weight, scale, fmt, spec.group_size)
    parts = {
        "codes": numerics.pack(codes, fmt.storage_bits),
        **spec.scale_format.split(scale, fmt),
    }
    return QuantizedLayer("linear", spec, case.k, parts)


def _node(op: str, inputs: Iterable[str], outputs: Sequence[str], given: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), outputs, domain=ops.DOMAIN, **given)


def _quantizer(spec: LayerSpec, act: FloatFormat) -> list[onnx.NodeProto]:
    """From x to q and scale_of_row, transformed where the spec says so."""
    assert spec.input is not None
    before = list(spec.input_ops)
    op, given = ops.quantizer_of(spec.input)
    if before and before[-1].quantizer and op == ops.quantize_op(FORMATS["int8"]):
        last = before.pop()
        op, given = str(last.quantizer), {**last.attributes, **given}
    x, nodes = _transformed(before)
    return [*nodes, _node(op, [x], ["q", "scale_of_row"], given)]


def _transformed(transforms: Iterable[Transform]) -> tuple[str, list[onnx.NodeProto]]:
    """The tensor that is quantized or multiplied, and what makes it of x."""
    x, nodes = "x", []
    for one in transforms:
        nodes.append(_node(one.operator, [x], [one.result], one.attributes))
        x = one.result
    return x, nodes


def ours_model(case: LinearCase) -> bytes:
    """A quantizer and a linear operator; with float activations no quantizer."""
    spec, layer = case.spec, layer_of(case)
    act, k, of_row = spec.activation_format, case.k, spec.activation_group_size
    parts: dict[str, Array] = {"codes": layer.codes, "weight_scale": layer.scale}
    op, given = (
        ops.LINEAR,
        ops.linear_attributes(act, spec.weight_format, k, spec.group_size, of_row),
    )
    if spec.scale_format.multiplied and act is not None and act.integer_type == np.int8:
        op, parts = ops.LINEAR_INTEGER, dict(layer.parts)
        given = ops.linear_integer_attributes(act, spec.weight_format, k, spec.group_size, of_row)
    constants = {**parts, "bias": case.bias}
    if act is None:
        x, nodes = _transformed(spec.input_ops)
        source = [x, "one"]
        constants["one"] = np.ones(1, np.float32)
    else:
        source, nodes = ["q", "scale_of_row"], _quantizer(spec, act)
    nodes.append(_node(op, [*source, *parts, "bias"], ["y"], given))
    return _model(case, nodes, constants)


def _model(
    case: LinearCase, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array]
) -> bytes:
    return graph_model(nodes, case.feed, constants, (case.m, case.n))


def ours(isa: str) -> Backend[LinearCase]:
    """This project's operators with the kernels of one instruction set."""
    return on_onnxruntime(f"fp4dit {isa}", "its quantizer and linear operator", ours_model, isa)


def _ort_float32(case: LinearCase) -> bytes:
    nodes = [
        helper.make_node("MatMul", ["x", "columns"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    constants = {"columns": case.weight.T, "bias": case.bias}
    return _model(case, nodes, constants)


def _ort_matmul_nbits(case: LinearCase) -> bytes:
    """Symmetric 4-bit weights: codes 0 to 15 stand for -8 to 7."""
    blocks = -(-case.k // BLOCK)
    padded = np.pad(case.weight, ((0, 0), (0, blocks * BLOCK - case.k)))
    grouped = padded.reshape(case.n, blocks, BLOCK)  # [N, K] -> [N, G, 128]
    at = np.abs(grouped).argmax(axis=-1, keepdims=True)
    scale = np.take_along_axis(grouped, at, axis=-1) / np.float32(-8)  # the extreme becomes -8
    live = np.where(scale == 0, np.float32(1), scale)
    codes = np.clip(np.rint(grouped / live) + 8, 0, 15).astype(np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scale", "", "", "bias"],
        ["y"],
        domain=MICROSOFT,
        K=case.k,
        N=case.n,
        bits=4,
        block_size=BLOCK,
        accuracy_level=4,
    )
    constants = {
        "codes": codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4)),
        "scale": scale.reshape(case.n, blocks),
        "bias": case.bias,
    }
    return _model(case, [node], constants)


def _ort_int8(case: LinearCase) -> bytes:
    """Symmetric int8 weights, one scale per channel; ONNX Runtime quantizes the activations."""
    scale = np.abs(case.weight).max(axis=1) / np.float32(127)  # [N]
    codes = np.rint(case.weight / np.where(scale == 0, 1, scale)[:, None]).astype(np.int8)
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "codes", "scale", "", "bias"], ["y"], domain=MICROSOFT
    )
    constants = {"codes": codes.T, "scale": scale, "bias": case.bias}
    return _model(case, [node], constants)


def _openvino_u4(dynamic_group: int | None) -> Backend[LinearCase]:
    """OpenVINO with compressed weights, activations as by default or in int8 by groups."""

    def load(case: LinearCase, threads: int) -> Loaded:
        if case.k % BLOCK:
            raise Absent(f"groups of {BLOCK} need K to be a multiple of it, found {case.k}")
        return linear_u4(case.x, case.weight, case.bias, threads, BLOCK, dynamic_group)

    if dynamic_group is None:
        about = f"4-bit weights in groups of {BLOCK}, OpenVINO's defaults"
        return Backend("openvino-u4", about, load, "openvino")
    about = f"the same, activations in int8 by groups of {dynamic_group}"
    return Backend("openvino-u4-int8", about, load, "openvino")


PEERS: tuple[Backend[LinearCase], ...] = (
    on_onnxruntime("ort-float32", "MatMul + Add", _ort_float32),
    on_onnxruntime(
        "ort-matmulnbits", f"4 bit, block {BLOCK}, accuracy_level 4", _ort_matmul_nbits
    ),
    on_onnxruntime("ort-int8", "DynamicQuantizeMatMul, a scale per channel", _ort_int8),
    Backend(
        "torch-bf16",
        "linear, activations in bfloat16 already",
        lambda case, threads: linear_bf16(case.x, case.weight, case.bias, threads),
        "torch",
    ),
    Backend(
        "openvino-float32",
        "MatMul + Add",
        lambda case, threads: linear_f32(case.x, case.weight, case.bias, threads, "f32"),
        "openvino",
    ),
    Backend(
        "openvino-bf16",
        "MatMul + Add, inference precision bf16",
        lambda case, threads: linear_f32(case.x, case.weight, case.bias, threads, "bf16"),
        "openvino",
    ),
    _openvino_u4(None),
    _openvino_u4(BLOCK),
)
"""Other backends for linear layers; another one is another entry."""
