"""A branch of low rank beside a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.vector import Vector

__all__ = ["BRANCH", "SLOT", "LowRank", "branch_name", "slot_name"]

BRANCH = ".branch."
"""Between a layer's name and the role of a tensor of its branch."""

SLOT = ".lora."
"""The same of a tensor of its slot, which adapters fill at run time."""

Array = npt.NDArray[Any]
T = TypeVar("T")


def branch_name(layer: str, role: str) -> str:
    """In graphs and states: a tensor of a layer's branch."""
    return f"{layer}{BRANCH}{role}"


def slot_name(layer: str, role: str) -> str:
    """In graphs and adapters: a tensor of a layer's slot."""
    return f"{layer}{SLOT}{role}"


@dataclass(frozen=True)
class LowRank:
    """y += (x A) B for the layer's input x [..., K] as it comes, before any transform; two MatMuls.

    Attributes:
        rank: R, columns of A and rows of B.
        down: A, float16 [K, R]; None where graphs and manifests are without values.
        up: B, float16 [R, N]; likewise.
        shared: the earlier layer whose A this one reads too; empty for its own. A state says it, see
            `QuantizedState`.
    """

    roles: ClassVar[tuple[str, ...]] = ("down", "up")
    rank: int
    down: Vector | None = None
    up: Vector | None = None
    shared: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rank < 1:
            raise UsageError(f"branch of rank {self.rank}: expected 1 or more")
        for role, values in self.tensors.items():
            axis = 1 if role == "down" else 0
            if values.dtype != np.float16 or values.ndim != 2 or values.shape[axis] != self.rank:
                wanted = "[K, R]" if axis else "[R, N]"
                raise UsageError(
                    f"branch of rank {self.rank}: {role} {values.dtype} {list(values.shape)}: expected "
                    f"float16 {wanted}"
                )
            if not np.isfinite(values).all():
                raise UsageError(
                    f"branch of rank {self.rank}: {role} has numbers beyond float16's"
                )

    @classmethod
    def of(cls, down: Array, up: Array) -> LowRank:
        """From A [K, R] and B [R, N].

        Raises:
            UsageError: they are of another type or shape, or hold infinity or NaN.
        """
        return cls(down.shape[1] if down.ndim == 2 else 0, Vector(down), Vector(up))

    def shapes(self, n: int, k: int) -> dict[str, tuple[int, int]]:
        """Of its tensors, by role."""
        return {"down": (k, self.rank), "up": (self.rank, n)}

    @property
    def tensors(self) -> dict[str, Array]:
        """By role; empty where there are none yet."""
        own = {"down": self.down, "up": self.up}
        return {role: vector.values for role, vector in own.items() if vector is not None}

    def with_tensors(self, tensor: Callable[[str], Array]) -> LowRank:
        """The same with tensors by role.

        Raises:
            UsageError: see `of`.
        """
        down, up = (Vector(tensor(role)) for role in self.roles)
        return replace(self, down=down, up=up)

    @property
    def without_tensors(self) -> LowRank:
        """The same as graphs without weights know it."""
        return replace(self, down=None, up=None)

    @property
    def own(self) -> tuple[str, ...]:
        """Roles of the tensors that no earlier layer has."""
        return self.roles[1:] if self.shared else self.roles

    def weight(self) -> npt.NDArray[np.float32]:
        """What it adds to the layer's weight, float32 [N, K]."""
        down, up = (self.tensors[role].astype(np.float32) for role in self.roles)
        return np.ascontiguousarray((down @ up).T)
