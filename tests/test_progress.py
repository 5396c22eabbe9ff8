"""Progress on a terminal and off it, and the estimate of the time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fp4dit_onnx.system.progress import Estimate, LineReporter, Reporters, RichReporter, duration


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


def test_a_terminal_shows_count_and_detail() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=160)
    reporter = RichReporter(console, clock=clock)
    with reporter.stage("calibrating", 4, "blocks") as advance:
        clock.now = 2.0
        advance(1, "blocks.3, error 0.621")
        clock.now = 6.0
        advance(3, "blocks.4 [bold], error 0.584")
    shown = file.getvalue()
    assert "calibrating: blocks.4 [bold], error 0.584" in shown
    assert "4 of 4 blocks 6.0 s" in shown


def test_off_a_terminal_a_short_stage_is_one_line() -> None:
    file, clock = io.StringIO(), Clock()
    reporter = RichReporter(Console(file=file, width=160), clock=clock)
    with reporter.stage("verifying", 3, "cases") as advance:
        clock.now = 4.0
        advance(3, "the last")
    with reporter.stage("loading the model", 1):
        clock.now = 5.5
    assert file.getvalue() == "verifying: 3 of 3 cases in 4.0 s\nloading the model: 1.5 s\n"


def test_off_a_terminal_a_long_stage_says_now_and_then_how_long_it_takes() -> None:
    clock, lines = Clock(), list[str]()
    with LineReporter(lines.append, clock=clock).stage("calibrating", 28, "blocks") as advance:
        for _ in range(280):
            clock.now += 1.0
            advance(0.1, "blocks.0")
    assert lines[0] == "calibrating: 0 of 28 blocks (blocks.0), 5.0 s, about 4 min 35 s left"
    assert lines[1].startswith("calibrating: 1 of 28 blocks (blocks.0), 15.0 s")
    assert lines[-1] == "calibrating: 28 of 28 blocks in 4 min 40 s"
    assert len(lines) == 8  # at 5, 15, 35, 75, 135, 195, 255 s and the end


def test_the_estimate_follows_the_pace() -> None:
    clock = Clock()
    estimate = Estimate(100, clock)
    assert estimate.left is None
    for _ in range(50):
        clock.now += 1.0
        estimate.advance(1)
    assert estimate.left == pytest.approx(50)
    lefts = []
    for _ in range(30):  # from here on every step takes three times as long
        clock.now += 3.0
        estimate.advance(1)
        lefts.append(estimate.left or 0.0)
    assert lefts[0] < 49 * 1.3  # one slow step changes little
    assert lefts[-1] == pytest.approx(20 * 3.0, rel=0.1)  # many are believed


def test_the_estimate_falls_and_rises_between_steps() -> None:
    clock = Clock()
    estimate = Estimate(10, clock)
    clock.now = 10.0
    estimate.advance(1)
    assert estimate.left == pytest.approx(90)
    clock.now += 4.0
    assert estimate.left == pytest.approx(86)
    clock.now += 200.0
    late = estimate.left
    assert late is not None
    assert late > 86
    clock.now += 100.0
    assert (estimate.left or 0.0) > late


def test_what_an_earlier_run_did_says_nothing_about_the_time_left() -> None:
    clock = Clock()
    estimate = Estimate(28, clock)
    for _ in range(20):
        clock.now += 0.01
        estimate.advance(1, timed=False)
    assert estimate.left is None
    clock.now += 60.0
    estimate.advance(1)
    assert estimate.left == pytest.approx(7 * 60)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (7510, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_several_reporters_are_told_the_same() -> None:
    first, second = list[str](), list[str]()
    clock = Clock()
    both = Reporters([LineReporter(lines.append, clock=clock) for lines in (first, second)])
    with both.stage("copying", 2, "files") as advance:
        advance(2)
    both.note("done")
    assert first == second == ["copying: 2 of 2 files in 0.0 s", "done"]
