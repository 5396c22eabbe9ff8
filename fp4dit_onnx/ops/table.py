"""The operators, their functions, and models that carry them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import onnx
import onnx.parser

from fp4dit_onnx.ops.fp_attention import ATTENTION
from fp4dit_onnx.ops.fp_dequantize import DEQUANTIZE
from fp4dit_onnx.ops.fp_gelu_quantize import GELU_QUANTIZE
from fp4dit_onnx.ops.fp_hadamard import HADAMARD, HADAMARD_QUANTIZE
from fp4dit_onnx.ops.fp_linear import LINEAR
from fp4dit_onnx.ops.fp_linear_integer import LINEAR_INTEGER, LINEAR_SIGNS
from fp4dit_onnx.ops.fp_norm_quantize import NORM_QUANTIZE
from fp4dit_onnx.ops.fp_quantize import QUANTIZE, STATIC
from fp4dit_onnx.ops.fp_salient import SALIENT
from fp4dit_onnx.ops.fp_scale import SCALE
from fp4dit_onnx.ops.fp_unpack import UNPACK, UNPACK_SIGNS
from fp4dit_onnx.ops.operator import DOMAIN, OPSET, VERSION, Operator, Role

__all__ = ["OPERATORS", "attach_functions", "function", "has_role", "operator_of"]

OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        *QUANTIZE,
        *STATIC,
        HADAMARD,
        HADAMARD_QUANTIZE,
        *GELU_QUANTIZE,
        *NORM_QUANTIZE,
        SALIENT,
        UNPACK,
        UNPACK_SIGNS,
        SCALE,
        DEQUANTIZE,
        LINEAR,
        LINEAR_INTEGER,
        LINEAR_SIGNS,
        ATTENTION,
    )
}
"""By name, in the order in which a model has their functions."""


def operator_of(node: onnx.NodeProto) -> Operator | None:
    """The operator of `node`, None where it is none of ours."""
    return OPERATORS.get(node.op_type) if node.domain == DOMAIN else None


def has_role(node: onnx.NodeProto, role: Role) -> bool:
    """Whether `node` is of an operator of ours that has this role."""
    op = operator_of(node)
    return op is not None and op.role == role


@cache
def _parsed(op: Operator) -> onnx.FunctionProto:
    header = f'<opset_import: ["": {OPSET}, "{DOMAIN}": {VERSION}], domain: "{DOMAIN}">'
    proto = onnx.parser.parse_function(header + op.text)
    for node in proto.node:
        if list(node.output) == ["nan"]:  # the text form has no way to write it
            node.attribute[0].t.float_data[:] = [np.nan]
    proto.doc_string = (
        f"{op.doc} Version {op.version}. Runs as a kernel with the custom-op library of fp4dit-onnx, "
        "as this function's body without."
    )
    return proto


def function(op: str) -> onnx.FunctionProto:
    """The ONNX function that defines operator `op`."""
    return _parsed(OPERATORS[op])


def attach_functions(model: onnx.ModelProto, ops: Iterable[str] | None = None) -> None:
    """Give `model` the functions of `ops` (by default: of the operators it uses), callees first."""
    used = {n.op_type for n in model.graph.node if n.domain == DOMAIN} if ops is None else set(ops)
    placed: dict[str, onnx.FunctionProto] = {}

    def place(op: str) -> None:
        body = function(op)
        for node in body.node:
            if node.domain == DOMAIN and node.op_type not in placed:
                place(node.op_type)
        placed[op] = body

    for op in OPERATORS:
        if op in used and op not in placed:
            place(op)
    del model.functions[:]
    model.functions.extend(placed.values())
