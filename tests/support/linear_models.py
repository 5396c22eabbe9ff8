"""Models of one quantized linear."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.targets.tiny_model import tiny_model

Array = npt.NDArray[Any]
N = 6


def linear_model(
    weight_format: str,
    activation: str = "e2m3",
    form: str = "fused",
    shape: tuple[int, int] = (20, 8),
    scale: Array | None = None,
) -> tuple[onnx.ModelProto, Array, Array]:
    """A quantized linear of K inputs in groups, `shape`; its weights [N, K] and the bias [N]."""
    act, fmt, (k, group) = format_by_name(activation), format_by_name(weight_format), shape
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((N, k)).astype(np.float32)
    if scale is None:
        place = np.add.outer(np.arange(N), np.arange(-(-k // group)))
        scale = (0.0625 * (1 + place % 3)).astype(np.float16)
    codes = numerics.quantize_groups(weight, scale.astype(np.float32), fmt, group)
    q = numerics.decode(codes, fmt)
    constants = {
        "l.weight.codes": numerics.pack(codes, fmt.storage_bits),
        "l.weight.scale": scale,
        "l.bias": rng.standard_normal(N).astype(np.float32),
    }
    nodes = [
        own(ops.quantize_op(act), "x", "q s", "l.input/Quantize", **ops.quantize_attributes(act)),
        *FORMS[form](act, fmt, k, group),
    ]
    model = tiny_model(nodes, (k, N), constants)
    return model, numerics.dequantize(q, scale.astype(np.float32), group), constants["l.bias"]


def own(op: str, inputs: str, outputs: str, name: str = "", **given: Any) -> onnx.NodeProto:
    """A node; of our domain where it is an operator of ours."""
    domain = ops.DOMAIN if op.startswith("Fp") else ""
    return onnx.helper.make_node(op, inputs.split(), outputs.split(), name, domain=domain, **given)


def fused(act: FloatFormat, fmt: FloatFormat, k: int, group: int) -> list[onnx.NodeProto]:
    given = ops.linear_attributes(act, fmt, k, group)
    return [own(ops.LINEAR, "q s l.weight.codes l.weight.scale l.bias", "y", "l", **given)]


def qdq(act: FloatFormat, fmt: FloatFormat, k: int, group: int) -> list[onnx.NodeProto]:
    unpacked, of_x = ops.unpack_attributes(fmt, k), ops.dequantize_attributes(act, k)
    of_weight = ops.dequantize_attributes(fmt, group)
    return [
        own(ops.DEQUANTIZE, "q s", "value", "l.input/Dequantize", **of_x),
        own(ops.UNPACK, "l.weight.codes", "wq", "l.weight/Unpack", **unpacked),
        own(ops.DEQUANTIZE, "wq l.weight.scale", "l/weight", "l.weight/Dequantize", **of_weight),
        own("Transpose", "l/weight", "columns", perm=[1, 0]),
        own("MatMul", "value columns", "product"),
        own("Add", "product l.bias", "y"),
    ]


FORMS = {"fused": fused, "qdq": qdq}
