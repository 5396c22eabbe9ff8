"""Text from outside: shown on a terminal and never obeyed, UTF-8 where others read it; sizes."""

from __future__ import annotations

import io
import os
import re
import sys

from fp4dit_onnx.errors import UsageError

__all__ = ["clean", "prepare_streams", "size", "utf8_text"]

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: escape sequences move the cursor, colour, rename the window
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # turn or break lines: a name reads as another
    "\ud800-\udfff]"  # bytes of a file name that are no text
)


def clean(text: str) -> str:
    r"""`text` in one line, with what a terminal would obey as escapes such as ``\x1b``."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def prepare_streams() -> None:
    """Let stdout and stderr show what their encoding lacks as escapes, in place of an error.

    One that the caller closed discards what is written, and keeps its descriptor from other files.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - stays open
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def utf8_text(what: str, text: str) -> str:
    """A prompt, a word of the command line, or a path, as the UTF-8 text that its bytes are.

    In an ASCII locale Python hands on each byte that is not ASCII as a surrogate.

    Raises:
        UsageError: they are no UTF-8, or `text` is not a str.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} is of type {type(text).__name__}: expected a str")
    try:
        return text if text.isascii() else _bytes(text).decode()
    except UnicodeError as error:
        raise UsageError(
            f"{what} {text!r} is not UTF-8: expected UTF-8 text; give another"
        ) from error


def _bytes(text: str) -> bytes:
    escaped = any("\udc80" <= character <= "\udcff" for character in text)
    return os.fsencode(text) if escaped else text.encode()


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1024."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
