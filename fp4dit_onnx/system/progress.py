"""How long work reports on itself: stages with a number of steps and an estimate, and notes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fp4dit_onnx.system.texts import clean

__all__ = [
    "Advance",
    "Estimate",
    "LineReporter",
    "Reporter",
    "Reporters",
    "RichReporter",
    "SilentReporter",
]

Clock = Callable[[], float]

HALF_LIFE = 0.1
"""Share of a stage after which a step counts half in the estimate of the time left."""
FIRST_LINE, LONGEST_SILENCE = 5.0, 60.0
"""Seconds to the first line about a stage where there is no terminal; the pauses double up to this."""


class Advance(Protocol):
    """Advances a stage."""

    def __call__(self, steps: float, detail: str = "", *, timed: bool = True) -> None:
        """By `steps`.

        Args:
            steps: done since the last call; parts of steps add up.
            detail: shown beside the stage's name.
            timed: False for what an earlier run did, which says nothing about the time left.
        """
        ...


class Reporter(Protocol):
    """What a long computation calls."""

    def stage(self, name: str, total: int, unit: str = "") -> AbstractContextManager[Advance]:
        """A stage of `total` steps; the callable advances it by a number of steps.

        Args:
            name: what is done, such as ``calibrating``.
            total: steps in all.
            unit: what a step is, in the plural, such as ``blocks``.
        """
        ...

    def note(self, text: str) -> None:
        """One line worth reading."""
        ...


class SilentReporter:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """A stage that shows nothing."""
        yield lambda steps, detail="", *, timed=True: None

    def note(self, text: str) -> None:
        """Drop the line."""


class Estimate:
    """How far a stage is and how long it will take, from the pace of its latest steps.

    Args:
        total: steps in all.
        clock: seconds.

    Attributes:
        done: steps.
    """

    def __init__(self, total: float, clock: Clock = time.monotonic) -> None:
        self.done = 0.0
        self._total, self._clock = total, clock
        self._start = self._last = clock()
        self._seconds = self._steps = self._latest = 0.0

    def advance(self, steps: float, *, timed: bool = True) -> None:
        """`steps` are done, since the last call unless not `timed`."""
        self.done += steps
        if not steps:
            return
        if timed:
            self._seconds, self._steps = self._with(steps)
            self._latest = steps
        self._last = self._clock()

    def _with(self, steps: float) -> tuple[float, float]:
        """Weighted seconds and steps if the time since the last call were that of `steps`."""
        keep = 0.5 ** (steps / max(1.0, HALF_LIFE * self._total))
        waited = self._clock() - self._last
        return keep * self._seconds + waited, keep * self._steps + steps

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def left(self) -> float | None:
        """Seconds to go; None before the first step.

        It falls while a step takes its usual time, and rises while one takes longer.
        """
        if not self._steps:
            return None
        steps, pace = self._total - self.done, self._seconds / self._steps
        waited = self._clock() - self._last
        if waited > pace * self._latest:
            seconds, counted = self._with(self._latest)
            return max(0.0, seconds / counted * (steps - self._latest))
        return max(0.0, pace * steps - waited)


def duration(seconds: float) -> str:
    """A time for people: ``9.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Stage:
    """A stage in words.

    Attributes:
        name: what is done.
        detail: the latest.
        estimate: of its steps.
    """

    def __init__(self, name: str, total: int, unit: str, clock: Clock) -> None:
        self.name, self.detail = name, ""
        self._total, self._unit, self._ended = total, unit, ""
        self.estimate = Estimate(total, clock)

    def advance(self, steps: float, detail: str = "", *, timed: bool = True) -> None:
        """See `Advance`."""
        self.detail = detail or self.detail
        self.estimate.advance(steps, timed=timed)

    @property
    def title(self) -> str:
        """Name and detail."""
        return clean(f"{self.name}: {self.detail}" if self.detail else self.name)

    @property
    def count(self) -> str:
        """``3 of 28 blocks``; nothing for a stage of one step that has no unit."""
        if self._total == 1 and not self._unit:
            return ""
        done = int(self.estimate.done + 1e-6)  # parts of steps are sums of floats
        return f"{done} of {self._total} {self._unit}".rstrip()

    @property
    def times(self) -> str:
        """``41.0 s, about 55.0 s left``; of a stage that ended the whole time."""
        if self._ended:
            return self._ended
        left = self.estimate.left
        known = "" if left is None else f", about {duration(left)} left"
        return duration(self.estimate.elapsed) + known

    def now(self) -> str:
        """A line in the midst of it."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.name}: {self.count or 'at work'}{detail}, {self.times}"

    def end(self) -> str:
        """The line that closes it."""
        self._ended = self._ended or duration(self.estimate.elapsed)
        return f"{self.name}: {self.count} in {self._ended}".replace(":  in", ":")


class LineReporter:
    """A line at each stage's end, and in long stages now and then.

    Args:
        write: gets each line.
        verbose: a line at each stage's begin, too, and one per second.
        clock: seconds.
    """

    def __init__(
        self, write: Callable[[str], None], *, verbose: bool = False, clock: Clock = time.monotonic
    ) -> None:
        self.note = write
        self._verbose, self._clock = verbose, clock

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """See `Reporter`."""
        stage = _Stage(name, total, unit, self._clock)
        pause, longest = (1.0, 1.0) if self._verbose else (FIRST_LINE, LONGEST_SILENCE)
        due = self._clock() + pause
        if self._verbose:
            self.note(f"{name}: started")

        def advance(steps: float, detail: str = "", *, timed: bool = True) -> None:
            nonlocal pause, due
            stage.advance(steps, detail, timed=timed)
            if self._clock() >= due and stage.estimate.done + 1e-6 < total:
                self.note(stage.now())
                pause = min(2 * pause, longest)
                due = self._clock() + pause

        yield advance
        self.note(stage.end())


class RichReporter:
    """Bars with the time left on a terminal, else lines; always on stderr.

    Args:
        console: where to write; stderr by default.
        verbose: more of these lines; on a terminal, finished stages stay to be read.
        clock: seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        verbose: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console = console or Console(file=sys.stderr)
        self._lines = LineReporter(self.note, verbose=verbose, clock=clock)
        self._verbose, self._clock = verbose, clock
        self._progress: Progress | None = None

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """A stage with a bar; stages may nest, and then share one display."""
        if not self._console.is_terminal:
            with self._lines.stage(name, total, unit) as advance:
                yield advance
            return
        outermost = self._progress is None
        progress = self._progress or self._make_progress()
        if outermost:
            self._progress = progress
            progress.start()
        stage = _Stage(name, total, unit, self._clock)
        task = progress.add_task("", total=total, stage=stage)

        def show(steps: float, detail: str = "", *, timed: bool = True) -> None:
            stage.advance(steps, detail, timed=timed)
            progress.update(task, advance=steps)

        try:
            yield show
        finally:
            line = stage.end()
            progress.stop_task(task)
            if outermost:
                progress.stop()
                self._progress = None
        if self._verbose:
            self.note(line)

    def note(self, text: str) -> None:
        """Print the line, above the bars if any are shown."""
        self._console.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    def _make_progress(self) -> Progress:
        words = [
            TextColumn(f"{{task.fields[stage].{what}}}", markup=False)
            for what in ("title", "count", "times")
        ]
        return Progress(words[0], BarColumn(), *words[1:], console=self._console)


class Reporters:
    """Tells several reporters the same.

    Args:
        told: any number of them; none reports nothing.
    """

    def __init__(self, told: Sequence[Reporter]) -> None:
        self._told = told

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """See `Reporter`."""
        with ExitStack() as stack:
            all_ = [stack.enter_context(one.stage(name, total, unit)) for one in self._told]

            def advance(steps: float, detail: str = "", *, timed: bool = True) -> None:
                for one in all_:
                    one(steps, detail, timed=timed)

            yield advance

    def note(self, text: str) -> None:
        """See `Reporter`."""
        for one in self._told:
            one.note(text)
