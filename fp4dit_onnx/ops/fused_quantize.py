"""Operators that quantize what they compute first: one for each quantizer, from what comes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.compare import quantize_rounding_bound
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.ops.fp_hadamard import HADAMARD_QUANTIZE
from fp4dit_onnx.ops.fp_quantize import QUANTIZE
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["Before", "quantizers"]

_ATTRIBUTES = {
    "format": "string",
    "mantissa_bits": "int",
    "max": "float",
    "group_size": "int",
    "candidates": "floats",
}
_QUANTIZERS = (
    *((quantizer, _ATTRIBUTES) for quantizer in QUANTIZE[:2]),
    (HADAMARD_QUANTIZE, {"block": "int", **_ATTRIBUTES}),
)

_TEXT = """
{name} <{names}> ({inputs}) => (q, scale)
{{{body}
    q, scale = com.fp4dit.{quantizer} <{given}> (y)
}}
"""


@dataclass(frozen=True)
class Before:
    """What is computed first.

    Attributes:
        name: between ``Fp`` and the quantizer's name.
        what: it is, in a few words.
        body: nodes in ONNX's text form, from the inputs to ``y``.
        compute: from attributes and inputs to float32 y: the reference.
        apart: from attributes and inputs to how far two evaluators' y may lie apart, as y.
        inputs: by name.
        attributes: name -> type, that the body reads.
    """

    name: str
    what: str
    body: str
    compute: Callable[[Attributes, Sequence[Array]], Array]
    apart: Callable[[Attributes, Sequence[Array]], npt.NDArray[np.float64]]
    inputs: tuple[str, ...] = ("x",)
    attributes: Mapping[str, str] = field(default_factory=dict)


def quantizers(before: Before) -> tuple[Operator, ...]:
    """Its operators: of int8, of int16, and rotated."""
    return tuple(_operator(before, quantizer, types) for quantizer, types in _QUANTIZERS)


def _operator(before: Before, quantizer: Operator, types: Mapping[str, str]) -> Operator:
    def bound(given: Attributes, inputs: Sequence[Array]) -> tuple[Array, Array]:
        return quantize_rounding_bound(
            before.compute(given, inputs),
            before.apart(given, inputs),
            format_by_name(given["format"]),
            given["group_size"],
            given["candidates"],
            given.get("block", 1),
        )

    name = quantizer.name.replace("Fp", f"Fp{before.name}", 1)
    text = _TEXT.format(
        name=name,
        names=", ".join({**before.attributes, **types}),
        inputs=", ".join(before.inputs),
        body=before.body.rstrip(),
        quantizer=quantizer.name,
        given=", ".join(f"{key}: {kind} = @{key}" for key, kind in types.items()),
    )
    return Operator(
        name=name,
        text=text,
        doc=f"{quantizer.name} of {before.what}, in one.",
        results=quantizer.results,
        reference=lambda given, inputs: quantizer.reference(
            given, [before.compute(given, inputs)]
        ),
        caption=lambda given, size: f"{before.name}: {quantizer.caption(given, size)}",
        bound=bound,
        role="quantize",
        shared=True,
        quantizer=quantizer.name,
        before=before.compute,
    )
