"""Families end to end on their twins: what tools/model_table.py finds, and bundles that draw."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import diffusers
import full_size
import model_table
import pages
import torch
from model_table import Row

import fp4dit_onnx
from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.probe import load_graph
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.quality import FLOAT, evaluate
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.families import FAMILIES, family_of
from fp4dit_onnx.network import positions
from fp4dit_onnx.runtime.pipeline import Pipeline, initial_latents
from fp4dit_onnx.runtime.sampling import step_noise
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.verification.cases import inputs_of_sizes

Array = npt.NDArray[Any]
Agree = Callable[[Array, Array, float], None]
Checked = Callable[[str], tuple[Row, Path]]

CHECKED = (
    "pixart-alpha-512",
    "pixart-sigma-512",
    "hunyuan-dit-1.1",
    "dit-xl-2-256",
    "flux-dev",
    "sd3.5-medium",
    "auraflow",
    "sana-1600m",
    "z-image",
    "flux2-klein-4b",
)
"""One of each family."""
TRAJECTORY = 1e-4
"""Of the largest latent after a few steps: float32 rounding of the network (1e-5) at every step."""
CLOSE = 20 * math.log10(255)
"""PSNR in dB of images whose pixels differ by one step of 255 at most: float32 sums in another order can
move a pixel over the next rounding, and no further."""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """The row of a model and the folder with its twin and bundle, made once."""

    def made(name: str) -> tuple[Row, Path]:
        place = tmp_path_factory.mktemp(name)
        return model_table.check(name, place, quick=True), place

    return cache(made)


@pytest.mark.parametrize("name", CHECKED)
def test_every_family_is_compared_exported_verified_and_generates(
    name: str, checked: Checked
) -> None:
    row, place = checked(name)
    assert row.ok, row
    bundle = Bundle.open(place / "bundle")
    nodes = load_graph(bundle.transformer).graph.node
    fused = {node.name for node in nodes if node.op_type == ops.ATTENTION}
    assert fused == bundle.manifest.attention.keys() != set()
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    family = next(family for family in FAMILIES if family.name == row.family)
    for layer, parts in family.joined(layers).items():
        assert layers[layer].activation_group_size == layers[layer].shape[1] // parts
    grids = {(size.height, size.width) for size in row.distances}
    assert len(grids) >= (2 if row.family in model_table.SQUARE_ONLY else 3)
    assert {size.batch for size in row.distances} == {1, 2}
    assert row.images == 1
    assert model_table.table([row], "abc1234").splitlines()[-1] == (
        f"| {name} | {row.family} | {max(row.distances.values()):.1e} | {len(grids)} x 2 "
        f"| 11 of 11 checks | {row.images or '-'} | commit abc1234 | ok |"
    )


def test_no_family_is_left_out() -> None:
    """Of those that the tool knows, and none of those that only the list of models has."""
    pipelines = {model_table.MODELS[name].class_name for name in CHECKED}
    assert [sum(p in f.pipelines for p in pipelines) for f in FAMILIES] == [1] * len(FAMILIES)


def test_rows_that_are_measured_anew_take_the_place_of_their_old_ones() -> None:
    def table(at: str, *names: str) -> str:
        return model_table.table([Row(name, "f", {}, (1, 1)) for name in names], at)

    found = model_table.merged(table("b", "flux-dev"), table("a", "auraflow", "flux-dev", "gone"))
    rows = [(row.split(" | ")[0], row.split(" | ")[6]) for row in found.splitlines()[2:]]
    assert rows == [("| flux-dev", "commit b"), ("| auraflow", "commit a")]


def test_calibrations_of_full_size_are_judged_and_replaced_alone() -> None:
    """By minutes and memory; a case that is measured anew leaves the others' rows."""
    seconds = {"total": 4490.0, "calibrating": 3000.0}
    used = SimpleNamespace(
        peak_rss_bytes=5_900_000_000, peak_rss_bytes_after_imports=400_000_000, seconds=seconds
    )
    manifest = SimpleNamespace(files={}, resources=used, model_sqnr_db=9.5)

    def rows(name: str, at: str) -> str:
        found = full_size.row(name, full_size.CASES[name], Path("none"), manifest)  # type: ignore[arg-type]
        return full_size.calibrated_table([found], at)

    assert rows("pixart-hour", "a").endswith(
        "| 74.8 | 0.0 | 50.0 | 5.90 | RSS < 6, 75 minutes | 9.5 | commit a | ok |"
    )
    seconds["total"] = 4501.0
    assert rows("pixart-hour", "a").endswith("| missed |")
    both = model_table.merged(
        rows("hunyuan-short", "b"), rows("pixart-hour", "a"), full_size.CASES
    ).splitlines()
    assert [line.split(" | ")[0] for line in both[2:]] == ["| pixart-hour", "| hunyuan-short"]


@pytest.mark.parametrize(
    "fault", [{"distances": {}}, {"checks": (10, 11)}, {"checks": (0, 0)}, {"images": 0}]
)
def test_a_row_with_a_fault_is_not_ok(fault: dict[str, Any]) -> None:
    row = Row("m", "f", {model_table.SIZES[0]: 1e-6}, (11, 11), 1)
    assert row.ok
    assert not replace(row, **fault).ok


def test_positions_one_patch_off_are_seen(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(table: Any, side: int, height: Any, width: Any) -> Any:
        return positions.cropped_table(torch.roll(table, 1, 1), side, height, width)

    monkeypatch.setattr("fp4dit_onnx.network.dynamic.cropped_table", shifted)
    monkeypatch.setattr("fp4dit_onnx.tracing.trace._TRACED", {})
    found = model_table.float_distances(checked("sd3.5-medium")[1] / "twin")
    assert min(found.values()) > 10 * model_table.NEAR


def test_the_page_holds_the_tables_that_the_tools_write() -> None:
    for table, name in ((model_table.TABLE, "pixart-alpha-512"), (full_size.TABLE, "flux-dev")):
        rows = table.read()
        assert f"| {name} |" in rows
        assert "| no |" not in rows
        assert table.replaced(rows) == table.path.read_text()
    rows = model_table.TABLE.read()
    assert [name for name in model_table.known_models() if f"| {name} |" not in rows] == []


@pytest.fixture(scope="module")
def float_bundle_of(
    checked: Checked, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The transformer of a model with nothing quantized, so that results can be compared closely."""
    root = tmp_path_factory.mktemp("bundles")

    def made(name: str) -> Path:
        request = ExportRequest(
            root / name,
            checked(name)[1] / "twin",
            method="fp-rtn",
            measure=False,
            rules=("*=none",),
            components="transformer",
            report=False,
        )
        return export(request).bundle

    return cache(made)


def loaded(folder: Path) -> Any:
    """The pipeline in diffusers."""
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    with quiet():
        pipe = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("hunyuan-dit-1.1", {"use_resolution_binning": False}),
        ("z-image", {"max_sequence_length": 40, "guidance_scale": 3.0}),
    ],
)
def test_an_exported_transformer_takes_the_place_of_diffusers(
    name: str,
    further: dict[str, Any],
    checked: Checked,
    float_bundle_of: Callable[[str], Path],
    agree: Agree,
) -> None:
    """Rotary tables from the graph, style and size, lists of images and of texts, at 3:2."""
    pipe = loaded(checked(name)[1] / "twin")
    options = {
        "num_inference_steps": 3,
        "height": 96,
        "width": 64,
        "output_type": "latent",
        **further,
    }

    def drawn() -> Array:
        with quiet():
            result = pipe(
                ["A red apple", "two dogs"], **options, generator=torch.Generator().manual_seed(0)
            )
        latents: Array = result.images.numpy()
        return latents

    wanted = drawn()
    pipe.transformer = fp4dit_onnx.load_transformer(float_bundle_of(name))
    agree(drawn(), wanted, TRAJECTORY)


@pytest.fixture(scope="module")
def whole_in_float(
    checked: Checked, float_bundle_of: Callable[[str], Path]
) -> Callable[[str], Path]:
    """A model's bundle with nothing quantized, all its components."""

    def made(name: str) -> Path:
        folder = float_bundle_of(name)
        for path in (checked(name)[1] / "bundle").iterdir():
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        return folder

    return cache(made)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd3.5-medium", {"max_sequence_length": 256}),
        ("flux-dev", {"max_sequence_length": 512}),
        ("hunyuan-dit-1.1", {"use_resolution_binning": False}),
    ],
)
def test_evaluation_compares_with_the_images_that_diffusers_makes(
    name: str,
    options: dict[str, Any],
    checked: Checked,
    whole_in_float: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The float model's: a VAE that shifts latents, packed ones, a scheduler that adds noise."""
    twin, prompts, seed = checked(name)[1] / "twin", ["A red apple", "two dogs"], 3
    bundle = Pipeline(whole_in_float(name))
    settings = bundle.settings(steps=4, height=64, width=96)
    found = evaluate({"exported": whole_in_float(name)}, twin, prompts, [seed], sampling=settings)
    pipe, shape = loaded(twin), bundle.latent_shape(settings)
    start = torch.from_numpy(np.stack([initial_latents(seed, shape)] * len(prompts)))
    if name == "flux-dev":
        start = pipe._pack_latents(start, *start.shape)
    index = itertools.count()
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda *_, **__: torch.from_numpy(step_noise([seed] * 2, next(index), shape)),
    )
    with quiet():
        images = pipe(
            prompts,
            num_inference_steps=4,
            guidance_scale=settings.guidance,
            height=64,
            width=96,
            latents=start,
            **options,
        ).images
    for ours, theirs in zip(found.pictures[FLOAT], images, strict=True):
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
    assert found.bundles[0].scores["psnr"].mean > CLOSE


def test_evaluation_of_classes(
    checked: Checked, whole_in_float: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DiT: the rows with the condition come first, beside the variance; one size, noise of its own."""
    twin, seed = checked("dit-xl-2-256")[1] / "twin", 3
    bundle = Pipeline(whole_in_float("dit-xl-2-256"))
    settings = bundle.settings(steps=4)
    compared = {"exported": whole_in_float("dit-xl-2-256")}
    found = evaluate(compared, twin, ["7", "class 9"], [seed], sampling=settings)
    pipe, shape = loaded(twin), bundle.latent_shape(settings)
    start = torch.from_numpy(np.stack([initial_latents(seed, shape)] * 2))
    module = "diffusers.pipelines.dit.pipeline_dit.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: start)
    with quiet():
        images = pipe([7, 9], num_inference_steps=4, guidance_scale=settings.guidance).images
    for ours, theirs in zip(found.pictures[FLOAT], images, strict=True):
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
    assert found.bundles[0].scores["psnr"].mean > CLOSE
    wide = bundle.settings(steps=2, width=96)
    with pytest.raises(UsageError, match=r"96 x 64 pixels: .* generates 64 x 64 alone"):
        evaluate(compared, twin, ["7"], [seed], sampling=wide)
    with pytest.raises(UsageError, match="no class 'dog'"):
        evaluate(compared, twin, ["dog"], [seed], sampling=settings)


@pytest.mark.parametrize(("name", "most"), [("sd3.5-medium", 96), ("auraflow", 16)])
def test_positions_reach_the_largest_size_and_no_further(
    checked: Checked, float_bundle_of: Callable[[str], Path], name: str, most: int
) -> None:
    bundle = float_bundle_of(name)
    assert json.loads((bundle / "quantization.json").read_text())["largest_size"] == 8 * most
    network = fp4dit_onnx.load_transformer(bundle)
    config = json.loads((bundle / "transformer" / "config.json").read_text())
    original = getattr(diffusers, config["_class_name"]).from_pretrained(
        checked(name)[1] / "twin", subfolder="transformer"
    )
    family = family_of(
        json.loads((bundle / "model_index.json").read_text())["_class_name"], config["_class_name"]
    )

    def feed(height: int, width: int) -> dict[str, Any]:
        sizes = {"batch": 1, "text": 5, "height": height, "width": width}
        arrays = inputs_of_sizes(family, config, sizes, 500.0, seed=0)
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    for height, width in ((most, most), (most, 6), (2, most)):
        found = network(**feed(height, width)).sample
        with torch.no_grad():
            wanted = original(**feed(height, width)).sample
        assert (found - wanted).abs().max() <= model_table.NEAR * wanted.abs().max()
    for height, width in ((most + 2, most), (most, 2 * most), (1000 * most, 2)):
        with pytest.raises(UsageError, match=f"expected at most {most} .{8 * most} pixels."):
            network(**feed(height, width))
    with pytest.raises(UsageError, match="height of 5 latents: expected a positive multiple of 2"):
        network(**feed(5, 4))


def test_sizes_beyond_the_positions_are_not_drawn(checked: Checked) -> None:
    pipeline = Pipeline(checked("sd3.5-medium")[1] / "bundle")
    assert pipeline.settings(height=768, width=64).height == 768
    for size in (784, 1536, 2**20):
        with pytest.raises(UsageError, match=f"width = {size}: expected at most 768"):
            pipeline.settings(width=size)


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    pages.write_above_reading(page, "# One\n")
    assert page.read_text() == "# One\n"
    page.write_text("# One\n\n## Reading\n\nGood.\n")
    pages.write_above_reading(page, "# Two\n")
    assert page.read_text() == "# Two\n\n## Reading\n\nGood.\n"
