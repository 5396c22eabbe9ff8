"""Calibration on the user's own latents: what the network is given, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from fp4dit_onnx.calibration.sampling import decode, load_pipeline, pipeline_sampler
from fp4dit_onnx.checkpoint.checkpoint import demo_folder, open_checkpoint
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.calibration_data import CalibrationData, read_data, repeated
from fp4dit_onnx.exporting.export import export
from fp4dit_onnx.exporting.plan import ExportRequest, plan
from fp4dit_onnx.families import family_of
from fp4dit_onnx.network.execution import HOST
from fp4dit_onnx.network.networks import VaeDecoder, VaeEncoder
from fp4dit_onnx.runtime.sampling import Sampling, initial_latents
from fp4dit_onnx.system.progress import SilentReporter

TRAINED = Path(__file__).parent / "pipelines"
SHAPE = (4, 8, 8)


def write(folder: Path, count: int = 3, shape: tuple[int, ...] = SHAPE) -> Path:
    """Latents in both kinds of files, with captions."""
    random = np.random.default_rng(1)
    for i in range(count):
        values = random.normal(size=shape).astype(np.float16)
        if i % 2:
            save_file({"latents": values}, folder / f"{i}.safetensors")
        else:
            np.save(folder / f"{i}.npy", values)
        (folder / f"{i}.txt").write_text(f"a red\ncircle {i}\n")
    return folder


@pytest.mark.parametrize("name", ["demo", "dit", "sd3"])
@torch.no_grad()
def test_steps_begin_with_the_images_at_their_noise(name: str) -> None:
    """Of diffusion with text and with classes, and of flow matching; the first with noise alone."""
    checkpoint = open_checkpoint(demo_folder() if name == "demo" else TRAINED / name)
    pipeline = load_pipeline(checkpoint)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    plans = plan(ExportRequest(output=Path("unused"), model=checkpoint.folder))
    sampling = Sampling(4, 3.0, plans.sampling.height, plans.sampling.width, 16)
    config = pipeline.transformer.config
    shape = (family.latents.channels(config.in_channels), config.sample_size, config.sample_size)
    known = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
    received: list[Any] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, args, given: received.append(args[0] if args else given["hidden_states"]),
        with_kwargs=True,
    )
    sampler = pipeline_sampler(pipeline, family, plans.prompts[:2], [5, 6], sampling, known=known)
    sampler.prepare()
    sampler.sample(lambda: None, 0)
    noise = np.stack([initial_latents(seed, shape) for seed in (5, 6)])
    scheduler = pipeline.scheduler
    for i, found in enumerate(received[-sampling.steps :]):
        time = float(scheduler.timesteps[i])
        if name == "sd3":
            wanted = (1 - time / 1000) * known + time / 1000 * noise
        else:
            kept = float(scheduler.alphas_cumprod[round(time)])
            wanted = kept**0.5 * known + (1 - kept) ** 0.5 * noise
        np.testing.assert_allclose(found[:2].numpy(), wanted if i else noise, atol=2e-3)


def test_an_export_calibrates_on_them(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    asked = ExportRequest(
        output=tmp_path / "bundle",
        calibration_data=write(folder),
        method="fp-adaround",
        preset="fast",
        iterations=1,
        samples=8,
        steps=2,
        calibration_prompts=4,
        components="transformer",
        report=False,
    )
    found = plan(asked)
    assert found.prompts == tuple(f"a red circle {i}" for i in (0, 1, 2, 0))
    assert (found.recorded.height, found.sampling.height) == (32, 64)
    manifest = export(asked).manifest
    assert manifest.model_sqnr_db is not None
    assert manifest.model_sqnr_db > 5


def images(folder: Path) -> Path:
    """With captions: a tall one, a red disc on white, its turned copy, and a white one."""
    tall = Image.new("RGB", (64, 128), "white")
    ImageDraw.Draw(tall).ellipse((10, 40, 40, 70), fill=(200, 60, 40))
    tall.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 8  # it is to be turned by a quarter to the left
    tall.transpose(Image.Transpose.ROTATE_270).save(folder / "b.webp", lossless=True, exif=exif)
    Image.new("L", (80, 70), 255).save(folder / "c.PNG")
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"picture {name}")
    return folder


@torch.no_grad()
def test_images_are_cut_and_encoded(tmp_path: Path) -> None:
    asked = ExportRequest(output=tmp_path / "out", calibration_data=images(tmp_path))
    found = plan(asked)
    assert found.prompts[:4] == ("picture a", "picture b", "picture c", "picture a")
    assert found.data is not None
    given = found.recorded, found.family, found.checkpoint, HOST, SilentReporter()
    latents = found.data.encoded(*given)
    assert latents.shape == (3, 4, 16, 16)
    np.testing.assert_array_equal(latents[0], latents[1])
    pipeline = load_pipeline(found.checkpoint)
    again, _, white = decode(pipeline, found.family, torch.from_numpy(latents))
    wanted = Image.open(tmp_path / "a.png").crop((0, 32, 64, 96))
    for found_image, image in ((again, wanted), (white, Image.new("RGB", (64, 64), "white"))):
        difference = np.asarray(found_image, np.int16) - np.asarray(image, np.int16)
        assert np.abs(difference).mean() < 8  # unscaled latents: above 20
    half = plan(replace(asked, calibration_size=32))
    assert half.data is not None
    assert half.data.encoded(half.recorded, *given[1:]).shape == (3, 4, 8, 8)


def test_latents_of_flux2_come_back() -> None:
    """Its squares of latents are normalized on the way in, and back on the way out."""

    class Vae(torch.nn.Module):
        decoder = torch.nn.Identity()
        bn = torch.nn.BatchNorm2d(8, affine=False)
        config = SimpleNamespace(patch_size=(2, 2))

        def encoder(self, images: torch.Tensor) -> torch.Tensor:
            """Means, and logarithms of variances."""
            return torch.cat([images, images], dim=1)

    vae = Vae()
    vae.bn.running_mean = torch.arange(8.0)
    vae.bn.running_var = torch.arange(1.0, 9.0)
    given = torch.randn(1, 2, 4, 4)
    latents = VaeEncoder(vae).latents(given)
    squares = torch.nn.functional.pixel_unshuffle(given, 2)
    wanted = (squares[0, 3] - 3) / (4 + vae.bn.eps) ** 0.5
    torch.testing.assert_close(torch.nn.functional.pixel_unshuffle(latents, 2)[0, 3], wanted)
    torch.testing.assert_close(VaeDecoder(vae)(latents)[0], given)


def spoiled(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        change(write(folder))

    return make


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (
        lambda folder: None,
        "neither latents nor images in it: expected images, NAME.png",
    ),
    "no caption": (spoiled(lambda f: (f / "1.txt").unlink()), "no caption 1.txt beside it"),
    "a batch": (spoiled(lambda f: np.save(f / "2.npy", np.zeros((1, *SHAPE)))), "[1, 4, 8, 8]"),
    "NaN": (spoiled(lambda f: np.save(f / "2.npy", np.full(SHAPE, np.nan))), "NaN"),
    "integers": (spoiled(lambda f: np.save(f / "2.npy", np.zeros(SHAPE, int))), "holds int64"),
    "objects": (spoiled(lambda f: np.save(f / "2.npy", np.array([{}]))), "cannot be read"),
    "cut off": (spoiled(lambda f: (f / "2.npy").write_bytes(b"\x93NUMPY")), "cannot be read"),
    "two tensors": (
        spoiled(lambda f: save_file({"a": np.ones(4), "b": np.ones(4)}, f / "1.safetensors")),
        "2 tensors: expected one",
    ),
    "no safetensors": (
        spoiled(lambda f: (f / "1.safetensors").write_bytes(b"x")),
        "1.safetensors",
    ),
    "two sizes": (spoiled(lambda f: np.save(f / "2.npy", np.zeros((4, 8, 16)))), "of one size"),
    "both kinds": (
        spoiled(lambda f: Image.new("RGB", (8, 8)).save(f / "0.png")),
        "latents (0.npy) and images (0.png) in it: expected one kind",
    ),
    "no image": (lambda f: (f / "a.jpg").write_bytes(b"no"), "a.jpg cannot be read as an image"),
    "an image without caption": (
        lambda f: Image.new("RGB", (8, 8)).save(f / "0.png"),
        "0.png has no caption 0.txt beside it",
    ),
    "channels": (lambda f: write(f, shape=(3, 8, 8)), "of 3 channels: expected 4"),
    "half a token": (
        lambda f: write(f, shape=(4, 8, 9)),
        "width = 36: expected a positive multiple",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_data_is_refused_in_a_line(wrong: str, tmp_path: Path) -> None:
    make, words = WRONG[wrong]
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(Fp4DitError) as refused:
        plan(ExportRequest(output=tmp_path / "out", calibration_data=folder))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration_data": Path("absent")}, "no such folder"),
        ({"method": "fp-rtn"}, "method fp-rtn looks at none"),
        ({"prompts": Path("p.txt")}, "leave out --prompts"),
        ({"calibration_size": 64}, "leave out --calibration-size"),
    ],
)
def test_what_does_not_go_with_data_is_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    given = {"calibration_data": write(tmp_path), **options}
    with pytest.raises(Fp4DitError, match=words):
        plan(ExportRequest(output=tmp_path / "out", **given))


def test_data_are_repeated_where_there_are_few(tmp_path: Path) -> None:
    found = read_data(write(tmp_path))
    assert isinstance(found, CalibrationData)
    assert found.latents.shape == (3, *SHAPE)
    np.testing.assert_array_equal(repeated(found.latents, 5)[3:], found.latents[:2])
