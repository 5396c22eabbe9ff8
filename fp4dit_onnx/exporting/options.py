"""Settings: help, unit and choices of each, defined once for help, completion and docs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = [
    "CALIBRATION",
    "FORMATS",
    "INPUT",
    "MACHINE",
    "OUTPUT",
    "PANELS",
    "SAMPLING",
    "Option",
]

INPUT = "Input"
FORMATS = "Formats"
CALIBRATION = "Calibration"
SAMPLING = "Sampling"
OUTPUT = "Output"
MACHINE = "Machine"
PANELS = (INPUT, FORMATS, CALIBRATION, SAMPLING, OUTPUT, MACHINE)
"""Headings of help, in order."""


@dataclass(frozen=True)
class Option:
    """The description of a setting, in ``Annotated`` with its type.

    Attributes:
        help: a sentence or two, plain text.
        panel: the heading of ``--help`` that it stands under.
        unit: what its number counts, such as ``GiB``, or what its text is, such as ``DIR``.
        choices: the texts that it can be, or a function that gives them.
        flags: its spellings on the command line; by default its name.
        scale: how many of the value are one of the unit, such as bytes per GiB.
        min: the smallest number, in the unit.
        max: the largest.
        positional: an argument without a flag.
        hidden: not shown in help.
    """

    help: str
    panel: str
    unit: str | None = None
    choices: Iterable[str] | Callable[[], Iterable[str]] = ()
    flags: tuple[str, ...] = ()
    scale: int = 1
    min: float | None = None
    max: float | None = None
    positional: bool = False
    hidden: bool = False

    def known(self) -> tuple[str, ...]:
        """The choices; empty where any text will do."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    def text(self) -> str:
        """The help with the choices."""
        known = self.known()
        return f"{self.help} One of: {', '.join(known)}." if known else self.help
