"""Some inputs of a layer before the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.vector import Vector

__all__ = ["Salient", "salient_first"]

T = TypeVar("T")


def salient_first(mask: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int64]:
    """The order of `k` inputs in which those of `mask` come first, each part in its own order.

    Args:
        mask: a bit for each input, uint8 [ceil(k / 8)], the first in the lowest bit.
        k: inputs.
    """
    bits = np.unpackbits(mask, count=k, bitorder="little")
    return np.concatenate([np.flatnonzero(bits), np.flatnonzero(bits == 0)])


@dataclass(frozen=True)
class Salient(Transform):
    """The inputs of a mask come before the others, which is a permutation.

    Linears that read one tensor have one mask.

    Attributes:
        of: the layer that the mask is named after, the first of those that share it.
        mask: see `salient_first`; None where graphs and manifests are without values.
    """

    name: ClassVar[str] = "salient"
    operator: ClassVar[str] = "FpSalient"
    result: ClassVar[str] = "arranged"
    roles: ClassVar[tuple[str, ...]] = ("mask",)
    element: ClassVar[npt.DTypeLike] = np.uint8
    of: str
    mask: Vector | None = None

    def __post_init__(self) -> None:
        """Check the mask."""
        if self.mask is None:
            return
        values = self.mask.values
        if values.dtype != np.uint8 or values.ndim != 1:
            raise UsageError(
                f"mask of {self.of}: {values.dtype} {list(values.shape)}: expected uint8 [K / 8]"
            )

    def __str__(self) -> str:
        """As tables of choices show it."""
        return "salient inputs first"

    def shape(self, k: int) -> tuple[int, ...]:
        """See `Transform`."""
        return (-(-k // 8),)

    def __call__(self, x: T, library: Any = np) -> T:
        """See `Transform`."""
        assert self.mask is not None, self.of
        given: Any = x
        order: Any = salient_first(self.mask.values, given.shape[-1])
        if library is not np:
            order = library.from_numpy(order).to(given.device)
        made: T = given[..., order]
        return made
