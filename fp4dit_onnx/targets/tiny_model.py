"""The smallest quantized models, to try a runtime with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.numbers.formats import format_by_name

__all__ = ["tiny_linear", "tiny_model"]


def tiny_linear(group_size: int = 32) -> onnx.ModelProto:
    """FpQuantize and FpLinear with their bodies, x float32 [M, 32] to y [M, 4].

    The weights have every code of e2m1; the scales are powers of two.

    Args:
        group_size: inputs that share a scale; divides 32.
    """
    act, weight, n, k = format_by_name("e2m3"), format_by_name("e2m1"), 4, 32
    codes = np.arange(n * k // 2).reshape(n, k // 2) * 37 % 256
    constants: dict[str, npt.NDArray[Any]] = {
        "codes": codes.astype(np.uint8),
        "weight_scale": np.full((n, k // group_size), 0.125, np.float16),
        "bias": np.arange(n, dtype=np.float32),
    }
    own = {"domain": ops.DOMAIN}
    quantize, linear = (
        ops.quantize_attributes(act),
        ops.linear_attributes(act, weight, k, group_size),
    )
    nodes = [
        onnx.helper.make_node(
            ops.quantize_op(act), ["x"], ["q", "s"], "layer.input/Quantize", **quantize, **own
        ),
        onnx.helper.make_node(ops.LINEAR, ["q", "s", *constants], ["y"], "layer", **linear, **own),
    ]
    return tiny_model(nodes, (k, n), constants)


def tiny_model(
    nodes: Sequence[onnx.NodeProto],
    sizes: tuple[int, int],
    constants: Mapping[str, npt.NDArray[Any]],
) -> onnx.ModelProto:
    """A model of x float32 [m, K] to y [m, N] with the bodies of what it uses.

    Args:
        nodes: standard ones and ours.
        sizes: K and N.
        constants: initializers by name.
    """
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [value("x", onnx.TensorProto.FLOAT, ["m", sizes[0]])],
        [value("y", onnx.TensorProto.FLOAT, ["m", sizes[1]])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", ops.OPSET)]
    opsets.append(onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION))
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ops.IR_VERSION)
    ops.attach_functions(model)
    return model
