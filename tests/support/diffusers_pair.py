"""A family's pipeline here and in diffusers, on the same weights and noise."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from manifests import EMPTY
from model_table import prediction

from fp4dit_onnx.bundle.bundle import write_manifest
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.exporting.components import copy_settings
from fp4dit_onnx.families.table import find_family
from fp4dit_onnx.families.text_encoders import JOINED
from fp4dit_onnx.runtime import Pipeline, Sampling, initial_latents
from fp4dit_onnx.runtime.sampling import step_noise
from fp4dit_onnx.system.silence import quiet

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")  # transformers reads T5's tokenizer with it

Array = npt.NDArray[Any]
SEEDS = (3, 11)


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
AURAFLOW = ("hidden_states", "encoder_hidden_states", "timestep")
SANA = (*AURAFLOW, "encoder_attention_mask")
FLUX2 = (*AURAFLOW, "img_ids", "txt_ids")
ENCODER_OUTPUTS = {
    "CLIPTextModel": ("last_hidden_state", "pooler_output"),
    "CLIPTextModelWithProjection": ("penultimate_hidden_state", "text_embeds"),
    "Qwen3Model": (JOINED,),
    "Qwen3ForCausalLM": (JOINED,),
    "": ("last_hidden_state",),
}


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
    from fp4dit_onnx.network.networks import VaeDecoder, VaeEncoder

    def transformer(**feed: Any) -> Any:
        return prediction(pipe.transformer, arguments_of(pipe, feed))

    family = find_family(type(pipe).__name__)
    assert family is not None
    hidden = {text.encoder: text.hidden for text in family.texts}

    def encoder(name: str) -> TorchSession:
        def encode(input_ids: Any, attention_mask: Any) -> Any:
            output = getattr(pipe, name)(
                input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
            named = {**output, "penultimate_hidden_state": output.hidden_states[-2]}
            if hidden.get(name):
                states = [output.hidden_states[number] for number in hidden[name]]
                named[JOINED] = torch.cat(states, dim=-1)
            return tuple(named[name] for name in outputs)

        outputs = ENCODER_OUTPUTS.get(
            type(getattr(pipe, name, None)).__name__, ENCODER_OUTPUTS[""]
        )
        return TorchSession(encode, ("input_ids", "attention_mask"), outputs)

    return {
        "transformer": TorchSession(transformer, inputs),
        "vae_decoder": TorchSession(
            lambda latent_sample: VaeDecoder(pipe.vae)(latent_sample), ("latent_sample",)
        ),
        "vae_encoder": TorchSession(lambda image: VaeEncoder(pipe.vae)(image), ("image",)),
        "text_encoder": encoder("text_encoder"),
        "text_encoder_2": encoder("text_encoder_2"),
        "text_encoder_3": encoder("text_encoder_3"),
    }


def bundle_of(model: Path, target: Path, sampling: Sampling) -> Path:
    """The settings of a bundle of `model`, without its graphs."""
    copy_settings(open_checkpoint(model), target)
    (target / "vae_decoder").mkdir()
    shutil.copy(model / "vae" / "config.json", target / "vae_decoder")
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
        if name.startswith("Flux"):
            given = self.ours._family.latents.given(start.numpy())
            common["latents"] = torch.from_numpy(np.ascontiguousarray(given))
        else:
            common["negative_prompt"] = [self.case.negative_prompt] * len(SEEDS)
        if name.startswith("PixArt"):
            common["clean_caption"] = False
        if name.startswith(("PixArt", "Hunyuan", "Sana")):
            common["use_resolution_binning"] = False
        if not name.startswith("Hunyuan"):
            common["max_sequence_length"] = sampling.max_sequence_length
        return self.theirs(prompt=list(self.case.prompts), **common)

    def _unpacked(self, latents: Any) -> Any:
        shape = (len(latents), *self.ours.latent_shape(self.case.sampling))
        return torch.from_numpy(self.ours._family.latents.unpack(latents.numpy(), shape))
