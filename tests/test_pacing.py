"""A calibration that keeps to a time: what is picked, what is timed, and what a resumed run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from toy_network import LAYERS, sampler_of, toy_network

from fp4dit_onnx.calibration.methods import method_by_name, with_settings
from fp4dit_onnx.calibration.pacing import (
    LEVELS,
    MOST_ITERATIONS,
    Speed,
    affordable,
    data_seconds,
    iterations_within,
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


def test_iterations_fill_the_time_of_units_of_unlike_sizes() -> None:
    assert iterations_within(100, 0.5, [1, 1, 2]) == 50
    assert iterations_within(1e9, 0.5, [1]) == MOST_ITERATIONS
    assert iterations_within(-5, 0.5, [1]) > 0


def test_a_resumed_calibration_has_the_iterations_of_the_first(tmp_path: Path) -> None:
    """The second run has no time left, and goes on with what the first one settled."""
    network = toy_network()
    method = method_by_name("fp4dit", "fast", samples=64, prompts=4)
    asked: list[int] = []

    def run(seconds: float) -> Any:
        def settle(iterations: int) -> Any:
            asked.append(iterations)
            return with_settings(method, {"iterations": min(iterations, 3)})

        return calibrate(
            whole(network),
            dict.fromkeys(LAYERS, LayerSpec.of("e1m2", "e2m3", 8)),
            method,
            sampler_of(network),
            seed=0,
            provenance={},
            reporter=SilentReporter(),
            work=Work(tmp_path, {}),
            pace=Pace(lambda: seconds, settle),
        )

    first, second = run(1e9), run(0.0)
    assert asked == [MOST_ITERATIONS, MOST_ITERATIONS]
    assert first.method.iterations == 3
    assert first.state.provenance["method"] == first.method.to_json()
    for name, layer in first.state.layers.items():
        for role, part in layer.parts.items():
            np.testing.assert_array_equal(part, second.state.layers[name].parts[role])


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
    found = paced(*given, lambda: 600.0, SilentReporter())
    assert found.planned.method.data.samples == 48
    assert found.sampling.steps == 3
    assert planned.sampling == replace(found.sampling, steps=3)  # the bundle's defaults stay
    assert len(found.planned.prompts) == found.planned.method.data.prompts
    again = paced(*given, lambda: 1.0, SilentReporter())
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
