"""Picture quality: metrics, scores, the labelled sheet, and a comparison from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fp4dit_onnx import quality
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.quality import FLOAT, METRICS, Score, evaluate, picture_grid, psnr
from fp4dit_onnx.runtime import Sampling

SAMPLING = Sampling(steps=2, guidance=3.0, height=64, width=64, max_sequence_length=16)


def plain(colour: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (colour,) * 3)


def test_psnr_by_hand() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    # One rounding each in the division and the logarithm: a few 1e-16 of 20 .. 70 dB.
    assert psnr(a, a + np.uint8(255)) == pytest.approx(0, abs=1e-13)
    assert psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255), abs=1e-13)
    one = a.copy()
    one[0, 0, 0] = 1
    assert psnr(a, one) == pytest.approx(20 * math.log10(255) + 10 * math.log10(48), abs=1e-13)
    assert psnr(one, a) == psnr(a, one)
    assert psnr(a, a) == psnr(a, one)  # finite: as close as different pictures can be


def test_psnr_sees_no_wraparound() -> None:
    low, high = np.full((2, 2, 3), 1, np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(low, high) < 1


@pytest.mark.parametrize(
    "other", [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 2, 3), np.float32), np.zeros(())]
)
def test_psnr_refuses_what_is_no_pair(other: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8 of one shape"):
        psnr(np.zeros((2, 2, 3), np.uint8), other)


def test_score_by_hand() -> None:
    score = Score.of([1.0, 2.0, 3.0, 6.0])
    assert score.mean == 3
    # Squares of -2, -1, 0, 3 sum to 14: sqrt(14 / 3) / sqrt(4), up to two roundings.
    assert score.standard_error == pytest.approx(math.sqrt(14 / 12), abs=1e-15)
    assert score.values == (1, 2, 3, 6)
    assert Score.of([5.0]) == Score(5.0, None, (5.0,))


class FakePipeline:
    """Draws grey pictures: float's colour, plus what the bundle's folder is called."""

    def __init__(self, folder: Path, *, library: bool) -> None:
        self.offset = int(folder.name)
        self.defaults = SAMPLING if self.offset < 100 else Sampling(3, 3.0, 64, 64, 16)

    def generate(self, prompts: Any, *, seeds: Any, **settings: Any) -> list[Image.Image]:
        """One picture a prompt."""
        assert settings == {"steps": 2, "guidance": 3.0, "height": 64, "width": 64}
        return [plain(grey(p, s) + self.offset) for p, s in zip(prompts, seeds, strict=True)]


def grey(prompt: str, seed: int) -> int:
    return 10 * len(prompt) + seed


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def float_images(_: Path, prompts: Any, seeds: Any, sampling: Sampling) -> list[Image.Image]:
        assert sampling == SAMPLING
        return [plain(grey(p, s)) for p, s in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr(quality, "Pipeline", FakePipeline)
    monkeypatch.setattr(quality, "float_images", float_images)


@pytest.mark.usefixtures("fakes")
def test_evaluate_crosses_prompts_and_seeds() -> None:
    bundles = {"near": Path("1"), "far": Path("16")}
    found = evaluate(bundles, Path("model"), ["a", "bb"], [0, 1, 2])
    near, far = found.bundles
    assert (near.name, far.name) == ("near", "far")
    assert set(near.scores) == set(METRICS)
    assert len(near.scores["psnr"].values) == 6
    # Every sample is 1 or 16 levels off, so all values are the same, up to rounding.
    assert near.scores["psnr"].mean == pytest.approx(20 * math.log10(255), abs=1e-12)
    assert far.scores["psnr"].mean == pytest.approx(20 * math.log10(255 / 16), abs=1e-12)
    assert far.scores["psnr"].standard_error == pytest.approx(0, abs=1e-12)
    assert list(found.pictures) == [FLOAT, "near", "far"]
    colours = [np.asarray(picture)[0, 0, 0] for picture in found.pictures[FLOAT]]
    assert colours == [10, 11, 12, 20, 21, 22]
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["bundles"][1]["scores"]["psnr"]["mean"] == far.scores["psnr"].mean
    assert stored["sampling"]["steps"] == 2
    assert stored["seeds"] == [0, 1, 2]


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("bundles", "prompts", "message"),
    [
        ({}, ["a"], "nothing to compare"),
        ({"x": Path("1")}, [], "nothing to compare"),
        ({FLOAT: Path("1")}, ["a"], "choose another name"),
        ({"x": Path("1"), "y": Path("100")}, ["a"], "x and y sample differently"),
    ],
)
def test_evaluate_refuses(bundles: dict[str, Path], prompts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(bundles, Path("model"), prompts, [0])


def test_float_images_are_those_of_the_seed(demo_folder: Path) -> None:
    pytest.importorskip("diffusers")
    first, second = quality.float_images(demo_folder, ["chipmunk", "bat"], [3, 4], SAMPLING)
    (alone,) = quality.float_images(demo_folder, ["bat"], [4], SAMPLING)
    assert first.size == (64, 64)
    a, b = np.asarray(second, np.int16), np.asarray(alone, np.int16)
    assert np.abs(a - b).max() <= 1  # a value next to a half may be rounded to either side
    assert np.abs(a - np.asarray(first, np.int16)).max() > 10


def test_float_images_refuse_noise_at_every_step(demo_copy: Path) -> None:
    pytest.importorskip("diffusers")
    path = demo_copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", "clip_sample": False}))
    index = json.loads((demo_copy / "model_index.json").read_text())
    index["scheduler"][1] = "DDPMScheduler"
    (demo_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="adds noise at every step"):
        quality.float_images(demo_copy, ["bat"], [0], SAMPLING)


def test_grid_places_every_picture() -> None:
    blues = {b: Image.new("RGB", (8, 8), (0, 0, b)) for b in (100, 120, 140, 160)}  # no text is
    rows = {FLOAT: [blues[100], blues[120]], "e2m1": [blues[140], blues[160]]}
    sheet = picture_grid(rows, ["one", "a caption of many words that needs several lines"])
    pixels = np.asarray(sheet)
    corners = []
    for blue in blues:
        place = np.argwhere((pixels == (0, 0, blue)).all(axis=2))
        assert len(place) == 16 * 16  # enlarged twice
        corner = place.min(axis=0)
        assert (place.max(axis=0) - corner == 15).all()  # one square
        corners.append(tuple(corner))
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = corners
    assert (y0, x0, y2, x1) == (y1, x2, y3, x3)  # rows are variants, columns are captions
    assert y0 < y2
    assert x0 < x1
    assert (pixels[:, 0] == 255).all()


def test_grid_keeps_large_pictures() -> None:
    sheet = picture_grid({"a": [plain(0, (256, 300))]}, ["x"])
    assert 256 < sheet.width < 512
    assert 300 < sheet.height < 600


@pytest.mark.parametrize(
    ("rows", "captions"), [({}, []), ({"a": [plain(0)]}, ["x", "y"]), ({"a": []}, [])]
)
def test_grid_refuses_uneven_rows(rows: dict[str, list[Image.Image]], captions: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        picture_grid(rows, captions)
