"""The pipeline without torch: against diffusers, and on its own."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from fp4dit_onnx.errors import BundleError, UsageError, VerificationError
from fp4dit_onnx.runtime import (
    Pipeline,
    Step,
    initial_latents,
    scheduler_from_config,
    session,
)
from fp4dit_onnx.runtime.sampling import step_noise
from fp4dit_onnx.system.silence import quiet

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")

Agree = Callable[[npt.NDArray[Any], npt.NDArray[Any], float], None]


PROMPTS = ("kissing cat face with closed eyes", "Chipmunk ", "an emoji of poultry leg")
SEEDS = (0, 7, 123)

# A prompt is drawn in 20 calls of a network that rounds as above, and guidance weighs two of its
# outputs with 3 and -2: up to 4e-5 a step, of which most is forgotten (the network pulls towards
# the data). Half a grey level is 4e-3 of the decoder's range of 2.
LATENT_ROUNDING = 1e-4
GREY_LEVELS = 1  # a value next to a half may be rounded to either side
FIRST_STEP, SECOND_STEP = (
    [[0.45598465, -2.1591032], [1.876122, -0.5396083]],
    [[-0.90865844, 0.10455288], [0.22016653, -0.40991807]],
)


@dataclass
class Input:
    """What `FakeSession` declares of one input."""

    name: str
    shape: list[Any] = field(default_factory=list)


@dataclass
class FakeSession:
    """Stands in for a session: declares `inputs`, records what it is fed, answers `answer(feed)`."""

    inputs: Sequence[Input]
    answer: Any
    feeds: list[dict[str, Any]] = field(default_factory=list)

    def get_inputs(self) -> Sequence[Input]:
        """The declared inputs."""
        return self.inputs

    def run(self, _: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The only output."""
        self.feeds.append(dict(feed))
        return [self.answer(feed)]


def grey_difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


@pytest.fixture
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline(bundle, library=False)


@pytest.fixture(scope="module")
def float_transformer(torch_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's transformer in float32 as ONNX."""
    from fp4dit_onnx.families import family_of
    from fp4dit_onnx.passes.pipeline import float_passes, run_passes
    from fp4dit_onnx.torch_export import export_float

    family = family_of("PixArtAlphaPipeline", "PixArtTransformer2DModel")
    model = export_float(torch_pipeline.transformer, family, torch_pipeline.transformer.config)
    parameters = frozenset(t.name for t in model.graph.initializer)
    model, _ = run_passes(model, float_passes(parameters))
    path = tmp_path_factory.mktemp("transformer") / "model.onnx"
    onnx.save(model, path)
    return path


def diffusers_latents(torch_pipeline: Any, guidance: float, steps: int) -> npt.NDArray[Any]:
    noise = [torch.from_numpy(initial_latents(seed, (4, 16, 16))) for seed in SEEDS]
    with quiet():
        result = torch_pipeline(
            prompt=list(PROMPTS),
            latents=torch.stack(noise),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=64,
            width=64,
            max_sequence_length=16,
            use_resolution_binning=False,
            clean_caption=False,
            output_type="latent",
        )
    latents: npt.NDArray[Any] = result.images.numpy()
    return latents


@pytest.mark.parametrize(("guidance", "steps"), [(3.0, 20), (1.0, 8)])
def test_pipeline_is_that_of_diffusers(
    agree: Agree,
    pipeline: Pipeline,
    float_transformer: Path,
    torch_pipeline: Any,
    guidance: float,
    steps: int,
) -> None:
    pipeline.transformer = session(float_transformer, library=False)
    settings = pipeline.settings(guidance=guidance, steps=steps)
    found = pipeline.sample(PROMPTS, SEEDS, settings)
    expected = diffusers_latents(torch_pipeline, guidance, steps)
    agree(found, expected, LATENT_ROUNDING)
    scale = torch_pipeline.vae.config.scaling_factor
    with torch.no_grad():
        decoded = torch_pipeline.vae.decode(torch.from_numpy(expected) / scale)[0]
    theirs = torch_pipeline.image_processor.postprocess(decoded, output_type="pil")
    for a, b in zip(pipeline.decode(found), theirs, strict=True):
        assert grey_difference(a, b) <= GREY_LEVELS


@pytest.mark.parametrize(
    ("name", "options", "guidance"),
    [
        ("LCMScheduler", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, 0.0),
        ("EulerDiscreteScheduler", {}, 3.0),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, 1.0),
        ("UniPCMultistepScheduler", {}, 3.0),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_schedulers_of_few_steps_are_those_of_diffusers(
    agree: Agree,
    pipeline: Pipeline,
    float_transformer: Path,
    torch_pipeline: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    guidance: float,
) -> None:
    """The first noise and the model's input are scaled as there, and guidance 0 runs one row."""
    theirs = getattr(diffusers, name)(**options)
    pipeline.scheduler = scheduler_from_config({"_class_name": name, **options})
    pipeline.transformer = session(float_transformer, library=False)
    found = pipeline.sample(PROMPTS, SEEDS, pipeline.settings(guidance=guidance, steps=4))
    steps = itertools.count()

    def noise(shape: Any, **_: Any) -> Any:
        return torch.from_numpy(step_noise(SEEDS, next(steps), tuple(shape[1:])))

    monkeypatch.setattr(torch_pipeline, "scheduler", theirs)
    module = sys.modules[type(theirs).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", noise)
    agree(found, diffusers_latents(torch_pipeline, guidance, 4), LATENT_ROUNDING)


def test_a_picture_depends_on_its_own_prompt_and_seed(pipeline: Pipeline) -> None:
    together = pipeline.generate(PROMPTS, seeds=SEEDS, steps=5)
    reports: list[tuple[int, int]] = []
    alone = pipeline.generate(
        PROMPTS[::-1],
        seeds=SEEDS[::-1],
        steps=5,
        batch_size=2,
        progress=lambda done, total: reports.append((done, total)),
    )[::-1]
    for a, b in zip(together, alone, strict=True):
        assert grey_difference(a, b) <= GREY_LEVELS
    assert reports == [(i, 10) for i in range(1, 11)]  # two batches of 5 steps
    assert grey_difference(together[0], together[1]) > 10
    same, other = pipeline.generate(PROMPTS[:1], seeds=[SEEDS[0], 1], steps=5)
    assert grey_difference(together[0], same) <= GREY_LEVELS
    assert grey_difference(together[0], other) > 10


def test_noise_of_ddpm_belongs_to_the_seed(agree: Agree, bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(bundle, library=False)
    pipeline.scheduler = scheduler_from_config(
        {"_class_name": "DDPMScheduler", "clip_sample": False}
    )
    settings = pipeline.settings(steps=6)
    together = pipeline.sample(PROMPTS, SEEDS, settings)
    alone = pipeline.sample(PROMPTS[1:2], SEEDS[1:2], settings)
    agree(alone[0], together[1], LATENT_ROUNDING)
    other = pipeline.sample(PROMPTS[1:2], SEEDS[:1], settings)
    assert np.abs(other[0] - together[1]).max() > 0.1


def test_noise_of_a_step_is_defined_by_the_seed() -> None:
    # As test_noise_is_defined_by_the_seed: the first numbers of seeds 0 and 7 at two steps.
    first, second = (step_noise([0, 7], index, (2,)) for index in (0, 1))
    assert first.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(first, np.array(FIRST_STEP, np.float32))
    np.testing.assert_array_equal(second, np.array(SECOND_STEP, np.float32))


def test_prompts_are_lower_case_and_trimmed(pipeline: Pipeline) -> None:
    seen: list[str] = []
    tokenizer = pipeline.tokenizer

    def watched(texts: Sequence[str], length: int) -> Any:
        seen.extend(texts)
        return tokenizer(texts, length)

    pipeline.tokenizer = watched  # type: ignore[assignment]
    pipeline.generate([" Red Apple\n"], negative_prompt="Ugly ", steps=1)
    assert seen == ["ugly", "red apple"]


def test_steps_are_seen(pipeline: Pipeline) -> None:
    seen: list[Step] = []
    pipeline.sample(PROMPTS, SEEDS, pipeline.settings(steps=4), on_step=seen.append)
    assert [(s.index, s.timestep) for s in seen] == [(0, 999), (1, 749), (2, 500), (3, 250)]
    first = np.stack([initial_latents(seed, (4, 16, 16)) for seed in SEEDS])
    np.testing.assert_array_equal(seen[0].latents, first)
    assert all(s.model_output.shape == s.latents.shape for s in seen)


def recording(inputs: Sequence[str], channels: int = 8) -> FakeSession:
    def answer(feed: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        batch, _, height, width = feed["hidden_states"].shape
        rows = np.arange(batch, dtype=np.float32).reshape(batch, 1, 1, 1)
        planes = np.arange(channels, dtype=np.float32).reshape(1, channels, 1, 1)
        return np.broadcast_to(rows + planes / 16, (batch, channels, height, width))

    return FakeSession([Input(name) for name in inputs], answer)


INPUTS = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")


@pytest.mark.parametrize("channels", [4, 8])
def test_guidance_is_negative_first_and_drops_the_variance(
    pipeline: Pipeline, channels: int
) -> None:
    pipeline.transformer = fake = recording(INPUTS, channels)
    seen: list[Step] = []
    settings = pipeline.settings(steps=1, guidance=3.0)
    pipeline.sample(PROMPTS[:2], SEEDS[:2], settings, on_step=seen.append)
    feed = fake.feeds[0]
    assert set(feed) == set(INPUTS)
    assert feed["hidden_states"].shape == (4, 4, 16, 16)
    assert feed["encoder_hidden_states"].shape == (4, 16, 128)
    assert (feed["timestep"].dtype, feed["timestep"].shape) == (np.float32, (4,))
    assert feed["encoder_attention_mask"].dtype == np.int64
    np.testing.assert_array_equal(feed["encoder_attention_mask"][0], [1] + 15 * [0])  # empty
    # Rows 0 and 1 answered 0 and 1, rows 2 and 3 answered 2 and 3: u + 3 * (c - u), exact.
    np.testing.assert_array_equal(seen[0].model_output[:, 0, 0, 0], [6, 7])
    np.testing.assert_array_equal(seen[0].model_output[0, :, 0, 0], 6 + np.arange(4) / 16)


def test_without_guidance_nothing_is_run_twice(pipeline: Pipeline) -> None:
    pipeline.transformer = fake = recording(INPUTS)
    pipeline.sample(PROMPTS, SEEDS, pipeline.settings(steps=2, guidance=1.0))
    assert [len(feed["hidden_states"]) for feed in fake.feeds] == [3, 3]


def test_micro_conditions_are_fed_where_declared(pipeline: Pipeline) -> None:
    pipeline.transformer = fake = recording((*INPUTS, "resolution", "aspect_ratio"))
    pipeline.generate(PROMPTS[:1], steps=1, height=64, width=32)
    assert fake.feeds[0]["resolution"].tolist() == [[64, 32], [64, 32]]
    assert fake.feeds[0]["aspect_ratio"].tolist() == [[2], [2]]
    assert fake.feeds[0]["hidden_states"].shape == (2, 4, 16, 8)


def test_unknown_input_is_named(pipeline: Pipeline) -> None:
    pipeline.transformer = recording((*INPUTS, "style"))
    with pytest.raises(BundleError, match="transformer needs the input style"):
        pipeline.generate(PROMPTS, steps=1)


def test_numbers_that_are_not_finite_are_refused(pipeline: Pipeline) -> None:
    fake = recording(INPUTS)
    pipeline.transformer = FakeSession(fake.inputs, lambda feed: fake.answer(feed) * np.nan)
    with pytest.raises(VerificationError, match=r"not finite for the prompt 'kissing"):
        pipeline.generate(PROMPTS, steps=1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"height": 60}, "height = 60: expected a positive multiple of 8"),
        ({"width": 0}, "width = 0: expected a whole number from 1"),
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"seeds": [1]}, "1 seeds for 3 prompts"),
        ({"seeds": -1}, "seed = -1: expected a whole number from 0 to 18446744073709551615"),
        ({"seeds": 2**64}, "seed = 18446744073709551616: expected"),
        ({"seeds": [0, 1, 2.5]}, "seed = 2.5: expected a whole number"),
        ({"guidance": math.nan}, "guidance = nan: expected a number from 0 to 1000"),
        ({"guidance": -math.inf}, "guidance = -inf"),
        ({"steps": 2.0}, "steps = 2.0: expected a whole number"),
        ({"seeds": np.array(1.5)}, r"seed = array\(1.5\): expected a whole number"),
        ({"negative_prompt": None}, "negative prompt is of type NoneType: expected a str"),
        ({"steps": 1001}, "steps = 1001: expected a whole number from 1 to 1000"),
    ],
)
def test_requests_that_cannot_be_met(
    pipeline: Pipeline, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.generate(PROMPTS, **request_)


def test_a_transformer_of_fixed_size_draws_no_other(pipeline: Pipeline) -> None:
    fake = recording(INPUTS)
    fake.inputs[0].shape = ["batch", 4, 16, 16]
    pipeline.transformer = fake
    pipeline.settings(height=64)
    with pytest.raises(UsageError, match="width = 32: expected 64, the only one"):
        pipeline.settings(width=32)


def test_prompts_as_one_string_or_none(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="one string"):
        pipeline.generate("chipmunk")
    for prompts in (None, 3):
        with pytest.raises(UsageError, match=r"prompts is of type .*: expected a list of strings"):
            pipeline.generate(prompts)  # type: ignore[arg-type]
    for text in (b"chipmunk", 3, None):
        with pytest.raises(UsageError, match=r"prompt is of type .*: expected a str"):
            pipeline.generate([text])  # type: ignore[list-item]
    assert pipeline.generate([]) == []
    assert len(pipeline.generate((text for text in PROMPTS[:1]), steps=1)) == 1  # type: ignore[arg-type]


def test_noise_is_defined_by_the_seed() -> None:
    # numpy promises the stream of PCG64 and, across versions, changes standard_normal only with
    # notice: these are the first numbers of seed 0.
    expected = np.array([1.117622, -1.3871249, -0.4265716, -0.80358726], np.float32)
    found = initial_latents(0, (2, 2))
    assert found.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(found.ravel(), expected)
    assert np.abs(initial_latents(1, (2, 2)) - found).min() > 0
