"""What may be done to a layer's input at run time, before it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.files import decoded, plain
from fp4dit_onnx.spec.vector import Vector

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Transform"]

T = TypeVar("T")


@dataclass(frozen=True)
class Transform:
    """x R for an input x [..., K]: one operator of ONNX, whose attributes are the fields.

    One with tensors of a layer has `roles`: these fields hold them, or None where they come later, as
    in graphs without weights and in manifests. The operator's further inputs are the tensors
    ``OF.input.ROLE``, which linears that read one tensor share; its field `of` is that layer.

    Attributes:
        name: of the stage in recipes, and of what files hold.
        operator: that computes it.
        quantizer: operator that is this and FpQuantize in one; None where there is none.
        result: last part of the names of its results.
        stock: whether the operator is one of ONNX's own.
        roles: of tensors, in the order of the operator's inputs; names of fields.
        element: type of these tensors.
    """

    name: ClassVar[str]
    operator: ClassVar[str]
    quantizer: ClassVar[str | None] = None
    result: ClassVar[str] = "transformed"
    stock: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ()
    element: ClassVar[npt.DTypeLike] = np.float32

    def shape(self, k: int) -> tuple[int, ...]:
        """Of each of its tensors, for `k` inputs."""
        return (k,)

    @property
    def owner(self) -> str:
        """The layer after which the tensors are named; "" where there are none."""
        return str(getattr(self, "of", ""))

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """By role; empty where there are none, or not yet."""
        own = {role: getattr(self, role) for role in self.roles}
        return {role: vector.values for role, vector in own.items() if vector is not None}

    def with_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The same with the tensors of `roles`."""
        return replace(self, **{role: Vector(tensors[role]) for role in self.roles})

    @property
    def without_tensors(self) -> Self:
        """The same as graphs without weights know it."""
        return replace(self, **dict.fromkeys(self.roles))

    def named_after(self, layer: str) -> Self:
        """The same with tensors named after another layer."""
        named: dict[str, Any] = {"of": layer} if self.roles else {}
        return replace(self, **named)

    def __call__(self, x: T, library: Any = np) -> T:
        """`x` R, to the bit what the operator computes, in x's type.

        Args:
            x: array [..., K] of `library`.
            library: numpy or torch.
        """
        raise NotImplementedError

    def of_weight(self, weight: T, library: Any = np) -> T:
        """What makes up for it in a weight [N, K]: W R, of an R that is orthogonal."""
        return self(weight, library)

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the operator's node."""
        return {} if self.roles else dict(vars(self))

    @classmethod
    def of_node(cls, attributes: Mapping[str, Any], layer: str = "") -> Transform:
        """From the attributes of a node, others among them; its tensors come later.

        Args:
            attributes: of the node.
            layer: after which its tensors are named.

        Raises:
            UsageError: a value that it cannot have.
        """
        if cls.roles:
            attributes = {**dict.fromkeys(cls.roles), "of": layer}
        given = {field.name: attributes[field.name] for field in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    @property
    def stored(self) -> Any:
        """As files hold it: the value of its setting, or all by name where it has not one."""
        values = plain({n: v for n, v in vars(self).items() if n not in self.roles})
        return next(iter(values.values())) if len(values) == 1 else values

    @classmethod
    def restored(cls, value: Any, where: str) -> Transform:
        """From what `stored` gave.

        Raises:
            WrongType: a value that it cannot have; the message begins with `where`.
        """
        names = [field.name for field in fields(cls) if field.name not in cls.roles]
        return decoded(cls, {names[0]: value} if len(names) == 1 else value, where)
