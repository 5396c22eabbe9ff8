"""How long work reports on itself: stages with a number of steps, and notes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fp4dit_onnx.texts import clean

__all__ = ["Advance", "Reporter", "RichReporter", "SilentReporter"]


class Advance(Protocol):
    """Advances a stage."""

    def __call__(self, steps: int, detail: str = "") -> None:
        """By `steps`; `detail` is shown beside the stage's name."""
        ...


class Reporter(Protocol):
    """What a long computation calls."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """A stage of `total` steps; the callable advances it by a number of steps."""
        ...

    def note(self, text: str) -> None:
        """One line worth reading."""
        ...


class SilentReporter:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """A stage that shows nothing."""
        yield lambda steps, detail="": None

    def note(self, text: str) -> None:
        """Drop the line."""


class RichReporter:
    """Bars with time left on a terminal, else a line at each stage's end; always on stderr.

    Args:
        console: where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._progress: Progress | None = None

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """A stage with a bar; stages may nest, and then share one display."""
        if not self._console.is_terminal:
            start = time.monotonic()
            yield lambda steps, detail="": None
            self.note(f"{name}: {total} done in {time.monotonic() - start:.1f} s")
            return
        outermost = self._progress is None
        progress = self._progress or self._make_progress()
        if outermost:
            self._progress = progress
            progress.start()
        task = progress.add_task(clean(name), total=total)

        def advance(steps: int, detail: str = "") -> None:
            shown = f"{name}: {detail}" if detail else name
            progress.update(task, advance=steps, description=clean(shown))

        try:
            yield advance
        finally:
            progress.stop_task(task)
            if outermost:
                progress.stop()
                self._progress = None

    def note(self, text: str) -> None:
        """Print the line, above the bars if any are shown."""
        self._console.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    def _make_progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
