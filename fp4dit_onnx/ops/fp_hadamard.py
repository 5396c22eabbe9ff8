"""FpHadamard: a rotation along the last axis that spreads outliers; and with the quantizer in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fp4dit_onnx.numbers.hadamard import LARGEST_BLOCK, hadamard, hadamard_factors
from fp4dit_onnx.ops.fp_quantize import QUANTIZE, caption
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["HADAMARD", "HADAMARD_QUANTIZE"]


def _text() -> str:
    """A stage for every halving of the largest block; one that is too long for a run copies it."""
    numbers = range(LARGEST_BLOCK.bit_length())
    factors = ", ".join(f"{hadamard_factors(2**e, 2**e)[0]:.9g}" for e in numbers)
    halves = ", ".join(str(2**stage) for stage in numbers[:-1])
    stages = "".join(
        _STAGE.format(stage=stage, source=f"x{stage}" if stage else "x", next=stage + 1)
        for stage in numbers[:-1]
    )
    return _TEXT.format(
        stages=stages, factors=factors, halves=halves, count=len(numbers) - 1, most=len(numbers)
    )


_STAGE = """
    number{stage} = Constant <value = int64 {{{stage}}}> ()
    turns{stage} = Gather <axis = 0> (turns, number{stage})
    partner{stage} = Gather <axis = 0> (partners, number{stage})
    sign{stage} = Gather <axis = 0> (signs, number{stage})
    theirs{stage} = Gather <axis = -1> ({source}, partner{stage})
    own{stage} = Mul ({source}, sign{stage})
    sum{stage} = Add (theirs{stage}, own{stage})
    x{next} = Where (turns{stage}, sum{stage}, {source})"""

_TEXT = """
FpHadamard <block> (x) => (y) {{
    size = Constant <value_int: int = @block> ()
    zero = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64 {{1}}> ()
    two = Constant <value = int64 {{2}}> ()
    plus = Constant <value = float {{1.0}}> ()
    minus = Constant <value = float {{-1.0}}> ()
    half = Constant <value = int64[{count}, 1] {{{halves}}}> ()
    factors = Constant <value = float[{most}] {{{factors}}}> ()
    first = Constant <value = int64[1] {{0}}> ()
    last_dim = Shape <start = -1> (x)
    columns = Squeeze (last_dim)
    index = Range (zero, columns, one)
    run = Mul (half, two)
    fits = LessOrEqual (run, size)
    fits_int = Cast <to = 7> (fits)
    runs = Div (columns, run)
    in_runs = Mul (runs, run)
    turned = Mul (in_runs, fits_int)
    turns = Less (index, turned)
    across = BitwiseXor (index, half)
    is_upper = Greater (index, across)
    partners = Where (turns, across, index)
    signs = Where (is_upper, minus, plus){stages}
    turns_int = Cast <to = 7> (turns)
    exponent = ReduceSum <keepdims = 0> (turns_int, first)
    factor = Gather (factors, exponent)
    y = Mul (x{count}, factor)
}}
"""


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    return (hadamard(inputs[0], given["block"]),)


HADAMARD = Operator(
    name="FpHadamard",
    text=_text(),
    doc="x times orthonormal Hadamard matrices along the diagonal, of block elements each; the rest of "
    "the last axis in the largest smaller powers of two.",
    results=(np.float32,),
    reference=_reference,
    caption=lambda given, size: f"Activations, rotated in blocks of {given['block']}",
    shared=True,
)


def _both(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    return QUANTIZE[0].reference(given, _reference(given, inputs))


HADAMARD_QUANTIZE = Operator(
    name="FpHadamardQuantize",
    text="""
FpHadamardQuantize <block, format, mantissa_bits, max, group_size, candidates> (x) => (q, scale)
{
    rotated = com.fp4dit.FpHadamard <block: int = @block> (x)
    q, scale = com.fp4dit.FpQuantize
        <format: string = @format, mantissa_bits: int = @mantissa_bits, max: float = @max,
         group_size: int = @group_size, candidates: floats = @candidates> (rotated)
}
""",
    doc="FpQuantize of FpHadamard of x, in one.",
    results=QUANTIZE[0].results,
    reference=_both,
    caption=lambda given, size: f"{caption(given, size)}, rotated by {given['block']}",
    role="quantize",
    shared=True,
)
