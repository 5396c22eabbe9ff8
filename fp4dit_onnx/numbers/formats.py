"""Element formats: one definition from which every table in the project is derived.

A format is a sign bit, `exponent_bits` and `mantissa_bits`. With the implicit-one rule and exponent
field 0 subnormal, every magnitude is an integer times the smallest subnormal step, so the whole
project computes on *grid integers*: ``value = integer / unit``. A format without exponent bits is
the symmetric integer grid, which lets the INT baselines run through the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError

__all__ = ["FORMATS", "FloatFormat", "format_by_name"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FloatFormat:
    """A sign-magnitude element format.

    Attributes:
        name: the field's usual spelling, such as ``e2m1`` or ``int4``.
        exponent_bits: 0 for the symmetric integer grids.
        mantissa_bits: explicit significand bits.
        specials: codes that are not numbers: ``finite`` has none, ``fn`` gives the top magnitude to
            NaN (OCP E4M3), ``ieee`` gives the top exponent to infinity and NaN (OCP E5M2).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Literal["finite", "fn", "ieee"] = "finite"

    @property
    def bits(self) -> int:
        """Bits of one code, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def storage_bits(self) -> int:
        """Bits a stored code takes: 4, or 8 for every wider format."""
        return 4 if self.bits <= 4 else 8

    @cached_property
    def unit(self) -> float:
        """Grid integers per 1.0: the reciprocal of the smallest subnormal step, a power of two."""
        if self.exponent_bits == 0:
            return 1.0
        bias = 2 ** (self.exponent_bits - 1) - 1
        return float(2.0 ** (bias - 1 + self.mantissa_bits))

    @cached_property
    def magnitudes(self) -> npt.NDArray[np.float64]:
        """Grid integers of the magnitude codes 0, 1, 2, ... in ascending order, float64."""
        count = 2 ** (self.bits - 1)
        if self.specials == "fn":
            count -= 1
        elif self.specials == "ieee":
            count -= 2**self.mantissa_bits
        code = np.arange(count)
        exponent, mantissa = code >> self.mantissa_bits, code & (2**self.mantissa_bits - 1)
        normal = (mantissa + 2.0**self.mantissa_bits) * 2.0 ** (exponent - 1)
        table: npt.NDArray[np.float64] = np.where(exponent == 0, mantissa, normal).astype(
            np.float64
        )
        return table

    @cached_property
    def max_integer(self) -> float:
        """The largest grid integer; `max_integer / unit` is the largest value."""
        return float(self.magnitudes[-1])

    @property
    def lesser_limits(self) -> tuple[float, ...]:
        """Grid integers of the top binade below the largest, descending; of uneven grids alone.

        A group's largest magnitude may become one of them: under that scale the steps next to it are
        smaller beside it. On an even grid it is a wider scale and nothing else.
        """
        if self.exponent_bits < 2:
            return ()
        top = 2.0 ** np.floor(np.log2(self.max_integer))
        return tuple(float(m) for m in self.magnitudes[-2::-1] if m >= top)

    @property
    def max(self) -> float:
        """The largest value."""
        return self.max_integer / self.unit

    @cached_property
    def grid(self) -> FloatArray:
        """Grid integer of every stored code, float32 [2**bits]; codes that are not numbers are NaN."""
        half = 2 ** (self.bits - 1)
        table = np.full(2 * half, np.nan, np.float32)
        table[: len(self.magnitudes)] = self.magnitudes
        table[half : half + len(self.magnitudes)] = -self.magnitudes
        return table

    @property
    def integer_type(self) -> npt.DTypeLike:
        """The narrowest type of quantized activations that holds every grid integer exactly."""
        if self.max_integer <= 127:
            return np.int8
        return np.int16 if self.max_integer <= 32767 else np.float32


FORMATS: dict[str, FloatFormat] = {
    f.name: f
    for f in (
        FloatFormat("e2m1", 2, 1),
        FloatFormat("e1m2", 1, 2),
        FloatFormat("e3m0", 3, 0),
        FloatFormat("e2m3", 2, 3),
        FloatFormat("e3m2", 3, 2),
        FloatFormat("e3m4", 3, 4),
        FloatFormat("e4m3", 4, 3, "fn"),
        FloatFormat("e5m2", 5, 2, "ieee"),
        FloatFormat("int4", 0, 3),
        FloatFormat("int6", 0, 5),
        FloatFormat("int8", 0, 7),
    )
}


def format_by_name(name: str) -> FloatFormat:
    """The format called `name`.

    Raises:
        UsageError: no such format; the message lists the known ones.
    """
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise UsageError(f"unknown format {name!r}: expected one of {known}") from None
