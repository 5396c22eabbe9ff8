"""What commands print: JSON alone, or tables; sizes for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fp4dit_onnx.progress import Reporter, RichReporter, SilentReporter
from fp4dit_onnx.texts import clean

__all__ = ["decibels", "print_json", "print_line", "print_table", "reporter", "size"]

MIN_WIDTH = 200
"""Columns of a table where output is no terminal and wraps nothing."""


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    return console


def reporter(*, quiet: bool = False) -> Reporter:
    """Progress on stderr, or none."""
    return SilentReporter() if quiet else RichReporter()


def print_json(content: Mapping[str, Any]) -> None:
    """The only thing that a command with --json writes to stdout."""
    print(json.dumps(content, indent=1))


def print_line(text: str) -> None:
    """One line on stdout, never wrapped or coloured."""
    _console().print(clean(text), markup=False, soft_wrap=True)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, footer: bool = False
) -> None:
    """A table on stdout.

    Args:
        title: above it.
        columns: headings; one that begins with ``>`` is aligned to the right.
        rows: cells, without markup; see `clean` for what is shown of control characters.
        footer: the last row is a sum, set apart.
    """
    table = Table(
        title=Text(clean(title)), title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    for column in columns:
        if column.startswith(">"):
            table.add_column(column.removeprefix(">"), justify="right")
        else:
            table.add_column(column, overflow="fold")
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    for number, row in enumerate(cells):
        table.add_row(*row, end_section=footer and number == len(cells) - 2)
    _console().print(table, markup=False)


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1024."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def decibels(value: float | None) -> str:
    """A ratio in dB, or a dash where none was measured."""
    return "-" if value is None else f"{value:.1f} dB"
