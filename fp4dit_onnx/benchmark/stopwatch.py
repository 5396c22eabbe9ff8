"""Where the time of a computation goes: calls of its parts, timed without what they call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stopwatch"]


class Stopwatch:
    """Seconds by stage; a stage within another counts in the inner one alone.

    Attributes:
        seconds: stage -> seconds of each time that it ran.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._clock = clock
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = self._clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = self._clock() - start
            own = whole - self._inner.pop()
            self._inner[-1] += whole
            self.seconds.setdefault(name, []).append(own)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, each time as a stage."""

        def run(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return call(*arguments, **named)

        return run
