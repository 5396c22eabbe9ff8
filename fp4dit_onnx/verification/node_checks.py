"""Comparing what evaluators made of single nodes with the numpy reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.probe import NodeView, attributes
from fp4dit_onnx.numbers.compare import Comparison, same_bits, within

__all__ = ["LIBRARY", "TORCH", "NodeChecks"]

Array = npt.NDArray[Any]
LIBRARY = "library"
TORCH = "PyTorch simulation"


@dataclass(frozen=True)
class NodeChecks:
    """Compares one evaluator's outputs with the reference on the same inputs.

    Attributes:
        inputs: recorded tensors that nodes read, by name.
        outputs: what the evaluator made of them, by name.
        who: ``library``, or that on a device, must give the reference's bits everywhere; others may
            round a linear differently. The PyTorch simulation is asked for codes alone.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    who: str

    @property
    def bound(self) -> str:
        """What is required, in words."""
        if self.kernels:
            return "bit for bit the reference"
        if self.who == TORCH:
            return "codes and scales bit for bit"
        return "codes bit for bit, linears, attention and what is fused to derived bounds"

    @property
    def kernels(self) -> bool:
        """Whether it is the custom-op library, on whatever device."""
        return self.who.split(" on ")[0] == LIBRARY

    def compare(self, view: NodeView) -> Comparison | None:
        """The comparison for one node, None if this evaluator has nothing to say of it."""
        op, given = ops.OPERATORS[view.node.op_type], attributes(view.node)
        inputs: Sequence[Array] = [self._input(view, name) for name in view.node.input]
        if self.who == TORCH:
            if op.role != "quantize":
                return None
            from fp4dit_onnx.calibration.parity import torch_quantize

            if op.before is not None and op.quantizer is not None:
                inputs, op = [op.before(given, inputs)], ops.OPERATORS[op.quantizer]
            found: Sequence[Array] = torch_quantize(inputs[0], op.name, given)
        else:
            found = [self.outputs[name] for name in view.node.output]
        inputs, found = op.sample(given, inputs, found)
        wanted = op.reference(given, inputs)
        bound = op.bound(given, inputs) if op.bound and not self.kernels else None
        bounds = bound if isinstance(bound, tuple) else (bound,) * len(wanted)
        outcome = Comparison(True)
        for reference, own, most in zip(wanted, found, bounds, strict=True):
            outcome = same_bits(reference, own) if most is None else within(reference, own, most)
            if not outcome.ok:
                break
        return outcome

    def _input(self, view: NodeView, name: str) -> Array:
        return view.constants[name] if name in view.constants else self.inputs[name]
