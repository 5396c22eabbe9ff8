"""What may be done to a layer's input at run time, before it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from fp4dit_onnx.files import decoded, plain

__all__ = ["Transform"]

T = TypeVar("T")


@dataclass(frozen=True)
class Transform:
    """x R for an input x [..., K]: one operator of ONNX, whose attributes are the fields.

    Attributes:
        name: of the stage in recipes, and of what files hold.
        operator: that computes it.
        quantizer: operator that is this and FpQuantize in one; None where there is none.
        result: last part of the names of its results.
    """

    name: ClassVar[str]
    operator: ClassVar[str]
    quantizer: ClassVar[str | None] = None
    result: ClassVar[str] = "transformed"

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
        return dict(vars(self))

    @classmethod
    def of_node(cls, attributes: Mapping[str, Any]) -> Transform:
        """From the attributes of a node, others among them.

        Raises:
            UsageError: a value that it cannot have.
        """
        given = {field.name: attributes[field.name] for field in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    @property
    def stored(self) -> Any:
        """As files hold it: the value of its setting, or all by name where it has not one."""
        values = plain(self)
        return next(iter(values.values())) if len(values) == 1 else values

    @classmethod
    def restored(cls, value: Any, where: str) -> Transform:
        """From what `stored` gave.

        Raises:
            WrongType: a value that it cannot have; the message begins with `where`.
        """
        names = [field.name for field in fields(cls)]
        return decoded(cls, {names[0]: value} if len(names) == 1 else value, where)
