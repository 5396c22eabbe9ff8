"""The runtime without torch: against transformers, torch and diffusers, and on its own."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from PIL import Image

from fp4dit_onnx.compare import within
from fp4dit_onnx.components import (
    copy_settings,
    export_text_encoder,
    export_vae_decoder,
)
from fp4dit_onnx.errors import BundleError, UsageError, VerificationError
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.runtime import (
    Pipeline,
    Sampling,
    Step,
    Tokenizer,
    initial_latents,
    scheduler_from_config,
    session,
)
from fp4dit_onnx.silence import quiet

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")

SAMPLING = Sampling(steps=20, guidance=3.0, height=64, width=64, max_sequence_length=16)
PROMPTS = ("kissing cat face with closed eyes", "Chipmunk ", "an emoji of poultry leg")
SEEDS = (0, 7, 123)

# Rounding of float32 in a network of depth d, each layer a sum of some hundred terms: about
# sqrt(d) * sqrt(terms) * 6e-8 of the largest value, which for the text encoder (10 matrix products
# deep, 256 terms) and the decoder (25 convolutions, 576 terms) is 3e-6 to 7e-6. A wrong mask, a
# shifted position bias or another resampling changes values by 1e-2 and more.
NETWORK_ROUNDING = 1e-5

# A prompt is drawn in 20 calls of a network that rounds as above, and guidance weighs two of its
# outputs with 3 and -2: up to 4e-5 a step, of which most is forgotten (the network pulls towards
# the data). Half a grey level is 4e-3 of the decoder's range of 2.
LATENT_ROUNDING = 1e-4
GREY_LEVELS = 1  # a value next to a half may be rounded to either side

FAKE = """
<ir_version: {ir}, opset_import: ["": {opset}]>
fake (float[batch, 4, height, width] hidden_states, float[batch, text, 128] encoder_hidden_states,
      float[batch] timestep, int64[batch, text] encoder_attention_mask)
  => (float[batch, 8, height, width] sample)
{{
    hundredth = Constant <value_float = 0.01> ()
    text_axes = Constant <value_ints = [1, 2]> ()
    space = Constant <value_ints = [1, 2, 3]> ()
    last = Constant <value_ints = [2]> ()
    weight = Cast <to = 1> (encoder_attention_mask)
    column = Unsqueeze (weight, last)
    words = Mul (encoder_hidden_states, column)
    meaning = ReduceSum <keepdims = 0> (words, text_axes)
    shift = Unsqueeze (meaning, space)
    time = Unsqueeze (timestep, space)
    bent = Tanh (hidden_states)
    small_time = Mul (time, hundredth)
    phase = Sin (small_time)
    small_shift = Mul (shift, hundredth)
    product = Mul (bent, phase)
    predicted = Add (product, small_shift)
    sample = Concat <axis = 1> (predicted, hidden_states)
}}
"""


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


def agree(found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> None:
    """Assert that `found` is `expected` up to `tolerance` of the largest expected magnitude."""
    comparison = within(found, expected, tolerance * np.abs(expected).max())
    assert comparison.ok, comparison.detail


def grey_difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


@pytest.fixture(scope="module")
def bundle(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pipeline as a bundle, with a transformer that is a small formula."""
    folder = tmp_path_factory.mktemp("runtime") / "bundle"
    folder.mkdir()
    export_text_encoder(demo_folder, folder / "text_encoder")
    export_vae_decoder(demo_folder, folder / "vae_decoder")
    copy_settings(demo_folder, folder)
    text = FAKE.format(ir=IR_VERSION, opset=OPSET)
    onnx.save(onnx.parser.parse_model(text), folder / "transformer" / "model.onnx")
    manifest = {"sampling": asdict(SAMPLING)}
    (folder / "quantization.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline(bundle, library=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads wait busily for each other, which is slow where tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def torch_pipeline(demo_folder: Path) -> Any:
    with quiet():
        loaded = diffusers.PixArtAlphaPipeline.from_pretrained(
            demo_folder, torch_dtype=torch.float32, local_files_only=True
        )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def float_transformer(torch_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's transformer in float32 as ONNX."""
    from fp4dit_onnx.models import family_of
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


# --- tokenizer


HARD_PROMPTS = (
    "",
    " ",
    "cat " * 200,
    "naïve café — Καλημέρα 猫の顔 🐱🐈‍⬛",
    "zero\u200bwidth\tand\nnewline",
    "a </s> in the middle, <pad> too",
    "antidisestablishmentarianism" * 20,
)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 120])
def test_tokenizer_is_that_of_transformers(demo_folder: Path, length: int) -> None:
    lines = [
        line
        for name in ("calibration", "evaluation")
        for line in (demo_folder.parent / "prompts" / f"{name}.txt").read_text().splitlines()
    ]
    prompts = [*lines, *HARD_PROMPTS]
    theirs = transformers.AutoTokenizer.from_pretrained(demo_folder / "tokenizer")(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    )
    ids, mask = Tokenizer(demo_folder / "tokenizer")(prompts, length)
    assert ids.dtype == mask.dtype == np.dtype(np.int64)
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])
    assert ids.shape == (len(prompts), length)


def test_long_prompt_keeps_its_end_token(demo_folder: Path) -> None:
    ids, mask = Tokenizer(demo_folder / "tokenizer")(["cat " * 200], 5)
    assert ids[0, -1] == 1  # </s>
    assert mask.all()


def test_tokenizer_without_prompts(demo_folder: Path) -> None:
    ids, mask = Tokenizer(demo_folder / "tokenizer")([], 5)
    assert ids.shape == mask.shape == (0, 5)


def test_tokenizer_needs_a_file_and_a_padding_token(demo_copy: Path) -> None:
    folder = demo_copy / "tokenizer"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["padding"] = None
    for vocabulary in (content["model"]["vocab"], *content["added_tokens"]):
        if "<pad>" in vocabulary:
            vocabulary["<nothing>"] = vocabulary.pop("<pad>")
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<pad>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="padding token"):
        Tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match="is no tokenizer"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="does not exist"):
        Tokenizer(folder)


# --- components


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 16), (3, 5), (2, 120), (5, 33)])
def test_text_encoder_is_torchs(
    bundle: Path, torch_pipeline: Any, batch: int, length: int
) -> None:
    generator = np.random.default_rng(length)
    ids = generator.integers(0, 3000, (batch, length))
    kept = generator.integers(1, length + 1, (batch, 1))
    mask = (np.arange(length) < kept).astype(np.int64)  # [B, L]: each row padded elsewhere
    with torch.no_grad():
        expected = torch_pipeline.text_encoder(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )[0].numpy()
    encoder = session(bundle / "text_encoder" / "model.onnx", library=False)
    (found,) = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
    agree(found, expected, NETWORK_ROUNDING)


SIZES = [(1, 16, 16), (2, 16, 16), (3, 5, 20), (1, 1, 1)]


def check_decoder(path: Path, vae: Any, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    latents = np.random.default_rng(height).standard_normal((batch, 4, height, width))
    latents = latents.astype(np.float32)
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(latents), return_dict=False)[0].numpy()
    (found,) = session(path, library=False).run(None, {"latent_sample": latents})
    agree(found, expected, NETWORK_ROUNDING)


@pytest.mark.parametrize("size", SIZES)
def test_vae_decoder_is_torchs(
    bundle: Path, torch_pipeline: Any, size: tuple[int, int, int]
) -> None:
    check_decoder(bundle / "vae_decoder" / "model.onnx", torch_pipeline.vae, size)


def test_vae_decoder_with_attention(demo_copy: Path, tmp_path: Path) -> None:
    """The published autoencoders have an attention block, the demo's has none."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
    vae.save_pretrained(demo_copy / "vae")
    export_vae_decoder(demo_copy, tmp_path / "out")
    for size in SIZES:
        check_decoder(tmp_path / "out" / "model.onnx", vae, size)


@pytest.mark.parametrize("part", ["text_encoder", "vae_decoder"])
def test_components_stay_loadable_by_old_runtimes(bundle: Path, part: str) -> None:
    model = onnx.load(bundle / part / "model.onnx")
    assert model.ir_version == IR_VERSION
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET)}
    assert b"site-packages" not in model.SerializeToString()  # no trace of where it was made
    assert json.loads((bundle / part / "config.json").read_text())


def test_components_refuse_other_classes(demo_copy: Path, tmp_path: Path) -> None:
    index = json.loads((demo_copy / "model_index.json").read_text())
    index["text_encoder"][1] = "CLIPTextModel"
    (demo_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="CLIPTextModel is not supported: expected one of T5Enc"):
        export_text_encoder(demo_copy, tmp_path / "out")


# --- the whole pipeline


@pytest.mark.parametrize(("guidance", "steps"), [(3.0, 20), (1.0, 8)])
def test_pipeline_is_that_of_diffusers(
    pipeline: Pipeline, float_transformer: Path, torch_pipeline: Any, guidance: float, steps: int
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
    (other,) = pipeline.generate(PROMPTS[:1], seeds=1, steps=5)
    assert grey_difference(together[0], other) > 10


def test_noise_of_ddpm_belongs_to_the_seed(bundle: Path, tmp_path: Path) -> None:
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
        ({"width": 0}, "width = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"seeds": [1]}, "1 seeds for 3 prompts"),
        ({"seeds": -1}, "seed -1"),
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
    assert pipeline.generate([]) == []


def test_noise_is_defined_by_the_seed() -> None:
    # numpy promises the stream of PCG64 and, across versions, changes standard_normal only with
    # notice: these are the first numbers of seed 0.
    expected = np.array([1.117622, -1.3871249, -0.4265716, -0.80358726], np.float32)
    found = initial_latents(0, (2, 2))
    assert found.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(found.ravel(), expected)
    assert np.abs(initial_latents(1, (2, 2)) - found).min() > 0


# --- files that are missing or damaged


def damaged(bundle: Path, tmp_path: Path, name: str, content: str | None) -> Path:
    """A bundle of links to `bundle`, with file `name` replaced, or absent if `content` is None."""
    for path in bundle.rglob("*"):
        target = tmp_path / path.relative_to(bundle)
        if path.is_dir():
            target.mkdir()
        elif str(path.relative_to(bundle)) != name:
            target.symlink_to(path)
    if content is not None:
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("model_index.json", None, BundleError, "does not exist"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}', UsageError, "FluxPipeline"),
        ("quantization.json", "{}", BundleError, "lacks sampling.steps"),
        ("quantization.json", '{"sampling": {"steps": 1}}', BundleError, "sampling.guidance"),
        ("quantization.json", "[1", BundleError, "is no JSON"),
        ("quantization.json", "[1]", BundleError, "no JSON object"),
        ("transformer/model.onnx", None, BundleError, "does not exist"),
        ("transformer/model.onnx", "nonsense", BundleError, "cannot load"),
        ("vae_decoder/config.json", None, BundleError, "does not exist"),
        ("scheduler/scheduler_config.json", "{}", UsageError, "scheduler None"),
    ],
)
def test_damaged_bundles(
    bundle: Path, tmp_path: Path, name: str, content: str | None, error: Any, message: str
) -> None:
    folder = damaged(bundle, tmp_path, name, content)
    with pytest.raises(error, match=message) as caught:
        Pipeline(folder, library=False)
    assert name.split("/")[0] in str(caught.value) or name.startswith("scheduler")


# --- no torch


def test_generating_loads_no_torch(bundle: Path, tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("torch", "diffusers", "transformers", "onnx"):
    sys.modules[name] = None  # importing it fails
import pathlib
from fp4dit_onnx.runtime import Pipeline
(picture,) = Pipeline(pathlib.Path({str(bundle)!r}), library=False).generate(["cat"], steps=2)
picture.save({str(tmp_path / "cat.png")!r})
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (64, 64)


def test_comparator_fails_where_it_should() -> None:
    right = np.array([[1.0, -2.0]], np.float32)
    agree(right * np.float32(1 + 1e-6), right, NETWORK_ROUNDING)
    for wrong in (-right, right * np.float32(1.001), right * np.float32(np.nan), right[:, :1]):
        with pytest.raises(AssertionError):
            agree(wrong, right, NETWORK_ROUNDING)
