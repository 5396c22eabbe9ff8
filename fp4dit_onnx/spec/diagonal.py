"""A factor for each input of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.vector import Vector

__all__ = ["Diagonal"]

T = TypeVar("T")


@dataclass(frozen=True)
class Diagonal(Transform):
    """Input k is multiplied by a number, column k of the weight divided by it.

    Linears that read one tensor have one vector.

    Attributes:
        of: the layer that the vector is named after, the first of those that share it.
        factor: float32 [K], positive and finite; None where graphs and manifests are without values.
    """

    name: ClassVar[str] = "diagonal"
    operator: ClassVar[str] = "Mul"
    stock: ClassVar[bool] = True
    result: ClassVar[str] = "balanced"
    roles: ClassVar[tuple[str, ...]] = ("factor",)
    of: str
    factor: Vector | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.factor is None:
            return
        values = self.factor.values
        if values.dtype != np.float32 or values.ndim != 1:
            raise UsageError(
                f"factors of {self.of}: {values.dtype} {list(values.shape)}: expected float32 [K]"
            )
        if not (np.isfinite(values) & (values > 0)).all():
            raise UsageError(f"factors of {self.of}: expected positive, finite numbers")

    def __str__(self) -> str:
        """As tables of choices show it."""
        return "balanced"

    def __call__(self, x: T, library: Any = np) -> T:
        """See `Transform`."""
        made: T = x * self._factor(x, library)
        return made

    def of_weight(self, weight: T, library: Any = np) -> T:
        """See `Transform`."""
        made: T = weight / self._factor(weight, library)
        return made

    def _factor(self, like: Any, library: Any) -> Any:
        """[K], of the type and on the device of `like`."""
        assert self.factor is not None, self.of
        if library is np:
            return self.factor.values.astype(like.dtype)
        return library.from_numpy(self.factor.values.copy()).to(like)
