"""Every family's pipeline without torch, against diffusers' on the same weights and noise."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from manifests import EMPTY

from fp4dit_onnx.bundle.bundle import write_manifest
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.runtime import Pipeline, Sampling, initial_latents
from fp4dit_onnx.runtime.sampling import step_noise
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.tokenizer_files import copy_tokenizer

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")  # transformers reads T5's tokenizer with it


Array = npt.NDArray[Any]
Agree = Callable[[Array, Array, float], None]
TOOLS = Path(__file__).resolve().parents[1] / "tools"
SEEDS = (3, 11)

# Both sides run the same modules in torch; the schedulers differ by the rounding of float32, 1e-6 a
# step, which the network and guidance may enlarge. Measured: 1.3e-6 at most.
BOUND = 1e-5
GREY_LEVELS = 1  # a value next to a half may be rounded to either side


@dataclass
class TorchSession:
    """A torch module behind what a pipeline uses of a session; keeps its feeds.

    `changes` says what is done to an input first, to see that it counts.
    """

    module: Callable[..., Any]
    inputs: Sequence[str]
    outputs: Sequence[str] = ("sample",)
    feeds: list[dict[str, Array]] = field(default_factory=list)
    changes: dict[str, Callable[[Array], Array]] = field(default_factory=dict)

    def get_inputs(self) -> list[Any]:
        """Names without shapes."""
        return [SimpleNamespace(name=name, shape=[]) for name in self.inputs]

    def get_outputs(self) -> list[Any]:
        """Names."""
        return [SimpleNamespace(name=name) for name in self.outputs]

    def run(self, _: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """What the module makes of `feed`."""
        assert sorted(feed) == sorted(self.inputs)
        self.feeds.append(dict(feed))
        changed = {k: self.changes[k](v) if k in self.changes else v for k, v in feed.items()}
        with torch.no_grad():
            outputs = self.module(**{k: torch.from_numpy(v) for k, v in changed.items()})
        return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]


@dataclass(frozen=True)
class Case:
    """A model of tools/random_pipeline.py and its prompts, one per seed."""

    model: str
    sampling: Sampling
    inputs: tuple[str, ...]
    prompts: tuple[str, ...] = ("A Red apple ", "two dogs, one of them asleep; 4k")
    negative_prompt: str = "Blurred "

    @property
    def id(self) -> str:
        """For pytest."""
        s = self.sampling
        return f"{self.model}-{s.height}x{s.width}-{s.guidance}"


WITHOUT = " without "
"""In a case's model: then the components that are left out."""
PIXART = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
CONDITIONS = ("resolution", "aspect_ratio")
HUNYUAN = (
    "hidden_states",
    "timestep",
    "encoder_hidden_states",
    "text_embedding_mask",
    "encoder_hidden_states_t5",
    "text_embedding_mask_t5",
)
META = ("image_meta_size", "style")
SD3 = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
FLUX = (*SD3, "img_ids", "txt_ids")
ENCODER_OUTPUTS = {
    "CLIPTextModel": ("last_hidden_state", "pooler_output"),
    "CLIPTextModelWithProjection": ("penultimate_hidden_state", "text_embeds"),
    "": ("last_hidden_state",),
}
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
)


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """tools/random_pipeline.py as a module."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield __import__("random_pipeline")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def folder_of(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a model's twin, once."""
    root = tmp_path_factory.mktemp("twins")

    def make(model: str) -> Path:
        if not (root / model).exists():
            name, _, left_out = model.partition(WITHOUT)
            tool.make(name, root / model, twin=True)
            leave_out(root / model, left_out.split())
        return root / model

    return make


def leave_out(folder: Path, names: Sequence[str]) -> None:
    """Null in the index for components of a pipeline, as diffusers saves it without them."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for name in names:
        shutil.rmtree(folder / name)
    path.write_text(json.dumps(index | {name: [None, None] for name in names}))


def load(folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    left_out = {name: None for name, value in index.items() if value == [None, None]}
    with quiet():
        cls = getattr(diffusers, index["_class_name"])
        pipe = cls.from_pretrained(folder, local_files_only=True, **left_out)
    pipe.set_progress_bar_config(disable=True)
    if pipe.transformer.config.get("use_additional_conditions"):
        pipe.transformer.register_to_config(sample_size=128)  # where diffusers feeds conditions
    return pipe


def arguments_of(pipe: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """What the module takes where the graph takes `feed`."""
    arguments = {k: v for k, v in feed.items() if k not in CONDITIONS}
    name = type(pipe).__name__
    if name.startswith("PixArt"):
        arguments["added_cond_kwargs"] = {k: feed.get(k) for k in CONDITIONS}
    if name.startswith("Hunyuan"):
        arguments["image_rotary_emb"] = rotary_of(pipe.transformer, feed["hidden_states"])
        arguments |= {k: feed.get(k) for k in META}
    return arguments


def rotary_of(transformer: Any, latents: Any) -> Any:
    """The rotary tables that HunyuanDiTPipeline makes for `latents`."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit import pipeline_hunyuandit as module

    patch = transformer.config.patch_size
    grid = (latents.shape[2] // patch, latents.shape[3] // patch)
    region = module.get_resize_crop_region_for_grid(grid, 64 // patch)
    head = transformer.inner_dim // transformer.num_heads
    return get_2d_rotary_pos_embed(head, region, grid, output_type="pt")


def sessions_of(pipe: Any, inputs: Sequence[str]) -> dict[str, TorchSession]:
    """The sessions of a bundle, by folder."""

    def transformer(**feed: Any) -> Any:
        return pipe.transformer(**arguments_of(pipe, feed), return_dict=False)[0]

    def encoder(name: str) -> TorchSession:
        def encode(input_ids: Any, attention_mask: Any) -> Any:
            output = getattr(pipe, name)(
                input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
            named = {**output, "penultimate_hidden_state": output.hidden_states[-2]}
            return tuple(named[name] for name in outputs)

        outputs = ENCODER_OUTPUTS.get(
            type(getattr(pipe, name, None)).__name__, ENCODER_OUTPUTS[""]
        )
        return TorchSession(encode, ("input_ids", "attention_mask"), outputs)

    return {
        "transformer": TorchSession(transformer, inputs),
        "vae_decoder": TorchSession(
            lambda latent_sample: pipe.vae.decode(latent_sample)[0], ("latent_sample",)
        ),
        "text_encoder": encoder("text_encoder"),
        "text_encoder_2": encoder("text_encoder_2"),
        "text_encoder_3": encoder("text_encoder_3"),
    }


def bundle_of(model: Path, target: Path, sampling: Sampling) -> Path:
    """The settings of a bundle of `model`, without its graphs."""
    for path in model.iterdir():
        if path.name.startswith(("scheduler", "text_encoder")):
            shutil.copytree(path, target / path.name)
        elif path.name.startswith("tokenizer"):
            class_name = json.loads((model / "model_index.json").read_text())[path.name][1]
            copy_tokenizer(path, class_name, target / path.name)
    for name, source in (("transformer", "transformer"), ("vae_decoder", "vae")):
        (target / name).mkdir()
        shutil.copy(model / source / "config.json", target / name)
    shutil.copy(model / "model_index.json", target)
    write_manifest(target, replace(EMPTY, sampling=sampling))
    return target


@dataclass
class Pair:
    """The same weights here and in diffusers."""

    case: Case
    ours: Pipeline
    theirs: Any

    def our_latents(self) -> list[Array]:
        """After every step, [B, C, H, W]."""
        states: list[Array] = []
        settings = self.ours.settings()
        self.ours.sample(
            self.case.prompts,
            SEEDS,
            settings,
            negative_prompt=self.case.negative_prompt,
            after_step=lambda _, latents: states.append(latents),
        )
        return states

    def their_run(self, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Array], Any]:
        """The latents after every step, [B, C, H, W], and the images, from our noise."""
        shape = self.ours.latent_shape(self.ours.settings())
        start = torch.from_numpy(np.stack([initial_latents(seed, shape) for seed in SEEDS]))
        states: list[Array] = []
        step = self.theirs.scheduler.step

        def watched(*arguments: Any, generator: Any = None, **options: Any) -> Any:
            result = step(*arguments, **options)
            states.append(self._unpacked(result[0]).numpy()[: len(SEEDS)])  # DiT steps both halves
            return result

        def noise(*_: Any, **__: Any) -> Any:
            return torch.from_numpy(step_noise(SEEDS, len(states), shape))

        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
        monkeypatch.setattr(self.theirs.scheduler, "step", watched, raising=False)
        with quiet():
            result = self._call(start, monkeypatch)
        return states, result.images

    def _call(self, start: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        sampling, name = self.case.sampling, type(self.theirs).__name__
        common = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance}
        if name == "DiTPipeline":
            module = "diffusers.pipelines.dit.pipeline_dit.randn_tensor"
            monkeypatch.setattr(module, lambda *_, **__: start)
            return self.theirs([7, 999], **common)
        common |= {"height": sampling.height, "width": sampling.width, "latents": start}
        if name == "FluxPipeline":
            common["latents"] = self.theirs._pack_latents(start, *start.shape)
        else:
            common["negative_prompt"] = [self.case.negative_prompt] * len(SEEDS)
        if name.startswith("PixArt"):
            common["clean_caption"] = False
        if name.startswith(("PixArt", "Hunyuan")):
            common["use_resolution_binning"] = False
        if not name.startswith("Hunyuan"):
            common["max_sequence_length"] = sampling.max_sequence_length
        return self.theirs(prompt=list(self.case.prompts), **common)

    def _unpacked(self, latents: Any) -> Any:
        size = (self.case.sampling.height, self.case.sampling.width)
        if latents.ndim == 4:
            return latents
        return self.theirs._unpack_latents(latents, *size, self.theirs.vae_scale_factor)


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
