"""Timing in turns, on clocks and times that are made up."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp4dit_onnx.benchmark import cold
from fp4dit_onnx.benchmark.rounds import (
    FEWEST,
    FEWEST_SLOW,
    MOST,
    TURN_SECONDS,
    Spread,
    Turn,
    estimate,
    interleave,
    plan_rounds,
    ratios,
    settle,
    takes_part,
)


class FakeClock:
    """A clock that stands still until something takes time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def work(self, *seconds: float) -> None:
        """A call that takes that long; the last of several durations is that of all later ones."""
        self.now += seconds[min(self.calls, len(seconds) - 1)]
        self.calls += 1


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    assert Spread.of([7.0]) == Spread(*5 * [7.0])
    assert Spread.of([1.0, 1.0, 1.0, 1.0, 900.0]).median == 1.0


def test_short_calls_are_repeated_after_one_that_wakes() -> None:
    clock = FakeClock()
    turn = Turn(lambda: clock.work(0.5, 0.001), TURN_SECONDS / 10, clock)
    assert (turn.calls, turn.wakes) == (10, True)
    assert turn() == pytest.approx(0.001)  # the first call's half second does not count
    assert clock.calls == 11


def test_a_long_call_is_a_turn() -> None:
    clock = FakeClock()
    turn = Turn(lambda: clock.work(3.0), 2.5, clock)
    assert (turn.calls, turn.wakes, turn.seconds) == (1, False, 2.5)
    assert turn() == 3.0
    assert clock.calls == 1


def test_a_cold_call_is_timed_alone() -> None:
    """What empties the caches is not timed, and no call before it fills them again."""
    clock, order = FakeClock(), []

    def said(what: str, seconds: float) -> None:
        order.append(what)
        clock.now += seconds

    turn = Turn(
        lambda: said("run", 0.001), TURN_SECONDS / 10, clock, before=lambda: said("evict", 9.0)
    )
    assert (turn.calls, turn.wakes) == (1, False)
    assert [turn(), turn()] == pytest.approx([0.001, 0.001])
    assert order == ["evict", "run"] * 2


def test_buffers_fill_the_largest_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, size in enumerate(("32K", "1024K", "8M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert cold.cache_bytes(tmp_path) == 8 * 2**20
    assert cold.cache_bytes(tmp_path / "none") == cold.UNKNOWN_CACHE
    affinity, bound = os.sched_getaffinity(0), set()

    def add(buffer: Any, value: int, out: Any) -> None:
        bound.add((*os.sched_getaffinity(0), out.nbytes))

    monkeypatch.setattr(cold, "LEAST", 1000)
    monkeypatch.setattr(cold, "cache_bytes", lambda: 5000 * len(affinity))
    monkeypatch.setattr(np, "add", add)
    cold.evictor.__wrapped__()()
    assert bound == {(core, 10_000) for core in affinity}
    assert os.sched_getaffinity(0) == affinity, "threads are bound, the process is not"


def test_pages_of_files_leave_memory(tmp_path: Path) -> None:
    """Pages that are in memory before are not after."""
    path = tmp_path / "part" / "model.onnx.data"
    path.parent.mkdir()
    path.write_bytes(bytes(2**20))
    if resident_pages(path) == 0:
        pytest.skip("this file system keeps no pages")
    cold.drop_pages([tmp_path])
    assert resident_pages(path) == 0


def resident_pages(path: Path) -> int:
    """Pages of a file that are in memory."""
    libc, size = ctypes.CDLL(None), ctypes.c_size_t(path.stat().st_size)
    libc.mmap.restype = ctypes.c_void_p
    pages = (ctypes.c_ubyte * (size.value // mmap.PAGESIZE))()
    with path.open("rb") as file:
        mapped = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        at = ctypes.c_void_p(mapped)
        assert libc.mincore(at, size, pages) == 0
        libc.munmap(at, size)
    return sum(page & 1 for page in pages)


def test_estimate_is_the_least_of_short_calls_and_one_long_call() -> None:
    clock = FakeClock()
    assert estimate(lambda: clock.work(0.006, 0.002, 0.003), clock) == pytest.approx(0.002)
    assert clock.calls == 3
    clock = FakeClock()
    assert estimate(lambda: clock.work(9.0, 1.0), clock) == 9.0
    assert clock.calls == 1


def test_rounds_fit_the_seconds() -> None:
    counts = plan_rounds({"a": 0.046, "b": 0.046}, seconds=2.0)
    assert counts == {"a": 20, "b": 20}
    assert plan_rounds({"a": 50.0}, seconds=1.0) == {"a": FEWEST}
    assert plan_rounds({"a": 1e-6}, seconds=1e6) == {"a": MOST}
    assert plan_rounds({"a": 50.0, "b": 1e-6}, seconds=1.0, rounds=3) == {"a": 3, "b": 3}
    assert plan_rounds({}, seconds=1.0) == {}


def test_a_slow_backend_sits_rounds_out() -> None:
    counts = plan_rounds({"a": 0.016, "b": 0.016, "slow": 1.0}, seconds=12.0)
    assert counts["a"] == counts["b"] == 100  # 0.02 s each, and the slow one counts for 0.08
    assert counts["slow"] == int(100 * 0.08 / 1.004)
    assert plan_rounds({"a": 0.016, "b": 0.016, "slow": 9.0}, 1.0)["slow"] == FEWEST_SLOW


@pytest.mark.parametrize(("own", "total"), [(1, 1), (3, 10), (7, 10), (10, 10), (5, 499)])
def test_rounds_taken_part_in_are_spread(own: int, total: int) -> None:
    taken = [number for number in range(total) if takes_part(number, own, total)]
    assert len(taken) == own
    gaps = {later - earlier for earlier, later in itertools.pairwise(taken)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_every_round_starts_with_the_next_backend() -> None:
    order: list[str] = []
    rests: list[int] = []
    turns = {name: lambda name=name: float(order.append(name) or len(order)) for name in "abc"}
    times = interleave(turns, dict.fromkeys("abc", 4), rest=lambda: rests.append(len(order)))
    assert "".join(order) == "abcbcacababc"
    assert rests == list(range(12)), "the machine comes to rest before every turn"
    assert times["a"] == [1.0, 6.0, 8.0, 10.0]


def test_who_sits_out_has_no_time() -> None:
    shown: list[str] = []
    turns = {"fast": lambda: 1.0, "slow": lambda: 9.0}
    times = interleave(turns, {"fast": 4, "slow": 2}, rest=lambda: None, advance=shown.append)
    assert times["fast"] == [1.0] * 4
    assert times["slow"] == [None, 9.0, None, 9.0]
    assert sorted(shown) == ["fast"] * 4 + ["slow"] * 2
    assert interleave({}, {}) == {}


def test_ratios_are_taken_round_by_round() -> None:
    times = {"base": [10.0, 20.0, 30.0, None], "own": [5.0, None, 3.0, 1.0]}
    assert ratios(times, "own", "base") == [2.0, 10.0]
    assert ratios(times, "base", "base") == [1.0, 1.0, 1.0]
    assert ratios(times, "own", "nobody") == []


def test_settle_waits_for_busy_threads() -> None:
    busy = iter([0.002, 0.002, 0.0001])  # CPU seconds in each pause
    cpu = FakeClock()
    assert settle(cpu_clock=cpu, sleep=lambda _: cpu.work(next(busy)))
    assert cpu.calls == 3


def test_settle_gives_up() -> None:
    cpu = FakeClock()
    assert not settle(cpu_clock=cpu, sleep=lambda pause: cpu.work(2 * pause), attempts=4)
    assert cpu.calls == 4
