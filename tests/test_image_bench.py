"""Benchmark of a whole image: its processes and stages, what backends make, and refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fp4dit_onnx.benchmark import (
    Absent,
    Backend,
    Settings,
    backends,
    image_rounds,
    machine,
    run_image,
)
from fp4dit_onnx.benchmark.image import DECODER, ENCODER, LOAD, STEP, ImageCase
from fp4dit_onnx.benchmark.requests import ImageRequest, image_case
from fp4dit_onnx.benchmark.stopwatch import Stopwatch
from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.runtime.library import supported_isas
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.system.progress import SilentReporter

ISA = supported_isas()[0]
SAMPLING = Sampling(steps=2, guidance=3.0, height=64, width=64, max_sequence_length=16)


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "dot_product_limit", lambda isa, kind, threads: 100.0)


def test_a_stage_within_another_counts_once() -> None:
    times = iter([0.0, 1.0, 3.0, 3.5, 4.5, 10.0])
    watch = Stopwatch(lambda: next(times))
    inner = watch.timed("inner", lambda value: value + 1)
    with watch.stage("outer"):
        assert [inner(1), inner(2)] == [2, 3]
    assert watch.seconds == {"inner": [2.0, 1.0], "outer": [7.0]}


def case_of(bundle: Path, **more: Any) -> ImageCase:
    return image_case(bundle, ImageRequest(prompt="tiger face", **more), "cpu")


def answers(image: Path, numbers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a backend's process finds, turn after turn; its image is of one grey."""
    Image.new("RGB", (8, 8), (numbers["grey"],) * 3).save(image)
    for seconds in numbers["seconds"]:
        stages = {ENCODER: 0.5, STEP: seconds - 1, DECODER: 0.25, "rest": 0.25}
        yield {
            "load": 2.0,
            "seconds": seconds,
            "stages": stages,
            "calls": 4,
            "peak_bytes": numbers["peak"],
        }


def test_turns_are_compared_with_the_baseline(
    monkeypatch: pytest.MonkeyPatch, demo_bundle: Path
) -> None:
    """Ratios are taken within a round; a backend that fails is named, and the others go on."""
    numbers = {
        f"fp4dit {ISA}": {"seconds": [2.0, 3.0, 4.0], "peak": 100, "grey": 100},
        "ort-float32": {"seconds": [8.0, 9.0, 8.0], "peak": 400, "grey": 101},
    }
    told: dict[str, Any] = {}

    def ask(turns: Any, **more: object) -> dict[str, Any]:
        name = turns.backend.name
        if name not in numbers:
            raise Absent(f"no {name}")
        if name not in told:
            told[name] = answers(turns.image, numbers[name])
        found: dict[str, Any] = next(told[name])
        return found

    monkeypatch.setattr(image_rounds._Turns, "_ask", ask)
    everyone = backends("image", [ISA], ["ort-float32", "ort-functions"])
    found = run_image(
        case_of(demo_bundle), everyone, "ort-float32", Settings(1, 0.0), SilentReporter()
    )
    assert found.absent == {"ort-functions": "no ort-functions"}
    own, base = found.outcomes
    assert (own.rounds, own.seconds.median, own.load.median) == (3, 3.0, 2.0)
    assert own.ratio is not None
    assert own.ratio.median == 3.0  # of 4, 3 and 2
    assert own.stages[STEP].median == 2.0
    assert own.step.median == 0.5  # a quarter
    assert (own.memory_ratio, base.memory_ratio, base.psnr_db) == (0.25, 1.0, None)
    assert own.psnr_db == pytest.approx(20 * np.log10(255))


def test_a_process_that_ends_by_itself_is_absent(
    monkeypatch: pytest.MonkeyPatch, demo_bundle: Path, tmp_path: Path
) -> None:
    (own,) = backends("image", [ISA], [])
    turns = image_rounds._Turns(case_of(demo_bundle), own, Settings(1, 0.0), [])
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Absent, match="signal 9, perhaps for lack of memory"):
        turns()


def test_the_command_makes_images(run: Any, demo_bundle: Path, bundle: Path) -> None:
    """By three processes; the fixture `bundle` has a transformer that is not quantized."""
    code, out, err = run(
        *(
            "bench",
            demo_bundle,
            "--end-to-end",
            "--float-bundle",
            bundle,
            "--prompt",
            "tiger face",
        ),
        *("--steps", "1", "--rounds", "1", "--threads", "1", "--isa", ISA, "--json"),
        *("--peer", "ort-float32", "--peer", "fp4dit-low-memory"),
    )
    assert code == 0, err
    (case,) = json.loads(out)["cases"]
    assert (case["kind"], case["prompt"], case["absent"]) == ("image", "tiger face", {})
    assert case["name"] == "64 x 64 pixels, 1 steps, guidance 3"
    own, base, low = case["outcomes"]
    for one in (own, base, low):
        assert set(one["stages"]) == {ENCODER, STEP, DECODER, "rest"}
        assert all(stage["median"] > 0 for stage in one["stages"].values())
        total = sum(stage["median"] for stage in one["stages"].values())
        assert one["seconds"]["median"] == pytest.approx(total)
        assert one["peak_bytes"]["median"] > 5e7
    assert 0 < own["psnr_db"] < 60, "two models"
    assert base["psnr_db"] is None
    assert low["psnr_db"] == own["psnr_db"], "the same image"
    assert low["load"]["median"] > 0


def test_with_low_memory_each_model_is_loaded_at_its_turn(demo_bundle: Path) -> None:
    (one,) = backends("image", [], ["fp4dit-low-memory"])
    painter: Any = one.load(case_of(demo_bundle, steps=1), 1)
    assert LOAD not in painter.watch.seconds, "loading so far is timed by who called"
    painter.run()
    assert len(painter.watch.seconds[LOAD]) == 3, "text encoder, transformer, VAE decoder"


def test_backends_begin_with_the_same_noise(
    demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Torch in both types makes the float pipeline's image; in bfloat16 with its rounding."""
    pytest.importorskip("diffusers")
    from fp4dit_onnx.evaluation.picturing import float_images

    case = case_of(demo_bundle, model=demo_folder, steps=2)
    (reference,) = float_images(demo_folder, [case.prompt], [0], case.sampling)
    for name, least, most in (("torch-float32", 60.0, 99.0), ("torch-bf16", 10.0, 50.0)):
        (one,) = backends("image", [], [name])
        painter = one.load(case, 1)
        painter.run()
        assert least < psnr(painter.result(), np.asarray(reference)) < most
        assert set(painter.watch.seconds) == {ENCODER, STEP, DECODER}  # type: ignore[attr-defined]
        assert len(painter.watch.seconds[STEP]) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "least", "most"), [("float32", 50, 99), ("int8", 15, 60)])
def test_openvino_opens_the_parts(
    demo_bundle: Path, bundle: Path, tmp_path: Path, name: str, least: float, most: float
) -> None:
    """It compiles once a part, which counts as loading; in float32 its image is ONNX Runtime's."""
    pytest.importorskip("openvino")
    case = replace(case_of(demo_bundle, float_bundle=bundle, steps=2), work=tmp_path)
    (one,) = backends("image", [], [f"openvino-{name}"])
    if one.prepare is not None:
        one.prepare(case)
    painter = one.load(case, 1)
    painter.run()
    assert len(painter.watch.seconds[LOAD]) == 3  # type: ignore[attr-defined]
    (wanted,) = Pipeline(bundle, library=False).generate([case.prompt], steps=2)
    assert least < psnr(painter.result(), np.asarray(wanted)) < most


def test_who_lacks_something_says_so(demo_bundle: Path) -> None:
    case = case_of(demo_bundle)
    for peer in backends("image", [], None):
        one: Backend[Any] = peer
        if one.name == "fp4dit-low-memory":
            continue  # the bundle is all that it takes
        with pytest.raises(Absent, match=r"--float-bundle|--model|not installed"):
            one.load(case, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--end-to-end", "--steps", "0"], ("steps = 0",)),
        (["--end-to-end", "--height", "30"], ("height = 30", "multiple of 8")),
        (["--end-to-end", "--float-bundle", "{bundle}"], ("quantized layers", "--rule '*=none'")),
        (["--end-to-end", "--float-bundle", "/nowhere"], ("/nowhere not found",)),
        (["--end-to-end", "--model", "/nowhere"], ("/nowhere",)),
        (["--end-to-end", "--tokens", "3"], ("--tokens", "a single step")),
        (["--end-to-end", "--batch", "1"], ("--batch", "a single step")),
        (["--prompt", "a"], ("--prompt", "--end-to-end")),
        (["--end-to-end", "--rounds", "0"], ("rounds = 0",)),
    ],
)
def test_bad_input_is_one_line(
    run: Any, demo_bundle: Path, options: list[str], words: tuple[str, ...]
) -> None:
    given = [option.format(bundle=demo_bundle) for option in options]
    run("bench", demo_bundle, *given).refuses(*words)


def test_without_a_bundle(run: Any, tmp_path: Path) -> None:
    run("bench", "--end-to-end").refuses("--end-to-end", "bench BUNDLE")
    with pytest.raises(UsageError, match="not found"):
        case_of(tmp_path / "none")
