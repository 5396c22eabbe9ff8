"""Images to begin with: PixArt against a loop in torch, and what is refused."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from PIL import Image

from fp4dit_onnx.drop_in import load_transformer
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.runtime import Pipeline, initial_latents
from fp4dit_onnx.runtime.beginning import read_image, steps_taken
from fp4dit_onnx.system.silence import quiet

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

PROMPT, SEED, STEPS, GUIDANCE = "red apple", 5, 10, 3.0
LEAST_PSNR = 38.0  # in dB


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """64 x 64, smooth, in colour."""
    rows, columns = np.mgrid[:64, :64] / 64
    channels = (rows, columns, (rows + columns) / 2)
    return Image.fromarray((255 * np.stack(channels, axis=-1)).astype(np.uint8))


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Pipeline:
    """The demo, with a transformer that is a formula."""
    return Pipeline(bundle, library=False)


def by_hand(pipe: Any, transformer: Any, picture: Image.Image, strength: float) -> Image.Image:
    """The recipe of diffusers, by its parts: encode, noise, denoise; the VAE's sample is ours."""
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=4)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    with quiet():
        scheduler.set_timesteps(STEPS)
    first = int(max(STEPS - min(STEPS * strength, STEPS), 0))
    scheduler.set_begin_index(first)
    times, scaling = scheduler.timesteps[first:], pipe.vae.config.scaling_factor
    drawn = np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(0,)))
    texts, mask, no_texts, no_mask = pipe.encode_prompt(
        PROMPT, negative_prompt="", clean_caption=False, max_sequence_length=16
    )
    with torch.no_grad():
        posterior = pipe.vae.encode(processor.preprocess(picture)).latent_dist
        shape = tuple(posterior.mean.shape[1:])
        sample = torch.from_numpy(drawn.standard_normal(shape, np.float32))
        latents = (posterior.mean + posterior.std * sample) * scaling
        noise = torch.from_numpy(initial_latents(SEED, shape))[None]
        latents = scheduler.add_noise(latents, noise, times[:1])
        for time in times:
            output = transformer(
                torch.cat([latents] * 2),
                encoder_hidden_states=torch.cat([no_texts, texts]),
                encoder_attention_mask=torch.cat([no_mask, mask]),
                timestep=time.expand(2),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample.chunk(2, dim=1)[0]
            without, guided = output.chunk(2)
            prediction = without + GUIDANCE * (guided - without)
            latents = scheduler.step(prediction, time, latents).prev_sample
        decoded = pipe.vae.decode(latents / scaling).sample
    (made,) = processor.postprocess(decoded)
    return made


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
def test_pixart_begins_with_an_image(
    pipeline: Pipeline,
    bundle: Path,
    torch_pipeline: Any,
    picture: Image.Image,
    strength: float,
) -> None:
    """The same transformer on both sides."""
    (ours,) = pipeline.generate(
        [PROMPT], seeds=SEED, steps=STEPS, guidance=GUIDANCE, image=picture, strength=strength
    )
    transformer = load_transformer(bundle, library=False)
    theirs = by_hand(torch_pipeline, transformer, picture, strength)
    assert psnr(np.asarray(ours), np.asarray(theirs)) > LEAST_PSNR
    assert psnr(np.asarray(ours), np.asarray(picture)) < LEAST_PSNR


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
def test_quantized_weights_begin_with_an_image(
    drawable: Callable[..., Path], torch_pipeline: Any, picture: Image.Image, strength: float
) -> None:
    """The demo's own transformer on both sides, its activations in float."""
    made = drawable("w4a16")
    (ours,) = Pipeline(made).generate(
        [PROMPT], seeds=SEED, steps=STEPS, guidance=GUIDANCE, image=picture, strength=strength
    )
    theirs = by_hand(torch_pipeline, load_transformer(made), picture, strength)
    assert psnr(np.asarray(ours), np.asarray(theirs)) > LEAST_PSNR


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
def test_with_rounded_activations_it_is_as_near_as_to_itself(
    demo_bundle: Path, torch_pipeline: Any, picture: Image.Image, strength: float
) -> None:
    """A start moved by a millionth rounds other values the other way, and so do torch's last bits."""
    ours = Pipeline(demo_bundle)
    sampling = ours.settings(steps=STEPS, guidance=GUIDANCE)
    start = ours.begin(picture, [SEED], sampling, strength)

    def image(latents: Any) -> Any:
        found = ours.sample([PROMPT], [SEED], sampling, start=replace(start, latents=latents))
        return np.asarray(ours.decode(found)[0])

    random = np.random.default_rng(0)
    moved = [1 + 1e-6 * random.standard_normal(start.latents.shape) for _ in range(4)]
    found = image(start.latents)
    near = [psnr(found, image((start.latents * by).astype(np.float32))) for by in moved]
    theirs = by_hand(torch_pipeline, load_transformer(demo_bundle), picture, strength)
    assert max(near) < LEAST_PSNR  # else there is nothing to tell apart
    assert psnr(found, np.asarray(theirs)) > min(near) - 2 * (max(near) - min(near)) - 1


def test_a_mask_keeps_the_rest(pipeline: Pipeline, picture: Image.Image) -> None:
    """Latents of what is black are the image's own; the steps that are taken are counted."""
    mask = Image.new("1", (64, 64))
    mask.paste(1, (0, 0, 64, 32))
    seen: list[int] = []
    pipeline.generate(
        [PROMPT],
        steps=4,
        image=picture,
        strength=0.5,
        mask=mask,
        progress=lambda *both: seen.append(both[1]),
    )
    assert seen == [2] * 2
    sampling = pipeline.settings(steps=4)
    start = pipeline.begin(picture, [SEED], sampling, 0.9, mask)
    found = pipeline.sample([PROMPT], [SEED], sampling, start=start)
    assert (found[:, :, 8:] == start.latents[:, :, 8:]).all()
    assert (found[:, :, :8] != start.latents[:, :, :8]).all()


@pytest.mark.parametrize(
    ("steps", "strength", "taken"), [(20, 0.6, 12), (28, 0.3, 9), (20, 1.0, 20), (20, 1e-9, 1)]
)
def test_steps_taken(steps: int, strength: float, taken: int) -> None:
    assert steps_taken(steps, strength) == taken


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": Image.new("RGB", (32, 64))}, "image has 32 x 64 pixels: expected 64 x 64"),
        ({"image": Image.new("RGBA", (64, 64))}, "image has the mode RGBA: expected RGB"),
        ({"image": "apple.png"}, "image is of type str: expected a PIL image"),
        ({"mask": Image.new("L", (64, 65))}, "mask has 64 x 65 pixels"),
        ({"mask": Image.new("RGB", (64, 64))}, "mask has the mode RGB: expected L or 1"),
        ({"image": None, "mask": Image.new("L", (64, 64))}, "mask without an image"),
        ({"strength": 0}, "strength = 0: expected more than 0"),
        ({"strength": 1.5}, "strength = 1.5: expected a number from 0 to 1"),
        ({"strength": float("nan")}, "strength = nan"),
        ({"image": None, "strength": 1.5}, "strength = 1.5"),
    ],
)
def test_what_images_do_not_begin_with(
    pipeline: Pipeline, picture: Image.Image, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        pipeline.generate([PROMPT], **{"image": picture, **changes})


def test_the_commands_images(run: Run, bundle: Path, picture: Image.Image, tmp_path: Path) -> None:
    """Bad ones in one line, before anything is written; and a good one."""
    files = {name: tmp_path / f"{name}.png" for name in ("rgb", "alpha", "small", "torn", "bomb")}
    picture.save(files["rgb"])
    picture.convert("RGBA").save(files["alpha"])
    picture.resize((32, 32)).save(files["small"])
    files["torn"].write_bytes(files["rgb"].read_bytes()[:99])
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    files["bomb"].write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check)
    words = [
        "generate",
        bundle,
        "--prompt",
        PROMPT,
        "-o",
        tmp_path / "out.png",
        "--steps",
        2,
        "--no-library",
    ]

    def refused(*more: object) -> Callable[..., None]:
        return run(*words, *more).refuses

    refused("--mask", files["rgb"])("--mask without an image", "--image FILE")
    refused("--strength", 0.5)("--strength without an image")
    refused("--image", files["alpha"])("mode RGBA")
    refused("--image", files["small"])("32 x 32 pixels: expected 64 x 64")
    refused("--image", files["torn"])("torn.png is not an image")
    refused("--image", files["bomb"])("bomb.png is not an image")
    refused("--image", tmp_path)("is not a file: expected an image to begin with")
    refused("--image", files["rgb"], "--strength", 2)("strength = 2")
    assert not (tmp_path / "out.png").exists()
    outcome = run(*words, "--image", files["rgb"], "--strength", 0.5)
    assert outcome.code == 0, outcome
    assert read_image(tmp_path / "out.png", "the result").size == (64, 64)


def test_bundles_from_before_encoders_were_written(
    bundle: Path, picture: Image.Image, tmp_path: Path
) -> None:
    older = shutil.copytree(bundle, tmp_path / "older")
    shutil.rmtree(older / "vae_encoder")
    with pytest.raises(UsageError, match=r"older holds no vae_encoder.*export it again"):
        Pipeline(older, library=False).generate([PROMPT], steps=2, image=picture)
