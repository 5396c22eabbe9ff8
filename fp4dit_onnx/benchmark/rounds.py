"""Timing backends in turns: every round gives each one its turn, in rotating order.

A momentary slowdown of the machine then affects all of them, and a ratio of two backends is
taken within a round. Between turns it waits until the process is idle, because threads of a pool that
spin after their work would take cores from the next backend.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Rounds",
    "Spread",
    "Turn",
    "estimate",
    "interleave",
    "plan_rounds",
    "ratios",
    "settle",
    "takes_part",
]

Clock = Callable[[], float]
Rounds = Mapping[str, Sequence[float | None]]
"""Backend -> seconds per call in each round; None where it sat the round out."""

TURN_SECONDS = 0.01
"""Shorter calls are repeated to about this long: a clock and a wake-up are then a small share."""
SETTLE_SECONDS = 0.004
"""Usual wait until the process is idle."""
FEWEST, MOST = 5, 500
"""Rounds."""
FEWEST_SLOW = 3
"""Rounds of a slow backend."""
SLOW = 4.0
"""A turn longer than this many median turns counts as slow: it comes only every so many rounds."""


@dataclass(frozen=True)
class Spread:
    """A median, the quartiles around it, the least and the most, all of one unit.

    Reports of earlier versions have no least and no most.
    """

    median: float
    low: float
    high: float
    least: float | None = None
    most: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the most, where they are known; else the quartiles."""
        return (
            self.low if self.least is None else self.least,
            self.high if self.most is None else self.most,
        )

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of `values`, at least one."""
        if len(values) == 1:
            return cls(*5 * (values[0],))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, min(values), max(values))


class Turn:
    """One backend's turn: a call that wakes its threads, then timed ones.

    Args:
        run: computes once.
        seconds: about what a call takes; from `TURN_SECONDS` on a turn is one call.
        clock: seconds.
        before: called before every call, and not timed; then no call wakes the threads.
    """

    def __init__(
        self,
        run: Callable[[], object],
        seconds: float,
        clock: Clock = time.perf_counter,
        before: Callable[[], object] | None = None,
    ) -> None:
        self._run, self._clock, self._before = run, clock, before
        self.calls = max(1, math.ceil(TURN_SECONDS / max(seconds, 1e-7))) if before is None else 1
        self.wakes = self.calls > 1
        self.seconds = seconds * (self.calls + self.wakes)

    def __call__(self) -> float:
        """Take the turn; seconds per call."""
        if self.wakes:
            self._run()
        if self._before is not None:
            self._before()
        start = self._clock()
        for _ in range(self.calls):
            self._run()
        return (self._clock() - start) / self.calls


def estimate(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """About what a call takes, in seconds: the least of a few short calls, or one long one."""
    least, spent = math.inf, 0.0
    while spent < TURN_SECONDS:
        start = clock()
        run()
        seconds = clock() - start
        least, spent = min(least, seconds), spent + seconds
    return least


def settle(
    *,
    cpu_clock: Clock = time.process_time,
    sleep: Callable[[float], None] = time.sleep,
    pause: float = 0.002,
    attempts: int = 50,
) -> bool:
    """Wait until no thread of this process computes.

    Args:
        cpu_clock: CPU seconds of all threads.
        sleep: waits for that many seconds.
        pause: seconds between two looks.
        attempts: looks before giving up.

    Returns:
        Whether it came to rest: less than a fifth of a core was in use.
    """
    for _ in range(attempts):
        before = cpu_clock()
        sleep(pause)
        if cpu_clock() - before < pause / 5:
            return True
    return False


def plan_rounds(
    turns: Mapping[str, float], seconds: float, rounds: int | None = None
) -> dict[str, int]:
    """In how many rounds each backend takes part; the largest number is that of all rounds.

    Args:
        turns: backend -> seconds of its turn.
        seconds: what all rounds may take together, unless the fewest rounds take longer.
        rounds: fixes the number for all.
    """
    if rounds is not None or not turns:
        return dict.fromkeys(turns, rounds or 0)
    cost = {name: turn + SETTLE_SECONDS for name, turn in turns.items()}
    cap = SLOW * statistics.median(cost.values())
    total = int(seconds / sum(min(one, cap) for one in cost.values()))
    total = min(max(total, FEWEST), MOST)
    return {
        name: total if one <= cap else max(FEWEST_SLOW, int(total * cap / one))
        for name, one in cost.items()
    }


def takes_part(number: int, own: int, total: int) -> bool:
    """Whether a backend with `own` of `total` rounds is in round `number`, spread evenly."""
    return (number + 1) * own // total > number * own // total


def interleave(
    turns: Mapping[str, Callable[[], float | None]],
    counts: Mapping[str, int],
    *,
    rest: Callable[[], object] = settle,
    advance: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float | None]]:
    """Run all rounds; each starts with the next backend in line.

    Args:
        turns: backend -> takes its turn, returns seconds per call, None if it could not.
        counts: as `plan_rounds` gives them.
        rest: called before every turn.
        advance: called after every turn.
    """
    names, total = list(turns), max(counts.values(), default=0)
    times: dict[str, list[float | None]] = {name: [None] * total for name in names}
    for number in range(total):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if takes_part(number, counts[name], total):
                rest()
                times[name][number] = turns[name]()
                advance(name)
    return times


def ratios(times: Rounds, name: str, baseline: str) -> list[float]:
    """How many times as fast as `baseline` backend `name` was, in each round that has both."""
    pairs = zip(times.get(baseline, ()), times[name], strict=False)
    return [base / own for base, own in pairs if base is not None and own is not None]
