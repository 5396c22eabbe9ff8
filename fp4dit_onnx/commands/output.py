"""What commands print: JSON alone, or tables; sizes for people."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import append_text, plain
from fp4dit_onnx.system.outputs import check_place
from fp4dit_onnx.system.progress import LineReporter, Reporter, Reporters, RichReporter
from fp4dit_onnx.system.texts import clean

__all__ = [
    "Messages",
    "configure",
    "decibels",
    "messages",
    "print_error",
    "print_json",
    "print_line",
    "print_table",
    "reporter",
]

MIN_WIDTH = 200
"""Columns of a table where output is not a terminal and wraps nothing."""


@dataclass(frozen=True)
class Messages:
    """How much a run says.

    Attributes:
        quiet: nothing but errors and JSON.
        verbose: every stage as a line with its details; errors with their traceback.
        log_file: gets everything that `verbose` prints, with times, after what is there.
    """

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None


_current = Messages()


def configure(messages: Messages) -> None:
    """Set how much the rest of this process says.

    Raises:
        UsageError: the log file cannot be written.
    """
    global _current
    if messages.log_file is not None and messages.log_file != _current.log_file:
        if not os.path.lexists(messages.log_file):
            check_place(messages.log_file)
        _log(messages.log_file, shlex.join(sys.argv), "given")
    _current = messages


def messages() -> Messages:
    """How much this process says."""
    return _current


def _log(file: Path | None, text: str, kind: str = "") -> None:
    """Append lines with the time to the log file, if there is one."""
    if file is None:
        return
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"{now} {kind + ': ' if kind else ''}{clean(line)}\n" for line in text.splitlines()]
    try:
        append_text(file, "".join(lines))
    except OSError as error:
        raise UsageError(
            f"log file {file} cannot be written ({error.strerror}): choose another with --log-file"
        ) from error


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    return console


def reporter() -> Reporter:
    """Progress on stderr and in the log file, as the options say."""
    told: list[Reporter] = []
    if not _current.quiet:
        told.append(RichReporter(verbose=_current.verbose))
    if _current.log_file is not None:
        told.append(LineReporter(functools.partial(_log, _current.log_file), verbose=True))
    return Reporters(told)


def print_error(message: str) -> None:
    """One line on stderr; the traceback of the exception being handled where details are wanted."""
    trace = traceback.format_exc() if sys.exc_info()[0] else ""
    if _current.verbose:
        print("\n".join(clean(line) for line in trace.splitlines()), file=sys.stderr)
    print("error: " + clean(message), file=sys.stderr)
    with contextlib.suppress(UsageError):  # the disk may be full, and that was the error
        _log(_current.log_file, f"{trace}error: {message}")


def print_json(content: Mapping[str, Any] | Sequence[Any]) -> None:
    """The only thing that a command with --json writes to stdout."""
    print(json.dumps(plain(content), indent=1, allow_nan=False))


def print_line(text: str) -> None:
    """One line on stdout, never wrapped or coloured."""
    _log(_current.log_file, text)
    if not _current.quiet:
        _console().print(clean(text), soft_wrap=True)


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
        title=Text(clean(title)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        if column.startswith(">"):
            table.add_column(column.removeprefix(">"), justify="right")
        else:
            table.add_column(column, overflow="fold")
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    for number, row in enumerate(cells):
        table.add_row(*row, end_section=footer and number == len(cells) - 2)
    if _current.log_file is not None:
        text = io.StringIO()
        Console(file=text, width=MIN_WIDTH, markup=False, highlight=False).print(table)
        _log(_current.log_file, text.getvalue())
    if not _current.quiet:
        _console().print(table)


def decibels(value: float | None) -> str:
    """A ratio in dB, or a dash where none was measured."""
    return "-" if value is None else f"{value:.1f} dB"
