"""FpSalient: some of the last axis before the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fp4dit_onnx.ops.operator import Array, Attributes, Operator
from fp4dit_onnx.spec.salient import salient_first

__all__ = ["SALIENT"]


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    x, mask = inputs
    return (x[..., salient_first(mask, x.shape[-1])],)


# What depends on the mask alone is a constant once a runtime has loaded a model: a Gather is left.
SALIENT = Operator(
    name="FpSalient",
    text="""
FpSalient (x, mask) => (y) {
    first = Constant <value = int64[1] {0}> ()
    last = Constant <value = int64[1] {-1}> ()
    divisor_wide = Constant <value = int64[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    one_wide = Constant <value = int64 {1}> ()
    divisor = Cast <to = 6> (divisor_wide)
    one = Cast <to = 6> (one_wide)
    columns = Shape <start = -1> (x)
    byte = Cast <to = 6> (mask)
    bytes = Unsqueeze (byte, last)
    shifted = Div (bytes, divisor)
    fields = BitwiseAnd (shifted, one)
    padded = Reshape (fields, last)
    bits = Slice (padded, first, columns, first)
    chosen = Cast <to = 9> (bits)
    other = Not (chosen)
    chosen_places = NonZero (chosen)
    other_places = NonZero (other)
    places = Concat <axis = 1> (chosen_places, other_places)
    order = Squeeze (places, first)
    y = Gather <axis = -1> (x, order)
}
""",
    doc="The elements of the last axis whose bits in mask are 1, then the others, each part in its own "
    "order; mask is uint8, the first element in the lowest bit of the first byte.",
    results=(np.float32,),
    reference=_reference,
    caption=lambda given, size: "Activations, those of 4-bit weights first",
    shared=True,
)
