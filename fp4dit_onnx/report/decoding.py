"""JSON values to frozen dataclasses, with an error that names the entry at fault."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["WrongType", "decoded"]

T = TypeVar("T")


class WrongType(ValueError):  # noqa: N818 - says what is wrong, where it is caught
    """An entry is absent or of another type; the message names it."""


def decoded(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of a dataclass from a JSON object.

    Fields may be str, int, float, bool, Any, dataclasses, tuples and mappings by string of these, and
    optional ones of these. Keys that the dataclass does not have are ignored.

    Args:
        cls: a dataclass.
        value: what JSON gave.
        where: place of the value, for messages.

    Raises:
        WrongType: an entry is absent or of another type.
    """
    if not isinstance(value, dict):
        raise WrongType(f"{where or 'the file'} is {_name(value)}, expected an object")
    hints = _hints(cls)
    given = {}
    for item in fields(cls):  # type: ignore[arg-type]
        place = f"{where}.{item.name}" if where else item.name
        if item.name in value:
            given[item.name] = _of_type(hints[item.name], value[item.name], place)
        elif _required(item):
            raise WrongType(f"{place} is absent")
    return cls(**given)


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
"""Types of a dataclass's fields, resolved."""


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _of_type(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _of_type(kind, value, where)
    if origin is tuple:
        items = _checked(list, value, where)
        return tuple(_of_type(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(items))
    if origin is Mapping:
        entries = _checked(dict, value, where)
        return {key: _of_type(arguments[1], one, f"{where}.{key}") for key, one in entries.items()}
    if is_dataclass(kind):
        return decoded(kind, value, where)  # type: ignore[arg-type]
    if kind is float and type(value) is int:
        return float(value)
    return _checked(kind, value, where)


def _checked(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise WrongType(f"{where} is {_name(value)}, expected {_NAMES[kind]}")
    return value


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _name(value: Any) -> str:
    """The JSON name of a value's type."""
    return _NAMES.get(type(value), type(value).__name__)
