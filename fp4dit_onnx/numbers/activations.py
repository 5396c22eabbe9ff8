"""Activation functions in numpy: the definitions, which C++ must match bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.attention import exp
from fp4dit_onnx.numbers.formats import FloatArray
from fp4dit_onnx.numbers.numerics import fma

__all__ = ["gelu", "gelu_rounding_bound"]

LINEAR = np.float32(2 * np.sqrt(2 / np.pi))
CUBIC = np.float32(2 * np.sqrt(2 / np.pi) * 0.044715)
GELU_ERROR = 2.0**-18
"""Of the input: what two evaluations of the GELU may lie apart, 1e-6 by our exponential's error and a
few roundings each, a runtime's tanh among them."""


def gelu(x: FloatArray) -> FloatArray:
    """The GELU by tanh of float32 x (any shape), to 2e-6 of x: torch's ``approximate="tanh"``.

    ``(min(x, 0) e + max(x, 0)) / (1 + e)`` with ``e = exp(-2 sqrt(2 / pi) |x + 0.044715 x^3|)``, that
    is x times the sigmoid of twice tanh's argument, and e never more than 1. NaN of NaN and infinities
    of either sign.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        slope = fma(x * x, -CUBIC, -LINEAR)
        e = exp(np.abs(x) * slope)
        above = np.where(x < 0, np.float32(0), x)
        result: FloatArray = fma(x - above, e, above) / (np.float32(1) + e)
    return result


def gelu_rounding_bound(x: FloatArray) -> npt.NDArray[np.float64]:
    """How far two evaluators' GELU of `x` may lie apart, as x."""
    return np.abs(x.astype(np.float64)) * GELU_ERROR
