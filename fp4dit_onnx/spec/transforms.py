"""The transforms of inputs: a file each, a line each here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fp4dit_onnx.spec.affine import Affine
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.salient import Salient
from fp4dit_onnx.spec.transform import Transform

__all__ = ["AS_KEYS", "INPUT", "TRANSFORMS", "stored", "tensor_name", "transform_of"]

INPUT = ".input."
"""Between a layer's name and the role of a tensor of its transforms."""

TRANSFORMS: dict[str, type[Transform]] = {
    one.name: one for one in (Diagonal, Affine, Hadamard, Salient)
}
"""By name, in the order in which they are applied."""


def tensor_name(layer: str, role: str) -> str:
    """In graphs and states: a tensor of a transform, see `Transform.owner`."""
    return f"{layer}{INPUT}{role}"


def transform_of(
    operator: str, attributes: Mapping[str, Any], tensors: Sequence[str] = ()
) -> Transform | None:
    """What a node does to its input, alone or before it quantizes; None for no transform.

    Args:
        operator: of the node.
        attributes: of it.
        tensors: names of its further inputs.

    Raises:
        UsageError: an attribute of another value than it may have.
    """
    for transform in TRANSFORMS.values():
        if operator in (transform.operator, transform.quantizer):
            named = [name.partition(INPUT) for name in tensors]
            if tuple(role for _, _, role in named) == transform.roles:
                return transform.of_node(attributes, named[0][0] if named else "")
    return None


def stored(given: tuple[Transform, ...]) -> dict[str, Any]:
    """As files hold them: a key for each that there is, None where a layer is without it."""
    own = {one.name: one.stored for one in given}
    return {name: own.get(name) for name in TRANSFORMS}


def restored(row: Mapping[str, Any], where: str) -> tuple[Transform, ...]:
    """From an object with the keys that `stored` gave; absent ones are None.

    Raises:
        WrongType: a transform has another value than it may have.
    """
    return tuple(
        transform.restored(row[name], f"{where}.{name}")
        for name, transform in TRANSFORMS.items()
        if row.get(name) is not None
    )


AS_KEYS = {"read": restored, "write": stored}
"""Metadata of a dataclass's field that `files.decoding` holds so."""
