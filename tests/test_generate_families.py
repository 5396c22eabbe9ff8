"""Every family's pipeline without torch, against diffusers' on the same weights and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_pipeline
from diffusers_pair import (
    AURAFLOW,
    CONDITIONS,
    FLUX,
    FLUX2,
    HUNYUAN,
    META,
    PIXART,
    SANA,
    SD3,
    SEEDS,
    WITHOUT,
    Array,
    Case,
    Pair,
    bundle_of,
    diffusers,
    leave_out,
    load,
    sessions_of,
    torch,
)
from PIL import Image

from fp4dit_onnx.calibration.sampling import sample_latents
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.families.hunyuan import HUNYUAN_DIT
from fp4dit_onnx.runtime import Pipeline, Sampling, initial_latents
from fp4dit_onnx.system.silence import quiet

Agree = Callable[[Array, Array, float], None]
# Both sides run the same modules in torch; the schedulers differ by the rounding of float32, 1e-6 a
# step, which the network and guidance may enlarge. Measured: 1.3e-6 at most.
BOUND = 1e-5
GREY_LEVELS = 1  # a value next to a half may be rounded to either side


CASES = (
    Case("pixart-alpha-512", Sampling(20, 4.5, 64, 64, 120), PIXART),
    Case("pixart-alpha-512", Sampling(6, 1.0, 64, 96, 30), PIXART),
    Case("pixart-alpha-1024-ms", Sampling(20, 4.5, 96, 64, 120), PIXART + CONDITIONS),
    Case("pixart-sigma-1024-ms", Sampling(8, 4.5, 64, 96, 300), PIXART),
    Case("hunyuan-dit-1.1", Sampling(20, 5.0, 128, 96, 0), HUNYUAN + META),
    Case("hunyuan-dit-1.2", Sampling(8, 5.0, 64, 96, 0), HUNYUAN),
    Case("hunyuan-dit-1.2", Sampling(4, 1.0, 64, 64, 0), HUNYUAN),
    Case(
        "dit-xl-2-256",
        Sampling(20, 4.0, 64, 64, 0),
        ("hidden_states", "timestep", "class_labels"),
        ("class 7", "999"),
        "",
    ),
    Case("sd3-medium", Sampling(10, 5.0, 64, 96, 40), SD3),
    Case("sd3-medium without text_encoder_3 tokenizer_3", Sampling(4, 5.0, 64, 64, 40), SD3),
    Case("flux-schnell", Sampling(4, 0.0, 64, 96, 40), FLUX, negative_prompt=""),
    Case("flux-dev", Sampling(10, 3.5, 96, 64, 40), (*FLUX, "guidance"), negative_prompt=""),
    Case("auraflow", Sampling(10, 3.5, 96, 64, 40), AURAFLOW),
    Case("sana-1600m", Sampling(10, 4.5, 128, 96, 40), SANA),
    Case("z-image", Sampling(6, 0.0, 96, 64, 70), SANA),
    Case("z-image", Sampling(6, 4.0, 64, 96, 40), SANA),
    Case("flux2-klein-4b", Sampling(4, 1.0, 96, 64, 40), FLUX2, negative_prompt=""),
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a model's twin, once."""
    root = tmp_path_factory.mktemp("twins")

    def make(model: str) -> Path:
        if not (root / model).exists():
            name, _, left_out = model.partition(WITHOUT)
            random_pipeline.make(name, root / model, twin=True)
            leave_out(root / model, left_out.split())
        return root / model

    return make


@pytest.fixture
def pair_of(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], Pair]:
    """Loads a case here and in diffusers."""

    def make(case: Case) -> Pair:
        pipe = load(folder_of(case.model))
        parts = sessions_of(pipe, case.inputs)
        monkeypatch.setattr(
            "fp4dit_onnx.runtime.pipeline.session", lambda path, **_: parts[path.parent.name]
        )
        bundle = bundle_of(folder_of(case.model), tmp_path, case.sampling)
        return Pair(case, Pipeline(bundle), pipe)

    return make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_latents_and_pictures_are_those_of_diffusers(
    case: Case, pair_of: Callable[[Case], Pair], agree: Agree, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_of(case)
    found = pair.our_latents()
    expected, pictures = pair.their_run(monkeypatch)
    assert len(found) == len(expected) == case.sampling.steps
    for ours, theirs in zip(found, expected, strict=True):
        agree(ours, theirs, BOUND)
    for ours, theirs in zip(pair.ours.decode(expected[-1]), pictures, strict=True):
        difference = np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)
        assert np.abs(difference).max() <= GREY_LEVELS


def two_pictures(sampling: Sampling) -> tuple[Image.Image, Image.Image]:
    """An RGB picture and a mask that has its left third white, edges off the latents' grid."""
    rows, columns = np.mgrid[: sampling.height, : sampling.width]
    waves = [np.sin(rows / (5 + c)) * np.cos(columns / (9 - c)) for c in range(3)]
    picture = Image.fromarray((127.5 * (1 + np.stack(waves, axis=-1))).astype(np.uint8))
    mask = Image.fromarray(np.where(columns < sampling.width // 3 + 3, 255, 0).astype(np.uint8))
    return picture, mask


@pytest.mark.parametrize(
    ("number", "theirs", "strength"),
    [
        (8, "StableDiffusion3Img2ImgPipeline", 0.3),
        (8, "StableDiffusion3InpaintPipeline", 0.9),
        (11, "FluxImg2ImgPipeline", 0.6),
        (11, "FluxInpaintPipeline", 0.6),
        (14, "ZImageImg2ImgPipeline", 0.9),
    ],
)
def test_images_to_begin_with_are_those_of_diffusers(
    number: int,
    theirs: str,
    strength: float,
    pair_of: Callable[[Case], Pair],
    agree: Agree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same posterior noise, noise and steps: latents agree, with a mask and without."""
    pair, case = pair_of(CASES[number]), CASES[number]
    pair.ours.vae_encoder = sessions_of(pair.theirs, case.inputs)["vae_encoder"]
    sampling, inpaints = pair.ours.settings(), "Inpaint" in theirs
    picture, mask = two_pictures(sampling)
    start = pair.ours.begin(picture, SEEDS, sampling, strength, mask if inpaints else None)
    found = pair.ours.sample(
        case.prompts, SEEDS, sampling, negative_prompt=case.negative_prompt, start=start
    )
    shape = pair.ours.latent_shape(sampling)
    streams = [np.random.SeedSequence(seed, spawn_key=(0,)) for seed in SEEDS]
    drawn = [np.random.default_rng(s).standard_normal(shape, np.float32) for s in streams]
    fresh = [initial_latents(seed, shape) for seed in SEEDS]
    pipe = getattr(diffusers, theirs)(**pair.theirs.components)
    for module, noise in (
        ("diffusers.models.autoencoders.vae", drawn),
        (type(pipe).__module__, fresh),
    ):
        given = torch.from_numpy(np.stack(noise))
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, given=given, **__: given)
    pipe.set_progress_bar_config(disable=True)
    options = {"mask_image": mask} if inpaints else {}
    if not theirs.startswith("Flux"):
        options["negative_prompt"] = [case.negative_prompt] * len(SEEDS)
    with quiet():
        result = pipe(
            prompt=list(case.prompts),
            image=[picture] * len(SEEDS),
            strength=strength,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            height=sampling.height,
            width=sampling.width,
            max_sequence_length=sampling.max_sequence_length,
            output_type="latent",
            **options,
        )
    expected = pair.ours._family.latents.unpack(result.images.numpy(), (len(SEEDS), *shape))
    agree(found, expected, BOUND)


def test_the_float_sampler_adds_the_noise_of_the_runtime(
    pair_of: Callable[[Case], Pair], agree: Agree
) -> None:
    """Hunyuan-DiT's DDPM adds noise at every step; without that no picture could be compared."""
    case = CASES[5]
    pair = pair_of(replace(case, sampling=replace(case.sampling, steps=4), negative_prompt=""))
    found = sample_latents(pair.theirs, HUNYUAN_DIT, case.prompts, SEEDS, pair.case.sampling)
    agree(found.numpy(), pair.our_latents()[-1], BOUND)


def reversed_rows(value: Array) -> Array:
    return np.ascontiguousarray(value[::-1])


def ones(value: Array) -> Array:
    return np.ones_like(value)


INPUTS_THAT_COUNT = [
    (2, "encoder_hidden_states", reversed_rows),
    (2, "encoder_attention_mask", ones),
    (2, "resolution", lambda value: np.ascontiguousarray(value[:, ::-1])),
    (2, "aspect_ratio", lambda value: 1 / value),
    (2, "timestep", lambda value: value + 1),
    (4, "encoder_hidden_states", reversed_rows),
    (4, "text_embedding_mask", ones),
    (4, "encoder_hidden_states_t5", reversed_rows),
    (4, "text_embedding_mask_t5", ones),
    (4, "image_meta_size", lambda value: np.ascontiguousarray(value[:, ::-1])),
    (7, "class_labels", reversed_rows),
    (8, "encoder_hidden_states", reversed_rows),
    (8, "pooled_projections", reversed_rows),
    (9, "encoder_hidden_states", reversed_rows),
    (11, "guidance", lambda value: value + 1),
    (11, "img_ids", reversed_rows),
]


@pytest.mark.parametrize(
    ("number", "name", "change"),
    INPUTS_THAT_COUNT,
    ids=[f"{n}-{m}" for n, m, _ in INPUTS_THAT_COUNT],
)
def test_every_input_counts(
    number: int, name: str, change: Any, pair_of: Callable[[Case], Pair]
) -> None:
    case = CASES[number]
    pair = pair_of(replace(case, sampling=replace(case.sampling, steps=4)))
    right = pair.our_latents()[-1]
    pair.ours.transformer.changes[name] = change  # type: ignore[attr-defined]
    assert np.abs(pair.our_latents()[-1] - right).max() > 20 * BOUND * np.abs(right).max()


def test_hunyuan_is_fed_what_its_graph_declares(pair_of: Callable[[Case], Pair]) -> None:
    pair = pair_of(CASES[4])
    pair.ours.generate(["one", "two", "three"], steps=1)
    feed = pair.ours.transformer.feeds[0]  # type: ignore[attr-defined]
    assert {len(value) for value in feed.values()} == {6}
    integers = {name for name, value in feed.items() if value.dtype == np.int64}
    assert integers == {"text_embedding_mask", "text_embedding_mask_t5", "style"}
    assert {v.dtype for k, v in feed.items() if k not in integers} == {np.dtype(np.float32)}
    assert feed["image_meta_size"][5].tolist() == [1024, 1024, 128, 96, 0, 0]
    assert pair.ours.settings(height=32, width=48).height == 32
    with pytest.raises(UsageError, match="height = 72: expected a positive multiple of 16"):
        pair.ours.settings(height=72)


def test_sd3_reads_zeros_where_t5_is_left_out(pair_of: Callable[[Case], Pair]) -> None:
    pair = pair_of(CASES[9])
    pair.our_latents()
    text = pair.ours.transformer.feeds[0]["encoder_hidden_states"]  # type: ignore[attr-defined]
    assert text.shape[1:] == (77 + 40, pair.theirs.transformer.config.joint_attention_dim)
    assert text[:, :77].any()
    assert not text[:, 77:].any()
    assert not hasattr(pair.ours, "text_encoder_3")


def test_sd3_reads_clip_first_padded_with_zeros(pair_of: Callable[[Case], Pair]) -> None:
    pair = pair_of(CASES[8])
    pair.our_latents()
    text = pair.ours.transformer.feeds[0]["encoder_hidden_states"]  # type: ignore[attr-defined]
    clip, width = text[:, :77], pair.theirs.transformer.config.pooled_projection_dim
    assert not clip[:, :, width:].any()
    assert clip[:, :, :width].all(axis=(0, 1)).all()
    assert text[:, 77:, width:].any()
    pair.ours.text_encoder.outputs = ("last_hidden_state",)  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="expected penultimate_hidden_state among them"):
        pair.our_latents()
