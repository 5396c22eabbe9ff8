"""Text to disk: the same bytes on every system, whatever its own encoding and ends of lines are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["append_text", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a file: UTF-8, lines ending in a newline alone."""
    path.write_bytes(text.encode())


def append_text(path: Path, text: str) -> None:
    """Add to a file in the same way; it is made where there is none."""
    with path.open("ab") as file:
        file.write(text.encode())
