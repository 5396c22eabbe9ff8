"""The one reader of text and JSON files: what is damaged or hostile is refused in one line.

Text is UTF-8, with or without a byte order mark. JSON is refused where it is nested too deep, holds
a number too long, NaN, a key twice or half a surrogate pair: other programs read such files in
different ways, or fail on them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fp4dit_onnx.errors import BundleError, CheckpointError, UsageError
from fp4dit_onnx.files.decoding import WrongType, decoded

__all__ = [
    "BUNDLE",
    "CHECKPOINT",
    "GIVEN",
    "LARGE",
    "Origin",
    "checked",
    "json_text",
    "parse_json",
    "parse_object",
    "read_bytes",
    "read_json",
    "read_text",
]

SMALL = 16 * 2**20
"""Bytes that a file of settings, or a manifest, may have."""
LARGE = 100 * 2**20
"""Bytes for vocabularies, indexes, reports and safetensors headers, whose own limit this is."""
MAX_DEPTH = 64
"""Objects and lists within each other; transformers' and tokenizers' files have about ten."""
MAX_DIGITS = 64
"""Of a whole number; transformers writes one of 31 for a length without a limit."""

T = TypeVar("T")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Origin:
    """Whose file it is, for messages.

    Attributes:
        error: what is raised.
        cure: what to do about a damaged file.
    """

    error: type[UsageError]
    cure: str


CHECKPOINT = Origin(CheckpointError, "download the file again")
BUNDLE = Origin(BundleError, "export the bundle again, or copy it whole")
GIVEN = Origin(UsageError, "fix it, or give another file")


class _Refused(ValueError):  # noqa: N818 - says what was found, where it is caught
    """JSON that is not read; the message says what was found."""


def read_text(path: Path, what: str, origin: Origin, limit: int = SMALL) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Args:
        path: of the file.
        what: its role, for messages.
        origin: whose file it is.
        limit: bytes that it may have.

    Raises:
        UsageError: of `origin`'s class: no such file, not a plain one, too large, or not UTF-8.
    """
    return _decoded(read_bytes(path, what, origin, limit), str(path), what, origin)


def read_bytes(path: Path, what: str, origin: Origin, limit: int = SMALL) -> bytes:
    """The content of a file; see `read_text`."""
    try:
        if not path.is_file():
            found = "is not a file" if path.exists() else "not found"
            raise origin.error(f"{path} {found}: expected {what}; {origin.cure}")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise origin.error(
            f"{path} cannot be read ({error.strerror}): expected {what}; check its permissions"
        ) from error
    if len(data) > limit:
        raise origin.error(
            f"{path} has {path.stat().st_size} bytes: expected {what} of at most {limit}; "
            f"{origin.cure}"
        )
    return data


def _decoded(data: bytes, place: str, what: str, origin: Origin) -> str:
    if data.startswith(_UTF_16) or b"\0" in data[:4]:
        found = "is not UTF-8 but UTF-16 or UTF-32"
    elif b"\0" in data:
        found = f"is not a text: byte {data.index(0)} is NUL"
    else:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            found = f"is not UTF-8 (byte {error.start})"
    raise origin.error(f"{place} {found}: expected {what} in UTF-8; {origin.cure}")


def read_json(
    path: Path, what: str, origin: Origin, *, limit: int = SMALL, infinite: bool = False
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        what: its role, for messages.
        origin: whose file it is.
        limit: bytes that it may have.
        infinite: whether Infinity may stand in it, as in the settings of diffusers' schedulers.

    Raises:
        UsageError: of `origin`'s class: see `read_text` and `parse_object`.
    """
    data = read_bytes(path, what, origin, limit)
    return parse_object(data, str(path), what, origin, infinite=infinite)


def checked(cls: type[T], content: Mapping[str, Any], place: str, origin: Origin) -> T:
    """`content` as a dataclass; see `decoding.decoded`.

    Args:
        cls: the dataclass.
        content: a JSON object.
        place: where it is from, for messages.
        origin: whose it is.

    Raises:
        UsageError: of `origin`'s class: an entry is absent, of another type or out of range.
    """
    try:
        return decoded(cls, content)
    except WrongType as error:
        raise origin.error(f"{place}: {error}; {origin.cure}") from None


def parse_object(
    data: bytes, place: str, what: str, origin: Origin, *, infinite: bool = False
) -> dict[str, Any]:
    """The JSON object in `data`; see `parse_json`.

    Raises:
        UsageError: of `origin`'s class: also for JSON that is not an object.
    """
    value = parse_json(data, place, what, origin, infinite=infinite)
    if not isinstance(value, dict):
        raise origin.error(
            f"{place} holds a JSON {type(value).__name__}: expected an object, {what}; "
            f"{origin.cure}"
        )
    return value


def parse_json(
    data: bytes, place: str, what: str, origin: Origin, *, infinite: bool = False
) -> Any:
    """The JSON value in `data`.

    Args:
        data: UTF-8.
        place: where it is from, for messages.
        what: its role, for messages.
        origin: whose it is.
        infinite: whether Infinity may stand in it.

    Raises:
        UsageError: of `origin`'s class: not UTF-8, no JSON, or JSON that the module's head names.
    """
    text = _decoded(data, place, what, origin)

    def number(text: str) -> float:
        value = float(text)
        if math.isnan(value) or (math.isinf(value) and not infinite):
            raise _Refused(f"the number {text[:20]}")
        return value

    try:
        value = json.loads(
            text,
            parse_int=_whole,
            parse_float=number,
            parse_constant=number,
            object_pairs_hook=_unique,
        )
        _check_depth(value)
        if _SURROGATE.search(text):
            _check_surrogates(value)
    except RecursionError:
        found = f"is nested more than {MAX_DEPTH} deep"
    except _Refused as error:
        found = f"holds {error}"
    except ValueError as error:
        found = f"is not JSON ({error})"
    else:
        return value
    raise origin.error(f"{place} {found}: expected {what}; {origin.cure}")


def _whole(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_DIGITS:
        raise _Refused(f"a whole number of {digits} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"the key {twice[:40]!r} twice")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [e for item in nested for e in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise RecursionError


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Refused("half a surrogate pair, which is not a character") from None


def json_text(content: Mapping[str, Any]) -> bytes:
    """JSON as it is written: UTF-8, an entry per line, ending in a newline.

    Raises:
        ValueError: it holds NaN or an infinity: see `decoding.plain`.
    """
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
