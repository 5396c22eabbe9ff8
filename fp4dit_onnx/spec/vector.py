"""An array as a value: what specifications hold, which are compared and looked up by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Vector"]


class Vector:
    """An array that never changes; equal to another of the same type, shape and bytes.

    Args:
        values: is copied.
    """

    __slots__ = ("_hash", "values")

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values: npt.NDArray[Any] = np.array(values, order="C")
        self.values.flags.writeable = False
        self._hash = hash(self._key())

    def _key(self) -> tuple[str, tuple[int, ...], bytes]:
        return str(self.values.dtype), self.values.shape, self.values.tobytes()

    def __eq__(self, other: object) -> bool:
        """Whether the bytes are the same."""
        return isinstance(other, Vector) and self._key() == other._key()

    def __hash__(self) -> int:
        """Of the bytes."""
        return self._hash

    def __repr__(self) -> str:
        """Its type and shape."""
        return f"Vector({self.values.dtype}, {list(self.values.shape)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its values: hashes of text differ between processes."""
        return Vector, (self.values,)
