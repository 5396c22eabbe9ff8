"""A matrix by which a layer's input is multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.vector import Vector

__all__ = ["Affine"]

T = TypeVar("T")


@dataclass(frozen=True)
class Affine(Transform):
    """x R for any invertible R, and W R^-T for the weight: ONNX's MatMul, in float.

    Runtimes add in orders of their own, so that results are not the same to the bit.

    Attributes:
        of: the layer that the matrix is named after, the first of those that share it.
        matrix: float32 [K, K], finite; None where graphs and manifests are without values.
    """

    name: ClassVar[str] = "affine"
    operator: ClassVar[str] = "MatMul"
    stock: ClassVar[bool] = True
    result: ClassVar[str] = "mixed"
    roles: ClassVar[tuple[str, ...]] = ("matrix",)
    of: str
    matrix: Vector | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.matrix is None:
            return
        values = self.matrix.values
        if values.dtype != np.float32 or values.ndim != 2 or len(set(values.shape)) > 1:
            raise UsageError(
                f"matrix of {self.of}: {values.dtype} {list(values.shape)}: expected float32 [K, K]"
            )
        if not np.isfinite(values).all():
            raise UsageError(f"matrix of {self.of}: expected finite numbers")

    def __str__(self) -> str:
        """As tables of choices show it."""
        return "affine"

    def __call__(self, x: T, library: Any = np) -> T:
        """See `Transform`, but for the order of the sums."""
        made: T = library.matmul(x, self._matrix(x, library))
        return made

    def of_weight(self, weight: T, library: Any = np) -> T:
        """See `Transform`."""
        solved: Any = library.linalg.solve(self._matrix(weight, library), weight.T)  # type: ignore[attr-defined]
        made: T = solved.T
        return made

    def _matrix(self, like: Any, library: Any) -> Any:
        """[K, K], of the type and on the device of `like`."""
        assert self.matrix is not None, self.of
        if library is np:
            return self.matrix.values.astype(like.dtype)
        return library.from_numpy(self.matrix.values.copy()).to(like)

    def shape(self, k: int) -> tuple[int, ...]:
        """See `Transform`."""
        return (k, k)
