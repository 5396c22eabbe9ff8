"""Rotation of a layer's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.hadamard import LARGEST_BLOCK, hadamard
from fp4dit_onnx.spec.transform import Transform

__all__ = ["Hadamard"]

T = TypeVar("T")


@dataclass(frozen=True)
class Hadamard(Transform):
    """A rotation: R has normalized Hadamard matrices along the diagonal.

    Attributes:
        block: size of each, a power of two from 2; see `numbers.hadamard` for what is left of K.
    """

    name: ClassVar[str] = "hadamard"
    operator: ClassVar[str] = "FpHadamard"
    quantizer: ClassVar[str | None] = "FpHadamardQuantize"
    result: ClassVar[str] = "rotated"
    block: int = 64

    def __post_init__(self) -> None:
        """Check the size."""
        if not 2 <= self.block <= LARGEST_BLOCK or self.block & (self.block - 1):
            raise UsageError(
                f"Hadamard block {self.block}: expected a power of two from 2 to {LARGEST_BLOCK}"
            )

    def __str__(self) -> str:
        """As tables of choices show it."""
        return f"Hadamard {self.block}"

    def __call__(self, x: T, library: Any = np) -> T:
        """See `Transform`."""
        return hadamard(x, self.block, library)
