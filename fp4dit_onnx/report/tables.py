"""Tables and tiles of a report: what they show, and what tables sort by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fp4dit_onnx.system.texts import size

__all__ = [
    "TIMES",
    "Cell",
    "Column",
    "Table",
    "Tile",
    "code",
    "decibels",
    "nbytes",
    "number",
    "plain",
    "table",
]

TIMES = "\u00d7"
"""Between sizes."""


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page.

    Attributes:
        label: what it is.
        value: with unit.
        detail: beside it, smaller.
        words: the value is not a number.
    """

    label: str
    value: str
    detail: str
    words: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it shows.
        number: aligned to the right.
        key: what it sorts by in place of its text; empty for an unknown number, None for the text.
        code: a name from the model, in a fixed width.
    """

    text: str
    number: bool = False
    key: str | None = None
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A heading."""

    text: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of a row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False


def plain(text: object) -> Cell:
    """Words."""
    return Cell(str(text))


def code(text: str) -> Cell:
    """A name from the model."""
    return Cell(text, code=True)


def number(value: float | None, shown: str | None = None) -> Cell:
    """A number; a dash where there is none.

    Args:
        value: to sort by.
        shown: in place of the number with thousands separated.
    """
    if value is None:
        return Cell("-", number=True, key="")
    return Cell(f"{value:,}" if shown is None else shown, number=True, key=repr(value))


def decibels(value: float | None, sign: bool = False) -> Cell:
    """A ratio, its unit in the heading; `sign` for differences."""
    return number(value, None if value is None else f"{value:{'+' if sign else ''}.1f}")


def nbytes(value: int | None) -> Cell:
    """Bytes in a unit for people."""
    return number(value, None if value is None else size(value))


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    sortable: bool = False,
) -> Table:
    """A table; columns whose heading begins with ``>`` hold numbers."""
    headings = tuple(Column(c.removeprefix(">"), c.startswith(">")) for c in columns)
    return Table(caption, headings, tuple(tuple(row) for row in rows), sortable)
