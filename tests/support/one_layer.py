"""A layer of random weights, and sessions of its operators in the library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.runtime.library import library_path

Array = npt.NDArray[Any]


@dataclass
class Layer:
    """One layer's formats, sizes and random weights."""

    act: FloatFormat | None
    weight: FloatFormat
    n: int
    k: int
    group_size: int
    half: bool = True
    seed: int = 0
    codes: Array = field(init=False)
    scale: Array = field(init=False)
    bias: Array = field(init=False)

    def __post_init__(self) -> None:
        """Draw the weights."""
        random = np.random.default_rng(self.seed)
        groups = numerics.group_count(self.k, self.group_size)
        count = len(self.weight.magnitudes)
        magnitude = random.integers(0, count, (self.n, self.k))
        sign = random.integers(0, 2, (self.n, self.k)) << (self.weight.bits - 1)
        self.codes = (magnitude + sign).astype(np.uint8)
        self.scale = random.standard_normal((self.n, groups)).astype(np.float32)
        if self.half:
            self.scale = self.scale.astype(np.float16)
        self.bias = random.standard_normal(self.n).astype(np.float32)

    @property
    def name(self) -> str:
        """What a failure is reported under."""
        act = self.act.name if self.act else "float"
        return f"{act} x {self.weight.name}, N {self.n} K {self.k} group {self.group_size}"

    @property
    def q_type(self) -> npt.DTypeLike:
        """Element type of FpLinear's q."""
        return self.act.integer_type if self.act else np.float32

    def packed(self) -> Array:
        """The codes as FpLinear takes them."""
        return numerics.pack(self.codes, self.weight.storage_bits)

    def attributes(self) -> dict[str, Any]:
        """FpLinear's attributes."""
        return ops.linear_attributes(self.act, self.weight, self.k, self.group_size)

    def reference(self, q: Array, scale: Array) -> Array:
        """What FpLinear must give."""
        weight = numerics.decode(self.codes, self.weight)
        return numerics.linear(q, scale, weight, self.scale, self.bias, self.group_size)


def value_info(name: str, dtype: npt.DTypeLike, shape: Any) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, shape)


def custom(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"the_{op}", domain=ops.DOMAIN, **attributes)


def session(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[tuple[str, npt.DTypeLike]],
    weights: dict[str, Array],
    threads: int = 1,
) -> ort.InferenceSession:
    """A session of these nodes, in which the library must run all of our operators."""
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs,
        [value_info(name, dtype, None) for name, dtype in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ops.IR_VERSION)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def layer_session(layer: Layer, threads: int = 1, lead: tuple[str, ...] = ("m",)) -> Any:
    """All operators on one layer: x -> q, s -> y, q and s -> d, codes -> u."""
    weights = {"codes": layer.packed(), "ws": layer.scale, "bias": layer.bias}
    unpack = ops.unpack_attributes(layer.weight, layer.k)
    nodes = [custom(ops.UNPACK, ["codes"], ["u"], **unpack)]
    outputs: list[tuple[str, npt.DTypeLike]] = [("y", np.float32), ("u", np.float32)]
    if layer.act:
        quantize = ops.quantize_attributes(layer.act)
        nodes.append(custom(ops.quantize_op(layer.act), ["x"], ["q", "s"], **quantize))
        dequantize = ops.dequantize_attributes(layer.act, layer.k)
        nodes.append(custom(ops.DEQUANTIZE, ["q", "s"], ["d"], **dequantize))
        outputs += [("q", layer.q_type), ("s", np.float32), ("d", np.float32)]
    else:
        weights["s"] = np.ones(1, np.float32)
    q = "q" if layer.act else "x"
    nodes.append(custom(ops.LINEAR, [q, "s", "codes", "ws", "bias"], ["y"], **layer.attributes()))
    x = value_info("x", np.float32, [*lead, layer.k])
    return session(nodes, [x], outputs, weights, threads)


def activations(rows: int, k: int, seed: int) -> Array:
    """Rows of every kind: random, zero, tiny, huge, with NaN, with infinity."""
    x = np.random.default_rng(seed).standard_normal((rows, k)).astype(np.float32)
    for row, value in enumerate((0.0, -0.0, 1e-31, 3e38, np.nan, -np.inf, 1e-45)):
        if 2 * row + 3 < rows:
            x[2 * row + 3, seed % k] = value
            if row < 3:
                x[2 * row + 3] = value
    return x


def same(found: Array, wanted: Array) -> bool:
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f")
    )


def expect(found: Array, wanted: Array, what: str) -> None:
    assert same(found, wanted), f"{what}: found\n{found}\nwanted\n{wanted}"
