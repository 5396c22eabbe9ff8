"""Text or class to image from a bundle: numpy and ONNX Runtime, no torch.

The sampling is that of diffusers' pipelines; what differs between them is in `families`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fp4dit_onnx.bundle.manifest import read_manifest
from fp4dit_onnx.bundle.names import MANIFEST, VAE_ENCODER, model_of
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.request import Encoded, Request, Text, tokenizer_of
from fp4dit_onnx.files import BUNDLE, read_json
from fp4dit_onnx.files.settings import transformer_settings, vae_settings
from fp4dit_onnx.runtime.adapters import WithAdapters
from fp4dit_onnx.runtime.beginning import (
    STRENGTH,
    Start,
    checked_strength,
    drawn,
    mask_of,
    pixels_of,
    steps_taken,
)
from fp4dit_onnx.runtime.bound import Recorder
from fp4dit_onnx.runtime.calling import DiffusersNames
from fp4dit_onnx.runtime.denoising import Denoising, check_finite, first_output
from fp4dit_onnx.runtime.encoding import encoded
from fp4dit_onnx.runtime.parts import family_in
from fp4dit_onnx.runtime.providers import Placement, placed_on
from fp4dit_onnx.runtime.reopening import check_process
from fp4dit_onnx.runtime.runs import start_run
from fp4dit_onnx.runtime.sampling import (
    Sampling,
    Step,
    image_of,
    images_of,
    initial_latents,
    step_noise,
)
from fp4dit_onnx.runtime.schedulers import Run, scheduler_from_config
from fp4dit_onnx.runtime.session import Session, session
from fp4dit_onnx.runtime.sizes import (
    check_fixed,
    check_memory,
    check_sides,
    latents_a_token,
    pixels_a_latent,
)
from fp4dit_onnx.runtime.tokenizer import Tokenizer
from fp4dit_onnx.runtime.turns import Turns
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.system.texts import utf8_text
from fp4dit_onnx.values import whole

__all__ = ["Pipeline", "Sampling", "Step", "initial_latents"]

FloatArray = npt.NDArray[np.float32]
OnStep = Callable[["Step"], None]
OnLatents = Callable[[int, FloatArray], None]


class Pipeline(DiffusersNames, WithAdapters):
    """A bundle, ready to generate.

    The parts are public and may be replaced: `scheduler`, the sessions `transformer` and
    `vae_decoder`, and as many as the family has of the sessions `text_encoder`, `text_encoder_2`
    and `text_encoder_3` with their `tokenizer`, `tokenizer_2` and `tokenizer_3`, less what is null
    in model_index.json and may be.

    Args:
        bundle_folder: as ``fp4dit-onnx export`` writes it.
        device: where all sessions run, see `session`.
        library: run quantized layers in the custom-op library; None where it has kernels for the
            device.
        threads: that run one operator on the CPU; None leaves the choice to ONNX Runtime.
        open_session: opens the model of a part, called as `session` is; by default `session`.
        cuda_graph: record the transformer's launches at the first step of a size and replay them at
            the others. A second copy of its weights is then on the device.
        low_memory: open each model when it is used and close the one before; on the CPU alone.

    Raises:
        BundleError: a file is missing or damaged.
        MissingExtraError: onnxruntime is not installed.
        OutOfMemoryError: the device has too little memory for the models.
        UsageError: the pipeline's family or its scheduler is not supported, the bundle holds
            the transformer only, or the device cannot be used.
    """

    text_encoder: Session
    text_encoder_2: Session
    text_encoder_3: Session
    tokenizer: Tokenizer
    tokenizer_2: Tokenizer
    tokenizer_3: Tokenizer

    def __init__(
        self,
        bundle_folder: Path | str,
        *,
        device: str | Placement = CPU,
        library: bool | None = None,
        threads: int | None = None,
        open_session: Callable[..., Session] | None = None,
        cuda_graph: bool = False,
        low_memory: bool = False,
    ) -> None:
        folder = self._folder = Path(bundle_folder)
        named = {"device": device, "library": library, "threads": threads}
        more = {"open_session": open_session, "cuda_graph": cuda_graph, "low_memory": low_memory}
        self._arguments = {**named, **more}
        self._process = os.getpid()
        self._model_index = read_json(
            folder / "model_index.json", "the list of components", BUNDLE
        )
        self._family = family_in(folder, self._model_index)
        self.defaults = read_manifest(folder / MANIFEST).sampling
        path = folder / "scheduler" / "scheduler_config.json"
        settings = read_json(path, "the scheduler's settings", BUNDLE, infinite=True)
        self.scheduler = scheduler_from_config(settings)
        transformer = folder / "transformer"
        self._transformer_path = transformer / "model.onnx"
        self._transformer_config = transformer_settings(transformer / "config.json", BUNDLE)
        self._vae_config = vae_settings(folder / "vae_decoder" / "config.json", BUNDLE)
        self.placed = placed_on(device)
        made = open_session or session
        made = Turns(made, self.placed) if low_memory else made
        self._opened = opened = partial(made, device=self.placed, threads=threads)
        recorded = partial(made, self._transformer_path, library=library)
        self._recorder = Recorder(recorded, self.placed) if cuda_graph else None
        for name in self._family.encoders_of(self._model_index):
            tokenizer = tokenizer_of(name)
            setattr(self, tokenizer, Tokenizer(folder / tokenizer))
            setattr(self, name, opened(folder / name / "model.onnx", library=library))
        self.transformer: Session = opened(self._transformer_path, library=library)
        self.vae_decoder: Session = opened(folder / "vae_decoder" / "model.onnx", library=False)
        self._adapters = {}
        self._parts = {k: v for k, v in vars(self).items() if not k.startswith("_")}

    @cached_property
    def vae_encoder(self) -> Session:
        """The VAE's encoder, loaded when an image is first encoded.

        Raises:
            UsageError: the bundle has none.
        """
        path = self._folder / model_of(VAE_ENCODER)
        if not path.is_file():
            raise UsageError(
                f"{self._folder} holds no {VAE_ENCODER}, which images to begin with need: export it "
                "again with this version, which writes one"
            )
        encoder: Session = self._opened(path, library=False)
        return encoder

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
            UsageError: a value that no image can be made with.
        """
        given = dict[str, Any](steps=steps, guidance=guidance, height=height, width=width)
        sampling = replace(self.defaults, **{k: v for k, v in given.items() if v is not None})
        self.check(sampling)
        return sampling

    def check(
        self, sampling: Sampling, prompts: Sequence[str] = (), negative_prompt: str = ""
    ) -> None:
        """Refuse what this bundle cannot make images with.

        Raises:
            UsageError: a size that the model cannot take, steps that its scheduler has not, or a
                prompt that is not one of its classes.
        """
        config, factor = self._transformer_config, self._scale_factor
        check_sides(sampling.height, sampling.width, self._family, config, factor)
        shapes = {item.name: item.shape for item in self.transformer.get_inputs()}
        latents = self.latent_shape(sampling)[1:]
        check_fixed(shapes.get("hidden_states", ()), latents, vars(sampling), factor)
        check_memory(sampling.height, sampling.width, self._vae_config)
        self._start(sampling)
        self._family.check(self._request(prompts, negative_prompt, sampling))

    def _start(self, sampling: Sampling) -> Run:
        """A fresh run of the scheduler."""
        _, height, width = self.latent_shape(sampling)
        tokens = height * width // latents_a_token(self._family, self._transformer_config) ** 2
        return start_run(self._family, self.scheduler, sampling.steps, tokens)

    def example_prompts(self) -> Sequence[str]:
        """Example prompts for this model: texts, or classes."""
        return self._family.prompts

    def latent_shape(self, sampling: Sampling) -> tuple[int, int, int]:
        """Shape of one image's latents, [C, H, W]."""
        factor = self._scale_factor
        channels = self._family.latents.channels(int(self._transformer_config["in_channels"]))
        return channels, sampling.height // factor, sampling.width // factor

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        seeds: Sequence[int] | int = 0,
        count: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        image: Image.Image | None = None,
        strength: float = STRENGTH,
        mask: Image.Image | None = None,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
        on_step: OnLatents | None = None,
    ) -> list[Image.Image]:
        """Images of prompts, those of one prompt side by side.

        An image depends on its own prompt and seed only, not on the others in the batch.

        Args:
            prompts: one per image; for DiT a class each, by name or number.
            negative_prompt: what the images should not show; DiT takes none.
            seeds: one per prompt, or one for all; of a single prompt also several, an image each.
            count: images of each prompt, from the seeds S, S + 1, ... where its seed is S.
            steps: calls of the transformer; None here and below means the bundle's default.
            guidance: weight of classifier-free guidance; at most 1 means none.
            height: in pixels.
            width: in pixels.
            image: to begin with in place of noise alone; RGB, of that height and width.
            strength: how much of it is changed, above 0 and at most 1: the share of the steps that
                are taken, from as much noise as there is at the first of them.
            mask: white where the image is made anew, black where it stays; one channel, of its size.
            batch_size: images at a time.
            progress: called with the steps done and the steps in all.
            on_step: called after each step of a batch with its index and the latents it made.

        Raises:
            UsageError: a setting that does not fit.
            VerificationError: the model gave numbers that are not finite.
        """
        if isinstance(prompts, str):
            raise UsageError("prompts is one string: expected a list of strings; write [prompt]")
        whole("batch_size", batch_size, 1)
        sampling = self.settings(steps=steps, guidance=guidance, height=height, width=width)
        prompts, chosen_seeds = images_of(prompts, seeds, count)
        self.check(sampling, prompts, negative_prompt)
        if image is None and mask is not None:
            raise UsageError("mask without an image: expected the image that it is of; give image")
        taken = steps_taken(sampling.steps, strength)
        starts, counter = range(0, len(prompts), batch_size), itertools.count(1)
        total = len(starts) * (sampling.steps if image is None else taken)

        def advance() -> None:
            if progress is not None:
                progress(next(counter), total)

        pictures: list[Image.Image] = []
        for start in starts:
            batch = slice(start, start + batch_size)
            begun = None
            if image is not None:
                begun = self.begin(image, chosen_seeds[batch], sampling, strength, mask)
            latents = self.sample(
                prompts[batch],
                chosen_seeds[batch],
                sampling,
                negative_prompt=negative_prompt,
                start=begun,
                after_step=on_step,
                progress=advance,
            )
            pictures.extend(self.decode(latents))
        return pictures

    def begin(
        self,
        image: Image.Image,
        seeds: Sequence[int],
        sampling: Sampling,
        strength: float = STRENGTH,
        mask: Image.Image | None = None,
    ) -> Start:
        """What denoising begins with, of an image; see `generate`.

        Raises:
            UsageError: an image, mask or strength that does not fit, or a bundle without an encoder.
        """
        channels, *shape = self.latent_shape(sampling)
        pixels = pixels_of(image, sampling)
        kept = None if mask is None else mask_of(mask, sampling, (shape[0], shape[1]))
        checked_strength(strength)
        found = first_output(self.vae_encoder, {"image": pixels}, VAE_ENCODER)
        latents = self._family.latents.from_encoder(
            drawn(found, seeds, channels), self._vae_config
        )
        return Start(latents, strength, kept)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        negative_prompt: str = "",
        start: Start | None = None,
        on_step: OnStep | None = None,
        after_step: OnLatents | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> FloatArray:
        """Denoised latents of one batch, float32 [B, C, H, W].

        Args:
            prompts: one per image.
            seeds: one per prompt.
            sampling: from `settings`.
            negative_prompt: what the images should not show.
            start: from `begin`, with the same seeds; None for noise alone.
            on_step: called after every call of the transformer.
            after_step: called after every step with its index and the latents it made.
            progress: called after every step; latents on a device stay there.

        Raises:
            UsageError: see `check` and `values.checked_seed`.
            VerificationError: the model gave numbers that are not finite.
        """
        check_process(self._process)
        self.check(sampling)
        shape = self.latent_shape(sampling)
        latents = np.stack([initial_latents(seed, shape) for seed in seeds])  # [B, C, H, W]
        request = self._request(prompts, negative_prompt, sampling)
        denoising = Denoising(
            self.transformer,
            self._family,
            request,
            self._family.feed(request, self._encode),
            lambda: self._start(sampling) if start is None else start.rest(self._start(sampling)),
            partial(step_noise, seeds, shape=shape) if self.scheduler.stochastic else None,
            start,
            self._adapters,
            self._recorder,
        )
        for made in denoising.steps(latents, self.placed):
            if on_step is not None:
                on_step(Step(made.index, made.timestep, made.given(), made.output()))
            if after_step is not None:
                after_step(made.index, made.latents())
            progress()
        latents = made.latents()
        check_finite(latents, prompts, self._transformer_path)
        return latents

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """The images of `latents`, float32 [B, C, H, W]; one at a time to bound the memory."""
        made = self._family.latents.for_decoder
        feeds = ({"latent_sample": made(row[None], self._vae_config)} for row in latents)
        return [image_of(first_output(self.vae_decoder, feed, "vae_decoder")[0]) for feed in feeds]

    @property
    def _scale_factor(self) -> int:
        """Pixels per latent, along one side."""
        return pixels_a_latent(self._vae_config)

    def _request(
        self, prompts: Sequence[str], negative_prompt: str, sampling: Sampling
    ) -> Request:
        return Request(
            [utf8_text("prompt", text) for text in prompts],
            utf8_text("negative prompt", negative_prompt),
            sampling,
            self._family.guidance,
            self._transformer_config,
            self._model_index,
        )

    def _encode(self, text: Text, length: int, texts: Sequence[str]) -> Encoded:
        """See `families.request.Encode`; runs the parts as they are now."""
        encoder, tokenizer = getattr(self, text.encoder), getattr(self, tokenizer_of(text.encoder))
        return encoded(encoder, tokenizer, text, length, texts, self._model_index)
