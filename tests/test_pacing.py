"""A calibration that keeps to a time: what is picked, what is timed, and what a resumed run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from toy_network import LAYERS, sampler_of, toy_network

from fp4dit_onnx.calibration.methods import method_by_name, with_settings
from fp4dit_onnx.calibration.pacing import (
    FEWEST_ITERATIONS,
    LEVELS,
    MOST_ITERATIONS,
    Division,
    Speed,
    affordable,
    data_seconds,
    walk_seconds,
)
from fp4dit_onnx.calibration.run import calibrate
from fp4dit_onnx.calibration.sampling import load_pipeline
from fp4dit_onnx.calibration.timing import Pace
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.pacing import paced
from fp4dit_onnx.exporting.plan import ExportRequest, plan
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.values import seconds_of

METHOD = method_by_name("fp4dit")
SPEED = Speed(prompt=2.0, row=0.5, after=100.0)
OF_1024 = {"steps": 20, "side": 1024, "halves": 2, "method": METHOD}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), (" 1.5h ", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "m", "-5m", "0s", "0.5s", "1e3s", "5 min", "٣m", "nanm"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="time"):
        seconds_of(text)


@pytest.mark.parametrize("method", ["fp4dit", "tuned"])
def test_more_time_affords_more_data_and_never_more_than_its_share(method: str) -> None:
    made, amounts = method_by_name(method), []
    for seconds in (4000, 8000, 30_000, 10**6):
        found = affordable(seconds, SPEED, **{**OF_1024, "method": made})
        data = data_seconds(found, SPEED, 2, made) + walk_seconds(found, SPEED, made)
        assert data <= (0.5 if made.iterations else 0.85) * (seconds - SPEED.after)
        amounts.append((found.prompts * found.steps, -found.part))
    assert amounts == sorted(amounts)
    assert amounts[0] < amounts[-1] == (20 * LEVELS[-1].prompts, -1)


def test_short_times_take_smaller_images_where_the_network_can() -> None:
    assert affordable(1500, SPEED, **OF_1024).part > 1
    assert affordable(1500, SPEED, **OF_1024, resizes=False).part == 1
    assert affordable(1500, SPEED, **{**OF_1024, "side": 256}).part == 1


def test_too_short_a_time_says_what_would_do() -> None:
    with pytest.raises(UsageError, match=r"takes about (\d+\.\d) here") as refused:
        affordable(150, SPEED, **{**OF_1024, "side": 256})
    minutes = float(str(refused.value).split("about ")[1].split()[0])
    affordable(60 * minutes + 6, SPEED, **{**OF_1024, "side": 256})


class Machine:
    """A clock that work moves on, by as much as the machine is slow just then.

    Args:
        slowness: of the machine, by the seconds that have passed.
    """

    def __init__(self, slowness: Callable[[float], float]) -> None:
        self.now, self._slowness = 0.0, slowness

    def work(self, seconds: float) -> None:
        """As many as it takes at a slowness of 1."""
        for _ in range(100):
            self.now += seconds / 100 * self._slowness(self.now)


SECONDS = 8000.0
SIZES = {**{f"embedder.{i}": 0.01 for i in range(5)}, **{f"block.{i}": 1.0 for i in range(28)}}
SIZES |= {"block.7": 2.0, "proj_out": 0.02}
MACHINES: dict[str, Callable[[float], float]] = {
    "even": lambda now: 1.0,
    "slower later": lambda now: 1.0 if now < SECONDS / 2 else 3.0,
    "slower after the timing": lambda now: 1.0 if now < SECONDS / 100 else 1.7,
    "faster later": lambda now: 3.0 if now < SECONDS / 3 else 1.0,
    "now this, now that": lambda now: 0.6 if int(now / 300) % 2 else 2.0,
    "slow in the middle": lambda now: 3.0 if SECONDS / 3 < now < SECONDS / 2 else 1.0,
}


@pytest.mark.parametrize("timed", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", MACHINES)
def test_a_run_ends_within_a_quarter_of_its_time(name: str, timed: float) -> None:
    """From the timing to the end, with an optimizer step that takes more or less than it was timed."""
    machine, slow = Machine(MACHINES[name]), MACHINES[name](0)
    measured = Speed(SPEED.prompt * slow, SPEED.row * slow, SPEED.after * slow)
    effort = affordable(SECONDS, measured, **OF_1024)
    machine.work(data_seconds(effort, SPEED, 2, METHOD))
    step, walk = 0.4, walk_seconds(effort, SPEED, METHOD)
    division = Division(
        left=lambda: SECONDS - machine.now,
        after=measured.after,
        walk=walk_seconds(effort, measured, METHOD),
        step=step * timed * MACHINES[name](machine.now),
        sizes=SIZES,
        clock=lambda: machine.now,
    )
    for unit, size in SIZES.items():
        steps = division.begin(unit)
        machine.work(size * (walk / sum(SIZES.values()) + steps * step))
        division.finish(unit)
    machine.work(SPEED.after)
    assert 0.75 * SECONDS < machine.now < 1.25 * SECONDS


def test_units_that_run_at_once_share_the_time() -> None:
    """Two workers: what is begun and not finished counts, and the pace is that of both."""
    now, ends, sizes = 0.0, dict[str, float](), dict.fromkeys("abcdefghijklmnop", 1.0)
    division = Division(lambda: 1000 - now, 100.0, 0.0, 1.0, sizes, lambda: now)
    for name in sizes:
        if len(ends) == 2:
            first = min(ends, key=ends.__getitem__)
            now = ends.pop(first)
            division.finish(first)
        ends[name] = now + division.begin(name)
    assert 0.75 * 1000 < max(ends.values()) + 100 < 1.25 * 1000


def test_iterations_have_bounds() -> None:
    def first(left: float) -> int:
        return Division(lambda: left, 10.0, 10.0, 0.5, {"a": 1.0, "b": 0.0}).begin("a")

    assert first(1e9) == MOST_ITERATIONS
    assert first(-5) == first(0) == 0


def test_iterations_that_were_asked_for_are_every_units() -> None:
    """Though there is time for fewer, or for more; later units know what they take."""
    for left in (1.0, 60.0, 1e6):
        division = Division(lambda: left, 10.0, 10.0, 0.5, {"a": 1.0, "b": 1.0}, asked=20)  # noqa: B023
        assert [division.begin("a"), division.begin("b")] == [20, 20]


def test_units_without_time_leave_theirs_to_later_ones() -> None:
    """280 steps are useless to 28 units of 10, and enough for five."""
    now, steps = 0.0, []
    sizes = {str(i): 1.0 for i in range(28)}
    division = Division(lambda: 280.0 - now, 0.0, 0.0, 1.0, sizes, lambda: now)
    for name in sizes:
        steps.append(division.begin(name))
        now += steps[-1]
        division.finish(name)
    trained = [n for n in steps if n]
    assert min(trained) >= FEWEST_ITERATIONS
    assert steps == [0] * (28 - len(trained)) + trained
    assert 230 < sum(trained) <= 280


def test_what_an_earlier_run_finished_takes_no_time() -> None:
    given = Division(lambda: 100.0, 0.0, 0.0, 0.5, {"a": 3.0, "b": 1.0})
    given.skip("a")
    assert given.begin("b") == 200


def test_a_resumed_calibration_keeps_what_is_finished(tmp_path: Path) -> None:
    """Blocks of the first run have its iterations, and are not trained again."""
    network = toy_network()
    method = method_by_name("fp4dit", "fast", samples=64, prompts=4)

    def run(seconds: float, kill_at: int) -> Any:
        asked: list[int] = []

        def settle(iterations: int) -> Any:
            asked.append(iterations)
            if len(asked) == kill_at:
                raise KeyboardInterrupt
            return with_settings(method, {"iterations": min(iterations, 20)})

        return calibrate(
            whole(network),
            dict.fromkeys(LAYERS, LayerSpec.of("e1m2", "e2m3", 8)),
            method,
            sampler_of(network),
            seed=0,
            provenance={},
            reporter=SilentReporter(),
            work=Work(tmp_path, {}),
            pace=Pace(lambda: seconds, 0.0, 0.0, settle),
        )

    with pytest.raises(KeyboardInterrupt):
        run(1e9, 2)
    found = run(0.0, 0)
    (first, *others) = found.state.provenance["iterations"].values()
    assert (first, {*others}) == (20, {0})
    assert 0 < found.method.iterations < 20
    assert found.state.provenance["method"] == found.method.to_json()
    again = run(1e9, 2)
    assert again.state.provenance == found.state.provenance
    for name, layer in found.state.layers.items():
        for role, part in layer.parts.items():
            np.testing.assert_array_equal(part, again.state.layers[name].parts[role])


def test_data_are_picked_once_and_what_is_given_stays(demo_folder: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        model=demo_folder, output=tmp_path / "out", time="10m", samples=48, steps=3
    )
    planned = plan(request)
    assert any("time 10m" in note for note in planned.notes)
    pipeline = load_pipeline(planned.checkpoint, calibrates=True)
    network = whole(pipeline.transformer)
    work = Work(tmp_path / "work", {})
    given = (planned, network, pipeline, work)
    found = paced(*given, lambda: 600.0, 5.0, SilentReporter())
    assert found.planned.method.data.samples == 48
    assert found.sampling.steps == 3
    assert planned.sampling == replace(found.sampling, steps=3)  # the bundle's defaults stay
    assert len(found.planned.prompts) == found.planned.method.data.prompts
    again = paced(*given, lambda: 1.0, 1.0, SilentReporter())
    assert (again.planned, again.sampling) == (found.planned, found.sampling)
    few, many = (found.pace.method(n) for n in (20, 2000))
    assert (few.iterations, many.iterations) == (20, 2000)
    presets = [method_by_name("fp4dit", name).stages for name in ("fast", "best")]
    assert few.stages == with_settings(replace(few, stages=presets[0]), {"iterations": 20}).stages
    assert (
        many.stages == with_settings(replace(few, stages=presets[1]), {"iterations": 2000}).stages
    )


def test_time_is_refused_for_methods_without_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="time 5m: method fp-rtn uses no calibration data"):
        plan(ExportRequest(output=tmp_path / "out", method="fp-rtn", time="5m"))
