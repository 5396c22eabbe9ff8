"""Quality of bundles: the comparison, its command, and the labelled sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import EMPTY
from PIL import Image

from fp4dit_onnx.bundle.bundle import REQUIRED_FILES, write_manifest
from fp4dit_onnx.commands import evaluate as command
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation import picturing, quality
from fp4dit_onnx.evaluation.metrics import METRICS, Metric
from fp4dit_onnx.evaluation.prompts import evaluation_prompts
from fp4dit_onnx.evaluation.quality import FLOAT, evaluate, latent_sqnr
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.prompts import demo_prompts, general_prompts
from fp4dit_onnx.runtime import Pipeline, Sampling
from fp4dit_onnx.system.progress import SilentReporter

SAMPLING = Sampling(steps=2, guidance=3.0, height=64, width=64, max_sequence_length=16)


def plain(colour: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (colour,) * 3)


def trail(seeds: Sequence[int], steps: int, on_step: Any, relative_error: float = 0) -> None:
    """Call back as a pipeline does: batches of 8; after step i all values are seed + i + 1."""
    for start in range(0, len(seeds), 8):
        batch = np.float32(seeds[start : start + 8]).reshape(-1, 1, 1, 1)
        for index in range(steps):
            latents = np.broadcast_to(batch + index + 1, (len(batch), 4, 2, 2))
            on_step(index, latents * np.float32(1 + relative_error))


class FakePipeline:
    """Generates grey images: float's colour, plus what the bundle's folder is called."""

    def __init__(self, folder: Path, **_: object) -> None:
        self.offset = int(folder.name)
        self.defaults = SAMPLING if self.offset < 100 else Sampling(3, 3.0, 64, 64, 16)

    def check(self, sampling: Sampling, prompts: Any) -> None:
        """Every bundle is asked before anything is made."""
        assert sampling.steps in (2, 3)
        assert prompts

    def generate(
        self, prompts: Any, *, seeds: Any, on_step: Any, **settings: Any
    ) -> list[Image.Image]:
        """One image a prompt; latents are off by the offset's share of 256."""
        wanted = {"steps": 2, "guidance": 3.0, "height": 64, "width": 64, "batch_size": 8}
        assert settings == wanted
        trail(seeds, 2, on_step, self.offset / 256)
        return [plain(grey(p, s) + self.offset) for p, s in zip(prompts, seeds, strict=True)]


def grey(prompt: str, seed: int) -> int:
    return 10 * len(prompt) + seed


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def float_images(
        _: Any, prompts: Any, seeds: Any, sampling: Sampling, on_step: Any
    ) -> list[Image.Image]:
        assert sampling == SAMPLING
        trail(seeds, 2, on_step)
        return [plain(grey(p, s)) for p, s in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr(picturing, "Pipeline", FakePipeline)
    monkeypatch.setattr(picturing.FloatModel, "images", float_images)
    near = {name: METRICS[name] for name in ("psnr", "ssim")}
    monkeypatch.setattr(quality, "METRICS", near)


@pytest.mark.usefixtures("fakes")
def test_evaluate_crosses_prompts_and_seeds() -> None:
    bundles = {"near": Path("1"), "far": Path("16")}
    found = evaluate(bundles, Path("model"), ["a", "bb"], [0, 1, 2])
    near, far = found.bundles
    assert (near.name, far.name) == ("near", "far")
    assert set(near.scores) == {"psnr", "ssim"}
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
    assert stored["metrics"]["psnr"]["unit"] == "dB"
    assert stored["absent"] == {}
    assert stored["reference"] == {"name": FLOAT, "scores": {}, "latent_sqnr_db": []}


@pytest.mark.usefixtures("fakes")
def test_latents_are_compared_after_every_step() -> None:
    found = evaluate({"far": Path("16"), "same": Path("0")}, Path("model"), ["a", "b"], range(6))
    far, same = (bundle.to_json()["latent_sqnr_db"] for bundle in found.bundles)
    assert [row["step"] for row in far] == [0, 1]
    for row in far:  # 1/16 of every value, exact in float32, whatever the image
        assert row["mean"] == pytest.approx(20 * math.log10(16), abs=1e-12)
        assert row["standard_error"] == pytest.approx(0, abs=1e-12)
    assert same[1]["mean"] == pytest.approx(10 * math.log10(16 * 2**46), abs=1e-12)  # finite


def test_latent_sqnr_keeps_steps_and_pictures_apart() -> None:
    reference = [np.ones((2, 1, 1, 1), np.float32)] * 2
    found = [np.float32([1.1, 1.01]), np.float32([1.001, 0.9])]
    first, second = latent_sqnr(reference, [each.reshape(2, 1, 1, 1) for each in found])
    # 1.1 and 1.01 are rounded by up to 2^-24: 5e-5 dB at 60 dB.
    assert first.values == pytest.approx((20, 40), abs=1e-3)
    assert second.values == pytest.approx((60, 20), abs=1e-3)
    assert first.mean == pytest.approx(30, abs=1e-3)
    assert first.standard_error == pytest.approx(10, abs=1e-3)
    with pytest.raises(ValueError, match="zip"):
        latent_sqnr(reference, [])


class Recorder(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, str]] = []
        self.totals: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Any]:
        """A stage whose reports are kept."""
        self.totals[name] = total
        yield lambda steps, detail="": self.told.append((name, steps, detail))


@pytest.mark.usefixtures("fakes")
def test_evaluate_reports_models_and_batches() -> None:
    reporter = Recorder()
    evaluate({"x": Path("1")}, Path("model"), ["a", "b"], range(5), reporter=reporter)
    assert reporter.totals == {
        "generating and comparing": 2,
        "generating with float": 4,
        "generating with x": 4,
    } | {"measuring": 2}
    batches = ["images 1 to 8 of 10"] * 2 + ["images 9 to 10 of 10"] * 2
    for stage in ("generating with float", "generating with x"):
        assert [detail for name, _, detail in reporter.told if name == stage] == batches
    for name, total in reporter.totals.items():
        assert sum(steps for told, steps, _ in reporter.told if told == name) == total


class Late:
    """Makes all calls before it gives a result, the last one's first, and shows no steps."""

    ahead = 4

    def results(self, tasks: Any) -> Any:
        """As `Executor`."""
        made = [(task, task.function(*task.arguments)) for task in tasks]
        return reversed(made)


@pytest.mark.usefixtures("fakes")
def test_images_stand_in_order_whichever_is_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def late(_: Any, source: Any, bundles: Any, __: Any) -> Iterator[Any]:
        yield Late(), (source, *bundles)

    monkeypatch.setattr(quality, "executor_of", late)
    reporter = Recorder()
    found = evaluate({"x": Path("1")}, Path("model"), ["a", "b"], range(9), reporter=reporter)
    colours = [np.asarray(picture)[0, 0, 0] for picture in found.pictures[FLOAT]]
    assert colours == [10 + i for i in range(9)] * 2
    assert found.bundles[0].latent_sqnr[1].mean == pytest.approx(20 * math.log10(256), abs=1e-4)
    told = [steps for name, steps, _ in reporter.told if name == "generating with x"]
    assert told == [2, 2, 2]  # a batch of two denoising steps at a time


def boom(*_: Any) -> float:
    raise RuntimeError("first line\nsecond line")


@pytest.mark.usefixtures("fakes")
def test_metrics_of_prompts_and_absent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def level(picture: Any, prompt: str) -> float:
        print("noise of a package")
        return float(picture[0, 0, 0]) + 1000 * len(prompt)

    table = [
        Metric("level", "", False, "prompt", lambda: level),
        Metric("missing", "", True, "prompt", lambda: "no weights"),
        Metric("fails", "", True, "reference", lambda: boom),
        Metric("infinite", "", True, "reference", lambda: lambda *_: math.inf),
    ]
    monkeypatch.setattr(quality, "METRICS", {metric.name: metric for metric in table})
    found = evaluate({"x": Path("7")}, Path("model"), ["a", "bb"], [0])
    assert found.reference.scores["level"].values == (1010, 2020)
    assert found.bundles[0].scores["level"].values == (1017, 2027)
    assert set(found.bundles[0].scores) == {"level"}
    assert found.absent == {
        "missing": "no weights",
        "fails": "fails here with RuntimeError: first line",
        "infinite": "gave numbers that are not finite",
    }
    stored = found.to_json()
    assert stored["absent"] == found.absent
    assert list(stored["metrics"]) == ["level"]


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


@pytest.mark.usefixtures("fakes")
def test_command_prints_a_table_or_json_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = Metric("lpips", "", False, "reference", lambda: "torchvision is not installed")
    monkeypatch.setattr(quality, "METRICS", {"psnr": METRICS["psnr"], "lpips": missing})
    monkeypatch.setattr(command, "_by_name", lambda *_: {"w4a6": Path("16")})
    command.run([Path("bundle")], count=2, grid=tmp_path / "sheets" / "g.png")
    out = capsys.readouterr().out
    words = out.split()
    assert words.count("w4a6") == 3  # two rows and the line of steps
    for cell in ("24.08", "24.05", "psnr"):  # 20 log10(16), 20 log10(255 / 16)
        assert cell in words
    assert "in dB after step 1: 24.1, 2: 24.1\n" in out
    assert "absent: lpips: torchvision is not installed\n" in out
    assert (tmp_path / "sheets" / "g.png").is_file()
    command.run([Path("bundle")], count=2, json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["bundles"][0]["latent_sqnr_db"][1]["step"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"a \xff\n", "is not UTF-8 (byte 2)"),
        (None, "not found"),
    ],
)
def test_command_refuses_bad_prompt_files(
    monkeypatch: pytest.MonkeyPatch, run: Any, tmp_path: Path, content: bytes | None, words: str
) -> None:
    monkeypatch.setattr(command, "_by_name", lambda *_: {"w4a6": Path("16")})
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    run("evaluate", "bundle", "--prompts", path).refuses(f"error: {path} ", words)


@pytest.mark.parametrize(
    ("recipes", "names"),
    [
        (["fp4dit w4a6"], ["w4a6"]),
        (["fp4dit w4a6", "tuned w4a6"], ["fp4dit", "tuned"]),
        (["tuned w4a6", "tuned w4a8"], ["w4a6", "w4a8"]),
        (["fp4dit w4a6", "tuned w4a8", "tuned w4a6"], ["fp4dit w4a6", "tuned w4a8", "tuned w4a6"]),
        (["tuned w4a6", "tuned w4a6"], ["0", "1"]),
    ],
)
def test_rows_are_named_after_what_tells_bundles_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipes: list[str], names: list[str]
) -> None:
    folders = [tmp_path / str(i) for i in range(len(recipes))]
    for folder, recipe in zip(folders, recipes, strict=True):
        method, bits = recipe.split()
        for name in REQUIRED_FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        write_manifest(
            folder, replace(EMPTY, recipe=replace(EMPTY.recipe, method=method, bits=bits))
        )
    seen: dict[str, Path] = {}

    def evaluate(bundles: dict[str, Path], *_: Any, **options: Any) -> Any:
        seen.update(bundles)
        raise UsageError("seen")

    monkeypatch.setattr(quality, "evaluate", evaluate)
    with pytest.raises(UsageError, match="seen"):
        command.run(folders)
    assert seen == dict(zip(names, folders, strict=True))


def test_command_refuses_an_unknown_kind_of_grid() -> None:
    with pytest.raises(UsageError, match=r"grid g.xyz: expected a name ending in .png"):
        command.run([Path("nowhere")], grid=Path("g.xyz"))


def test_bundle_against_float_from_end_to_end(bundle: Path, demo_folder: Path) -> None:
    pytest.importorskip("diffusers")
    prompts, seeds = ["bat", "chipmunk"], [0, 0]
    found = evaluate({"x": bundle}, demo_folder, prompts, [0], sampling=SAMPLING)
    seen: dict[int, Any] = {}
    pictures = picturing.float_images(demo_folder, prompts, seeds, SAMPLING, seen.__setitem__)
    drawn = Pipeline(bundle).sample(prompts, seeds, SAMPLING)
    wanted = [sqnr_db(a, b) for a, b in zip(seen[1], drawn, strict=True)]
    assert sorted(seen) == [0, 1]
    # Both runs compute the same; threads may order sums otherwise, in the sixth digit at most.
    assert found.bundles[0].latent_sqnr[1].values == pytest.approx(wanted, abs=1e-3)
    assert found.bundles[0].latent_sqnr[0].mean != pytest.approx(wanted[0], abs=1)
    first, own = np.asarray(pictures[0], np.int16), np.asarray(found.pictures[FLOAT][0], np.int16)
    assert np.abs(first - own).max() <= 1
    assert found.bundles[0].scores["ssim"].mean < 0.9  # another network
    json.dumps(found.to_json(), allow_nan=False)


def test_generate_shows_the_latents_of_every_step(bundle: Path) -> None:
    pipeline = Pipeline(bundle, library=False)
    seen: list[tuple[int, Any]] = []
    pictures = pipeline.generate(
        ["a", "b", "c"],
        seeds=[0, 1, 2],
        steps=3,
        batch_size=2,
        on_step=lambda index, latents: seen.append((index, latents)),
    )
    assert [(index, len(latents)) for index, latents in seen] == [
        *((i, 2) for i in range(3)),
        *((i, 1) for i in range(3)),
    ]
    (again,) = pipeline.decode(seen[5][1])
    np.testing.assert_array_equal(np.asarray(again), np.asarray(pictures[2]))
    assert np.abs(seen[4][1] - seen[5][1]).max() > 0


def test_sample_latents_shows_every_step(torch_pipeline: Any, demo_folder: Path) -> None:
    import torch

    from fp4dit_onnx.calibration.sampling import sample_latents
    from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
    from fp4dit_onnx.families import family_of

    checkpoint = open_checkpoint(demo_folder)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    prompts, seeds = ["bat"] * 9, list(range(9))
    seen: list[tuple[int, Any]] = []

    def watch(index: int, latents: Any) -> None:
        seen.append((index, latents))

    given = (torch_pipeline, family, prompts, seeds, SAMPLING)
    found = sample_latents(*given, on_step=watch)
    assert [(i, len(latents)) for i, latents in seen] == [(0, 8), (1, 8), (0, 1), (1, 1)]
    assert torch.equal(torch.cat([seen[1][1], seen[3][1]]), found)
    assert not torch.equal(seen[0][1], seen[1][1])
    assert "step" not in vars(torch_pipeline.scheduler)  # the class's own again
    with pytest.raises(ZeroDivisionError):
        sample_latents(*given, on_step=lambda *_: 1 / 0)
    assert "step" not in vars(torch_pipeline.scheduler)


def test_prompts_are_those_that_the_models_family_knows(tmp_path: Path) -> None:
    index = tmp_path / "model_index.json"
    for name, wanted in (("DiTPipeline", ["0", "1"]), ("FluxPipeline", general_prompts()[:2])):
        index.write_text(json.dumps({"_class_name": name}))
        assert evaluation_prompts(None, tmp_path, 2) == wanted
    assert evaluation_prompts(None, None, 2) == demo_prompts("evaluation")[:2]
