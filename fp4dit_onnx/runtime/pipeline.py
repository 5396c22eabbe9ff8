"""Text to image from a bundle: numpy and ONNX Runtime, no torch.

The sampling is that of diffusers' PixArtAlphaPipeline. The noise of a seed is the project's own
definition (`initial_latents`), so that a float model in torch can start from the same latents.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fp4dit_onnx.errors import BundleError, UsageError, VerificationError
from fp4dit_onnx.runtime.schedulers import scheduler_from_config
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.runtime.tokenizer import Tokenizer

__all__ = ["Pipeline", "Sampling", "Step", "initial_latents"]

FloatArray = npt.NDArray[np.float32]
OnStep = Callable[["Step"], None]
OnLatents = Callable[[int, FloatArray], None]

_FAMILIES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")


class Session(Protocol):
    """The part of onnxruntime.InferenceSession that a pipeline uses."""

    def get_inputs(self) -> Sequence[Any]:
        """What the model takes; every item has a ``name`` and a ``shape``."""

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The model's outputs, in the order of `outputs`, or all of them."""


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        steps: calls of the transformer.
        guidance: weight of classifier-free guidance; at most 1 means none.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        max_sequence_length: tokens that a prompt is padded or cut to.
    """

    steps: int
    guidance: float
    height: int
    width: int
    max_sequence_length: int


@dataclass(frozen=True)
class Step:
    """What a callback sees of one denoising step.

    Attributes:
        index: 0, 1, ...
        timestep: the training timestep that the model was told.
        latents: what the model was given, float32 [B, C, H, W].
        model_output: its prediction after guidance, without the variance half, the same shape.
    """

    index: int
    timestep: int
    latents: FloatArray
    model_output: FloatArray


def initial_latents(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """The noise of `seed`: standard normal from numpy's PCG64, drawn in float32.

    Args:
        seed: not negative.
        shape: of one picture's latents, [C, H, W]; a batch has one seed a picture.
    """
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, np.float32)


def _step_noise(seeds: Sequence[int], index: int, shape: tuple[int, ...]) -> FloatArray:
    """Noise of step `index` for every seed, float32 [B, *shape]; only stochastic schedulers."""
    streams = (np.random.PCG64(np.random.SeedSequence([seed, index + 1])) for seed in seeds)
    noise = [np.random.Generator(s).standard_normal(shape, np.float32) for s in streams]
    return np.stack(noise)


class Pipeline:
    """A bundle, ready to generate.

    The parts are public and may be replaced: `tokenizer`, `scheduler`, and the sessions
    `text_encoder`, `transformer` and `vae_decoder`.

    Args:
        bundle_folder: as ``fp4dit-onnx export`` writes it.
        library: run the transformer's quantized layers in the custom-op library.
        threads: how many threads run one operator; None leaves the choice to ONNX Runtime.

    Raises:
        BundleError: a file is missing or damaged.
        MissingExtraError: onnxruntime is not installed.
        UsageError: the pipeline's family or its scheduler is not supported.
    """

    def __init__(
        self, bundle_folder: Path, *, library: bool = True, threads: int | None = None
    ) -> None:
        folder = Path(bundle_folder)
        _check_family(folder)
        self.defaults = _default_sampling(folder / "quantization.json")
        self.scheduler = scheduler_from_config(_read(folder / "scheduler/scheduler_config.json"))
        self.tokenizer = Tokenizer(folder / "tokenizer")
        self._transformer_path = folder / "transformer" / "model.onnx"
        self._transformer_config = _read(folder / "transformer/config.json")
        self._vae_config = _read(folder / "vae_decoder/config.json")
        self.text_encoder: Session = session(
            folder / "text_encoder" / "model.onnx", library=False, threads=threads
        )
        self.transformer: Session = session(
            self._transformer_path, library=library, threads=threads
        )
        self.vae_decoder: Session = session(
            folder / "vae_decoder" / "model.onnx", library=False, threads=threads
        )

    def settings(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Sampling:
        """The bundle's sampling settings with the changes given; None keeps the bundle's value.

        Raises:
            UsageError: a value that no picture can be made with.
        """
        default = self.defaults
        sampling = replace(
            default,
            steps=default.steps if steps is None else steps,
            guidance=default.guidance if guidance is None else guidance,
            height=default.height if height is None else height,
            width=default.width if width is None else width,
        )
        multiple = self._scale_factor * int(self._transformer_config.get("patch_size", 1))
        for name in ("height", "width"):
            size = getattr(sampling, name)
            if size < multiple or size % multiple:
                raise UsageError(f"{name} = {size}: expected a positive multiple of {multiple}")
        self._check_fixed_size(sampling)
        return sampling

    def _check_fixed_size(self, sampling: Sampling) -> None:
        """Refuse a size that differs from the one that the transformer was exported with, if any."""
        declared = {item.name: item.shape for item in self.transformer.get_inputs()}
        wanted = self.latent_shape(sampling)[1:]
        axes = list(declared.get("hidden_states", ()))[2:]  # of [B, C, H, W]
        for name, axis, latents in zip(("height", "width"), axes, wanted, strict=False):
            if isinstance(axis, int) and axis != latents:
                raise UsageError(
                    f"{name} = {getattr(sampling, name)}: expected {axis * self._scale_factor}, "
                    "the only one that this bundle was exported for"
                )

    def latent_shape(self, sampling: Sampling) -> tuple[int, int, int]:
        """Shape of one picture's latents, [C, H, W]."""
        factor = self._scale_factor
        channels = int(self._transformer_config["in_channels"])
        return channels, sampling.height // factor, sampling.width // factor

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        seeds: Sequence[int] | int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
        on_step: OnLatents = lambda *_: None,
    ) -> list[Image.Image]:
        """One picture a prompt.

        A picture depends on its own prompt and seed only, not on the others in the batch.

        Args:
            prompts: what to draw.
            negative_prompt: what guidance leads away from.
            seeds: one a prompt, or one for all.
            steps: calls of the transformer; None here and below means the bundle's default.
            guidance: weight of classifier-free guidance; at most 1 means none.
            height: in pixels.
            width: in pixels.
            batch_size: pictures at a time.
            progress: called with the steps done and the steps in all.
            on_step: called after each step of a batch with its index and the latents it made.

        Raises:
            UsageError: a setting that does not fit.
            VerificationError: the model gave numbers that are not finite.
        """
        if isinstance(prompts, str):
            raise UsageError("prompts is one string: expected a list of strings; write [prompt]")
        if batch_size < 1:
            raise UsageError(f"batch_size = {batch_size}: expected at least 1")
        sampling = self.settings(steps=steps, guidance=guidance, height=height, width=width)
        seed_list = _seed_list(seeds, len(prompts))
        starts = range(0, len(prompts), batch_size)
        total, counter = len(starts) * sampling.steps, itertools.count(1)

        def after_step(index: int, latents: FloatArray) -> None:
            on_step(index, latents)
            if progress is not None:
                progress(next(counter), total)

        pictures: list[Image.Image] = []
        for start in starts:
            batch = slice(start, start + batch_size)
            latents = self.sample(
                prompts[batch],
                seed_list[batch],
                sampling,
                negative_prompt=negative_prompt,
                after_step=after_step,
            )
            pictures.extend(self.decode(latents))
        return pictures

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        negative_prompt: str = "",
        on_step: OnStep | None = None,
        after_step: OnLatents = lambda *_: None,
    ) -> FloatArray:
        """Denoised latents of one batch, float32 [B, C, H, W].

        Args:
            prompts: what to draw.
            seeds: one a prompt.
            sampling: from `settings`.
            negative_prompt: what guidance leads away from.
            on_step: called after every call of the transformer.
            after_step: called after every step with its index and the latents it made.

        Raises:
            VerificationError: the model gave numbers that are not finite.
        """
        shape = self.latent_shape(sampling)
        latents = np.stack([initial_latents(seed, shape) for seed in seeds])  # [B, C, H, W]
        fixed = self._conditions(prompts, negative_prompt, sampling)
        trajectory = self.scheduler.start(sampling.steps)
        for index, timestep in enumerate(trajectory.timesteps):
            output = self._predict(latents, int(timestep), fixed, sampling.guidance)
            if on_step is not None:
                on_step(Step(index, int(timestep), latents, output))
            noise = _step_noise(seeds, index, shape) if self.scheduler.stochastic else None
            latents = trajectory.step(output, latents, noise)
            after_step(index, latents)
        for prompt, row in zip(prompts, latents, strict=True):
            if not np.isfinite(row).all():
                raise VerificationError(
                    f"{self._transformer_path} gave numbers that are not finite for the prompt "
                    f"{prompt!r}: export the bundle again with another recipe"
                )
        return latents

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """The pictures of `latents`, float32 [B, C, H, W]; one at a time to bound the memory."""
        scaling = np.float32(self._vae_config["scaling_factor"])
        shift = np.float32(self._vae_config.get("shift_factor") or 0)
        pictures = []
        for row in latents:
            feed = {"latent_sample": row[None] / scaling + shift}  # [1, C, H, W]
            pixels = _run(self.vae_decoder, feed, "vae_decoder")[0]  # [3, H, W], -1 .. 1
            scaled = np.clip(pixels / 2 + 0.5, 0, 1).transpose(1, 2, 0) * 255
            pictures.append(Image.fromarray(scaled.round().astype(np.uint8)))
        return pictures

    @property
    def _scale_factor(self) -> int:
        """Pixels a latent, along one side."""
        return int(2 ** (len(self._vae_config["block_out_channels"]) - 1))

    def _conditions(
        self, prompts: Sequence[str], negative_prompt: str, sampling: Sampling
    ) -> dict[str, npt.NDArray[Any]]:
        """The transformer's inputs that no step changes; with guidance, negative first."""
        texts = [negative_prompt, *prompts] if sampling.guidance > 1 else list(prompts)
        cleaned = [text.lower().strip() for text in texts]
        ids, mask = self.tokenizer(cleaned, sampling.max_sequence_length)
        feed = {"input_ids": ids, "attention_mask": mask}
        states = _run(self.text_encoder, feed, "text_encoder")  # [texts, L, D]
        count = len(prompts)
        if sampling.guidance > 1:
            rows = [0] * count + list(range(1, count + 1))
            states, mask = states[rows], mask[rows]  # [2 B, L, D] and [2 B, L]
        size = [sampling.height, sampling.width]
        return {
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask,
            "resolution": np.tile(np.array(size, np.float32), (len(states), 1)),
            "aspect_ratio": np.full((len(states), 1), size[0] / size[1], np.float32),
        }

    def _predict(
        self,
        latents: FloatArray,
        timestep: int,
        fixed: Mapping[str, npt.NDArray[Any]],
        guidance: float,
    ) -> FloatArray:
        """The model's output after guidance and without the variance half, as `latents`."""
        rows = np.concatenate([latents, latents]) if guidance > 1 else latents  # [B or 2 B, ...]
        feed = {
            "hidden_states": rows,
            "timestep": np.full(len(rows), timestep, np.float32),
            **fixed,
        }
        output = _run(self.transformer, feed, "transformer")
        if guidance > 1:
            negative, positive = np.split(output, 2)
            output = negative + np.float32(guidance) * (positive - negative)
        channels = latents.shape[1]
        return output[:, :channels] if output.shape[1] == 2 * channels else output


def _run(part: Session, feed: Mapping[str, npt.NDArray[Any]], name: str) -> FloatArray:
    """First output of `part` given those of `feed` that it declares."""
    declared = [item.name for item in part.get_inputs()]
    unknown = [item for item in declared if item not in feed]
    if unknown:
        raise BundleError(
            f"{name} needs the input {unknown[0]}, which this version does not feed: expected "
            f"inputs among {', '.join(feed)}; export the bundle again"
        )
    output: FloatArray = part.run(None, {item: feed[item] for item in declared})[0]
    return output


def _seed_list(seeds: Sequence[int] | int, count: int) -> list[int]:
    result = [seeds] * count if isinstance(seeds, int) else list(seeds)
    if len(result) != count:
        raise UsageError(f"{len(result)} seeds for {count} prompts: expected one each, or one int")
    negative = [seed for seed in result if seed < 0]
    if negative:
        raise UsageError(f"seed {negative[0]}: expected a whole number from 0")
    return result


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{path} does not exist: expected a file of the bundle; give the folder that "
            "fp4dit-onnx export wrote"
        ) from None
    except ValueError as cause:
        raise BundleError(f"{path} is no JSON: {cause}; export the bundle again") from cause
    if not isinstance(value, dict):
        raise BundleError(f"{path} holds no JSON object: export the bundle again")
    return value


def _check_family(folder: Path) -> None:
    name = str(_read(folder / "model_index.json").get("_class_name"))
    if name.removeprefix("ORT") not in _FAMILIES:
        raise UsageError(
            f"{folder}/model_index.json names the pipeline {name}: "
            f"expected one of {', '.join(_FAMILIES)}"
        )


def _default_sampling(path: Path) -> Sampling:
    stored = _read(path).get("sampling")
    expected = [field.name for field in fields(Sampling)]
    missing = [n for n in expected if not isinstance(stored, dict) or n not in stored]
    if missing or not isinstance(stored, dict):
        raise BundleError(f"{path} lacks sampling.{missing[0]}: export the bundle again")
    return Sampling(**{name: stored[name] for name in expected})
