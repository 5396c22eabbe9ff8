"""JSON values to frozen dataclasses and back, with an error that names the entry at fault."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fp4dit_onnx.errors import UsageError

__all__ = [
    "Count",
    "Positive",
    "Range",
    "WrongType",
    "decoded",
    "expected",
    "of_type",
    "plain",
    "shown",
]

T = TypeVar("T")


class WrongType(ValueError):  # noqa: N818 - says what is wrong, where it is caught
    """An entry is absent, of another type or out of range; the message names it."""


@dataclass(frozen=True)
class Range:
    """What a number may be; stands in ``Annotated``.

    Attributes:
        low: the least.
        high: the most.
    """

    low: float
    high: float

    def __str__(self) -> str:
        """As messages show it."""
        return f"from {self.low:.15g} to {self.high:.15g}"


Count = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[int, Range(1, 2**31 - 1)]


def decoded(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of a dataclass from a JSON object.

    Fields may be str, int, float, bool, Any, dataclasses, tuples and mappings by string of these,
    unions of these, literal texts, and numbers with a `Range`. A field whose metadata have ``read``
    and ``write`` is what these make of the whole object, and give in keys of it. Keys that the
    dataclass does not have are ignored.

    Args:
        cls: a dataclass.
        value: what JSON gave.
        where: place of the value, for messages.

    Raises:
        WrongType: an entry is absent, of another type or out of range.
    """
    if not isinstance(value, dict):
        raise WrongType(f"{where or 'the file'} is {shown(value)}, expected an object")
    hints = _hints(cls)
    given = {}
    for item in fields(cls):  # type: ignore[arg-type]
        place = f"{where}.{_key(item)}" if where else _key(item)
        if "read" in item.metadata:  # of several keys
            given[item.name] = item.metadata["read"](value, where)
        elif (key := _key(item)) in value:
            given[item.name] = of_type(hints[item.name], value[key], place)
        elif _required(item):
            raise WrongType(f"{place} is absent")
    try:
        return cls(**given)
    except UsageError as error:  # of a class that checks itself
        raise WrongType(f"{where or 'the file'}: {error}") from None


_hints: Callable[[Any], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))
"""Types of a dataclass's fields, resolved."""


def _key(item: Field[Any]) -> str:
    """In JSON; a field that Python cannot name so has it in its metadata."""
    return str(item.metadata.get("key", item.name))


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def of_type(kind: Any, value: Any, where: str) -> Any:
    """`value` as an instance of `kind`, one of the types that `decoded` knows.

    Raises:
        WrongType: it is none.
    """
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Annotated:
        return _in_range(arguments[1], of_type(arguments[0], value, where), where)
    if origin is Literal:
        if value not in arguments or type(value) is not str:
            raise WrongType(f"{where} is {shown(value)}, expected {' or '.join(arguments)}")
        return value
    if origin is tuple:
        return _tuple(arguments, _checked(list, value, where), where)
    if origin is Mapping:
        entries = _checked(dict, value, where)
        return {
            key: of_type(arguments[1], one, f"{where}.{key[:80]}") for key, one in entries.items()
        }
    if is_dataclass(kind):
        return decoded(kind, value, where)  # type: ignore[arg-type]
    if kind is float and type(value) is int:
        return float(value)
    return _checked(kind, value, where)


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    if len(wanted) > 1:
        wanted = [kind for kind in wanted if _fits(kind, value)]
    if not wanted:
        raise WrongType(f"{where} is {shown(value)}, expected {' or '.join(map(expected, kinds))}")
    return of_type(wanted[0], value, where)


def _fits(kind: Any, value: Any) -> bool:
    try:
        of_type(kind, value, "")
    except WrongType:
        return False
    return True


def _tuple(kinds: tuple[Any, ...], items: list[Any], where: str) -> tuple[Any, ...]:
    if kinds[-1] is not Ellipsis:
        if len(items) != len(kinds):
            raise WrongType(f"{where} has {len(items)} entries, expected {len(kinds)}")
        given = zip(kinds, items, strict=True)
    else:
        given = zip(kinds[:1] * len(items), items, strict=True)
    return tuple(of_type(kind, one, f"{where}[{i}]") for i, (kind, one) in enumerate(given))


def _in_range(allowed: Any, value: Any, where: str) -> Any:
    if isinstance(allowed, Range) and not allowed.low <= value <= allowed.high:
        raise WrongType(f"{where} is {shown(value)}, expected a number {allowed}")
    return value


def _checked(kind: Any, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise WrongType(f"{where} is {shown(value)}, expected {expected(kind)}")
    return value


_NAMES: Mapping[Any, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def expected(kind: Any) -> str:
    """What messages call a type that was wanted."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(expected, arguments))
    if origin is Annotated:
        return f"{expected(arguments[0])} {arguments[1]}"
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (tuple, list) and arguments:
        return f"a list, each entry {expected(arguments[0])}"
    return _NAMES.get({Mapping: dict}.get(origin, origin or kind), "an object")


def shown(value: Any) -> str:
    """What messages call a value that was found: a short one itself, else its type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float) and len(repr(value)) <= 40:
        return repr(value)
    return _NAMES.get(type(value), type(value).__name__)


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON has them; numbers that JSON lacks become null."""
    if is_dataclass(value) and not isinstance(value, type):
        row: dict[str, Any] = {}
        for item in fields(value):
            own = getattr(value, item.name)
            row |= (
                item.metadata["write"](own)
                if "write" in item.metadata
                else {_key(item): plain(own)}
            )
        return row
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
