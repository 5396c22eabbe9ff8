"""Comparing what evaluators made of single nodes with the numpy reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.probe import NodeView, attributes
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import (
    Comparison,
    attention_rounding_bound,
    linear_rounding_bound,
    same_bits,
    within,
)
from fp4dit_onnx.numbers.formats import format_by_name

__all__ = ["NodeChecks"]

Array = npt.NDArray[Any]
QUERIES = 8
"""Queries of an attention that are compared."""
ROWS = 32
"""Rows of a linear that are compared; float activations take the reference's slow path."""
FLOAT_ROWS = 2
TORCH = "PyTorch simulation"


@dataclass(frozen=True)
class NodeChecks:
    """Compares one evaluator's outputs with the reference on the same inputs.

    Attributes:
        inputs: recorded tensors that nodes read, by name.
        outputs: what the evaluator made of them, by name.
        who: ``library`` must give the reference's bits everywhere; others may round a linear
            differently. The PyTorch simulation is asked for codes alone.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    who: str

    @property
    def bound(self) -> str:
        """What is required, in words."""
        return {
            "library": "bit for bit the reference",
            TORCH: "codes and scales bit for bit",
        }.get(self.who, "codes bit for bit, linears and attention to derived bounds")

    def compare(self, view: NodeView) -> Comparison | None:
        """The comparison for one node, None if this evaluator has nothing to say of it."""
        if view.node.op_type in ops.QUANTIZE_OPS:
            return self._quantize(view)
        if self.who == TORCH:
            return None
        table: dict[str, Callable[[NodeView], Comparison]] = {
            ops.LINEAR: self._linear,
            ops.ATTENTION: self._attention,
            ops.UNPACK: self._unpack,
            ops.DEQUANTIZE: self._dequantize,
        }
        return table[view.node.op_type](view)

    def _input(self, view: NodeView, index: int) -> Array:
        name = view.node.input[index]
        return view.constants[name] if name in view.constants else self.inputs[name]

    def _quantize(self, view: NodeView) -> Comparison:
        fmt = format_by_name(attributes(view.node)["format"])
        x = self._input(view, 0)
        q, scale = numerics.quantize(x, fmt)
        if self.who == TORCH:
            from fp4dit_onnx.calibration.parity import torch_quantize

            found_q, found_scale = torch_quantize(x, fmt)
        else:
            found_q, found_scale = (self.outputs[name] for name in view.node.output)
        codes = same_bits(q, found_q)
        return codes if not codes.ok else same_bits(scale, found_scale)

    def _unpack(self, view: NodeView) -> Comparison:
        given = attributes(view.node)
        fmt = format_by_name(given["format"])
        codes = numerics.unpack(self._input(view, 0), given["K"], fmt.storage_bits)
        return same_bits(numerics.decode(codes, fmt), self.outputs[view.node.output[0]])

    def _dequantize(self, view: NodeView) -> Comparison:
        q, scale = self._input(view, 0), self._input(view, 1)
        value = numerics.dequantize(q, scale, attributes(view.node)["group_size"])
        return same_bits(value, self.outputs[view.node.output[0]])

    def _linear(self, view: NodeView) -> Comparison:
        given = attributes(view.node)
        q, scale, packed, weight_scale, bias = (self._input(view, i) for i in range(5))
        fmt, k, group = format_by_name(given["weight_format"]), given["K"], given["group_size"]
        found = self.outputs[view.node.output[0]]
        rows = q.reshape(-1, k)  # [..., K] -> [M, K]
        wanted = FLOAT_ROWS if q.dtype == np.float32 else ROWS
        step = max(1, -(-rows.shape[0] // wanted))
        rows = rows[::step]
        scales = scale if scale.shape == (1,) else scale.reshape(-1, 1)[::step]
        ours = found.reshape(-1, packed.shape[0])[::step]
        weight = numerics.decode(numerics.unpack(packed, k, fmt.storage_bits), fmt)
        reference = numerics.linear(rows, scales, weight, weight_scale, bias, group)
        if self.who == "library":
            return same_bits(reference, ours)
        value = numerics.dequantize(weight, weight_scale, group)
        bound = linear_rounding_bound(rows, scales, value, bias, weight_scale.shape[1])
        return within(reference, ours, bound)

    def _attention(self, view: NodeView) -> Comparison:
        given = attributes(view.node)
        q, q_scale, k, k_scale, v, v_scale, bias = (self._input(view, i) for i in range(7))
        step = max(1, -(-q.shape[1] // QUERIES))
        q, q_scale = q[:, ::step], q_scale[:, ::step]
        found = np.ascontiguousarray(self.outputs[view.node.output[0]][:, ::step])
        fmt, scale = format_by_name(given["format"]), given["attention_scale"]
        reference = numerics.attention(q, q_scale, k, k_scale, v, v_scale, bias, scale, fmt)
        if self.who == "library":
            return same_bits(reference, found)
        bound = attention_rounding_bound(q, q_scale, k, k_scale, v, v_scale, bias, scale)
        return within(reference, found, bound)
