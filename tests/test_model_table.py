"""Families end to end on their twins: what tools/model_table.py finds, and bundles that draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
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
from random_pipeline import make

import fp4dit_onnx
from fp4dit_onnx.cases import inputs_of_sizes
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.export import ExportRequest, export
from fp4dit_onnx.models import family_of
from fp4dit_onnx.runtime.pipeline import Pipeline, initial_latents
from fp4dit_onnx.silence import quiet
from fp4dit_onnx.tracing import positions

Array = npt.NDArray[Any]
Agree = Callable[[Array, Array, float], None]

pytestmark = pytest.mark.usefixtures("one_torch_thread")
EXTRAS = ("flux-dev", "sd3.5-medium", "auraflow", "sana-1600m")
TRAJECTORY = 1e-4
"""Of the largest latent after a few steps: float32 rounding of the network (1e-5) at every step."""


@pytest.fixture(scope="module")
def twin_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each twin by name, made once."""
    root = tmp_path_factory.mktemp("twins")

    def made(name: str) -> Path:
        make(name, root / name, twin=True)
        return root / name

    return cache(made)


@pytest.mark.parametrize("name", EXTRAS)
def test_float_graphs_of_the_other_families(name: str, twin_of: Callable[[str], Path]) -> None:
    """Those that tests/test_models.py does not look at more closely."""
    found = model_table.float_distances(twin_of(name))
    assert len({(s.height, s.width) for s in found}) >= 3
    assert {s.batch for s in found} == {1, 2}
    assert max(found.values()) <= model_table.NEAR


def test_positions_one_patch_off_are_seen(
    twin_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(table: Any, side: int, height: Any, width: Any) -> Any:
        return positions.cropped_table(torch.roll(table, 1, 1), side, height, width)

    monkeypatch.setattr("fp4dit_onnx.tracing.dynamic.cropped_table", shifted)
    found = model_table.float_distances(twin_of("sd3.5-medium"))
    assert min(found.values()) > 10 * model_table.NEAR


def test_a_row_of_the_table() -> None:
    """Made, compared, exported and verified by the tool itself."""
    row = model_table.check("hunyuan-dit-1.2")
    assert row.ok, row
    assert row.checks == (26, 26)
    text = model_table.table([row])
    assert text.splitlines()[-1].startswith("| hunyuan-dit-1.2 | Hunyuan-DiT | ")
    assert text.endswith("| 4 x 2 | 26 of 26 checks | ok |")


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
    twin_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A twin exported whole with nothing quantized, so that results can be compared closely."""
    root = tmp_path_factory.mktemp("bundles")

    def made(name: str) -> Path:
        request = ExportRequest(
            root / name,
            twin_of(name),
            method="fp-rtn",
            measure=False,
            rules=("*=none",),
            components="transformer"
            if name == "auraflow"
            else "all",  # of an unknown text encoder
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


def test_an_exported_hunyuan_takes_the_place_of_diffusers_transformer(
    twin_of: Callable[[str], Path], float_bundle_of: Callable[[str], Path], agree: Agree
) -> None:
    """Two encoders, style and size, rotary tables from the graph, at 3:2."""
    pipe = loaded(twin_of("hunyuan-dit-1.1"))
    options = {
        "prompt": ["A red apple", "two dogs"],
        "num_inference_steps": 3,
        "height": 96,
        "width": 64,
        "use_resolution_binning": False,
        "output_type": "latent",
    }

    def drawn() -> Array:
        with quiet():
            result = pipe(**options, generator=torch.Generator().manual_seed(0))
        latents: Array = result.images.numpy()
        return latents

    wanted = drawn()
    pipe.transformer = fp4dit_onnx.load_transformer(float_bundle_of("hunyuan-dit-1.1"))
    agree(drawn(), wanted, TRAJECTORY)


def test_an_exported_flux_draws_what_diffusers_does(
    twin_of: Callable[[str], Path], float_bundle_of: Callable[[str], Path], agree: Agree
) -> None:
    """All parts from the bundle: CLIP and T5, packed latents, flow matching, on ONNX Runtime."""
    ours = Pipeline(float_bundle_of("flux-schnell"))
    settings = ours.settings(steps=3, height=64, width=96)
    shape, seeds = ours.latent_shape(settings), [3, 4]
    prompts = ["A red apple", "two dogs"]
    found = ours.sample(prompts, seeds, settings)
    pipe = loaded(twin_of("flux-schnell"))
    start = torch.from_numpy(np.stack([initial_latents(seed, shape) for seed in seeds]))
    with quiet():
        packed = pipe(
            prompts,
            num_inference_steps=3,
            guidance_scale=settings.guidance,
            height=64,
            width=96,
            latents=pipe._pack_latents(start, *start.shape),
            max_sequence_length=settings.max_sequence_length,
            output_type="latent",
        ).images
    wanted = pipe._unpack_latents(packed, 64, 96, pipe.vae_scale_factor).numpy()
    agree(found, wanted, TRAJECTORY)
    assert [picture.size for picture in ours.decode(found)] == [(96, 64)] * 2


@pytest.mark.parametrize(("name", "most"), [("sd3-medium", 48), ("auraflow", 16)])
def test_positions_reach_the_largest_size_and_no_further(
    twin_of: Callable[[str], Path], float_bundle_of: Callable[[str], Path], name: str, most: int
) -> None:
    bundle = float_bundle_of(name)
    assert json.loads((bundle / "quantization.json").read_text())["largest_size"] == 8 * most
    network = fp4dit_onnx.load_transformer(bundle)
    config = json.loads((bundle / "transformer" / "config.json").read_text())
    original = getattr(diffusers, config["_class_name"]).from_pretrained(
        twin_of(name), subfolder="transformer"
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


def test_sizes_beyond_the_positions_are_not_drawn(float_bundle_of: Callable[[str], Path]) -> None:
    pipeline = Pipeline(float_bundle_of("sd3-medium"))
    assert pipeline.settings(height=384, width=64).height == 384
    for size in (400, 768, 2**20):
        with pytest.raises(UsageError, match=f"width = {size}: expected at most 384"):
            pipeline.settings(width=size)


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    pages.write_above_reading(page, "# One\n")
    assert page.read_text() == "# One\n"
    page.write_text("# One\n\n## Reading\n\nGood.\n")
    pages.write_above_reading(page, "# Two\n")
    assert page.read_text() == "# Two\n\n## Reading\n\nGood.\n"
