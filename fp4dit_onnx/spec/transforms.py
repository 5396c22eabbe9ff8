"""The transforms of inputs: a file each, a line each here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.transform import Transform

__all__ = ["AS_KEYS", "TRANSFORMS", "stored", "transform_of"]

TRANSFORMS: dict[str, type[Transform]] = {one.name: one for one in (Hadamard,)}
"""By name, in the order in which they are applied."""


def transform_of(operator: str, attributes: Mapping[str, Any]) -> Transform | None:
    """What a node does to its input, alone or before it quantizes; None for no transform.

    Raises:
        UsageError: an attribute of another value than it may have.
    """
    for transform in TRANSFORMS.values():
        if operator in (transform.operator, transform.quantizer):
            return transform.of_node(attributes)
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
