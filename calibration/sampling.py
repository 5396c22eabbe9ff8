"""The float pipeline in torch: loading it, and running its sampler over prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

from fp4dit_onnx.calibration.encoding import Encodings, drop_encoders, encode, load_encodings
from fp4dit_onnx.calibration.pipeline_run import PipelineRun
from fp4dit_onnx.calibration.record import Sampler
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, Component
from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.families.guidance import Guidance, Guided
from fp4dit_onnx.families.request import Encoded, Request, Text
from fp4dit_onnx.families.text_encoders import TEXT_ENCODERS
from fp4dit_onnx.network.execution import HOST, Execution, host
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.networks import VaeDecoder
from fp4dit_onnx.network.stored import hollow, loaded, opened
from fp4dit_onnx.network.z_image import BatchedZImage, Listed
from fp4dit_onnx.runtime.sampling import Sampling, image_of, initial_latents, step_noise
from fp4dit_onnx.runtime.sizes import pixels_a_latent
from fp4dit_onnx.system.resources import available_memory
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.tokenizer_files import WHOLE, read_parts

__all__ = [
    "BATCH",
    "decode",
    "load_pipeline",
    "network_calls",
    "pipeline_sampler",
    "sample_latents",
]

BATCH = 8
"""Prompts that are sampled together."""
_USED = ("model_max_length", "padding_side", "truncation_side")
"""What pipelines use of a tokenizer's settings."""
PROBE_PROMPTS = 4
"""Prompts on which the importance of the sampler's steps is measured."""


def load_pipeline(
    checkpoint: Checkpoint,
    transformer: Network | None = None,
    budget: float | None = None,
    *,
    calibrates: bool = False,
    execution: Execution = HOST,
) -> Any:
    """The diffusers pipeline of a checkpoint, from the tensors that an export reads.

    Args:
        checkpoint: of all components.
        transformer: its transformer, where that was opened before.
        budget: bytes that each network with blocks may take in memory, see `opened`; None for half
            of what is free.
        calibrates: whether text encoders will run once and the VAE not at all, so that nothing of
            them stays in memory.
        execution: where it runs, and in which type.

    Raises:
        CheckpointError: configuration and weights do not fit, or diffusers cannot build it.
    """
    pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
    if budget is None:
        there = available_memory()
        budget = math.inf if there is None else there / 2
    if transformer is None:
        family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
        interface = family.interface(checkpoint.transformer_config)
        part = checkpoint.components["transformer"]
        transformer = opened(part, interface, budget, execution)
    networks = {"transformer": transformer.module}
    for name, part in checkpoint.components.items():
        if part.tensors and name not in networks:
            networks[name] = _network(part, budget, execution, calibrates=calibrates)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with quiet():
            pipeline = pipeline_class.from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                **networks,
                **_tokenizers(checkpoint),
                **dict.fromkeys(checkpoint.absent),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.folder}: diffusers cannot load it as {checkpoint.pipeline_class}: {error}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(transformer.module, BatchedZImage):
        pipeline.transformer = Listed(transformer.module)
    return pipeline


def _network(
    part: Component, budget: float, execution: Execution, *, calibrates: bool
) -> torch.nn.Module:
    """A text encoder or VAE."""
    encoder = TEXT_ENCODERS.get(part.class_name)
    if encoder is not None:
        often = not calibrates
        where = execution if often else execution.once
        return opened(part, encoder.interface, budget, where, often=often).module
    return (hollow if calibrates else loaded)(part, execution)


def _tokenizers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Tokenizers that have no tokenizer.json: transformers needs further packages for some."""
    found = {}
    for name, part in checkpoint.components.items():
        if name.startswith("tokenizer") and not (part.folder / WHOLE).is_file():
            tokenizer, settings = read_parts(part.folder, part.class_name)
            found[name] = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
                tokenizer_object=tokenizer,
                pad_token=settings.special["pad"].content,
                **{key: settings.values[key] for key in _USED if key in settings.values},
            )
    return found


def network_calls(prompts: int, steps: int) -> int:
    """Calls of the transformer while `prompts` prompts are sampled."""
    return math.ceil(prompts / BATCH) * steps


@dataclass(frozen=True)
class _Generation:
    """Images to generate: prompt i from the noise of seed i; fields as `sample_latents` has them."""

    pipeline: Any
    family: Family
    prompts: Sequence[str]
    seeds: Sequence[int]
    sampling: Sampling
    execution: Execution
    known: npt.NDArray[np.float32] | None = None

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Of latents."""
        channels = self.family.latents.channels(self.pipeline.transformer.config.in_channels)
        return channels, *_sides(self.pipeline, self.family, self.sampling)

    def latents(
        self,
        rows: range,
        on_call: Callable[[], None] = lambda: None,
        on_step: Callable[[int, torch.Tensor], None] | None = None,
        encodings: Encodings | None = None,
    ) -> torch.Tensor:
        """Final latents [P, C, H, W] of the images `rows`, batch by batch."""

        def watch(index: int, latents: torch.Tensor) -> None:
            assert on_step is not None
            on_step(index, self._unpacked(latents))

        handle = self.pipeline.transformer.register_forward_hook(lambda *_: on_call())
        parts = []
        try:
            for start in range(rows.start, rows.stop, BATCH):
                batch = range(start, min(start + BATCH, rows.stop))
                given = encodings.given(self.pipeline, batch) if encodings else nullcontext()
                with given:
                    run = self._run(batch, None if on_step is None else watch)
                parts.append(self._unpacked(run.latents))
        finally:
            handle.remove()
        return torch.cat(parts)

    def encodings(self) -> Encodings | None:
        """Of all prompts; None where the pipeline takes classes."""
        if not self.family.encoders:
            return None
        return encode(self.pipeline, len(self.prompts), self._run)

    def _run(
        self, rows: range, watch: Callable[[int, torch.Tensor], None] | None = None
    ) -> PipelineRun:
        """The pipeline's run over a batch."""
        seeds, shape = [self.seeds[i] for i in rows], self._shape
        prompts = [self.prompts[i] for i in rows]
        noise = np.stack([initial_latents(seed, shape) for seed in seeds])
        first = np.ascontiguousarray(self.family.latents.given(noise))
        given = self.execution.cast(torch.from_numpy(first))
        known = None
        if self.known is not None:
            images = self.known[rows.start : rows.stop]
            known = self._packed(images), self._packed(noise)
        run = PipelineRun(
            self.pipeline, lambda i: self._packed(step_noise(seeds, i, shape)), watch, known
        )
        options = {
            "num_inference_steps": self.sampling.steps,
            "guidance_scale": self.sampling.guidance,
        }
        if isinstance(self.pipeline.transformer, Listed):
            self.pipeline.transformer.length = self.sampling.max_sequence_length
        with quiet():
            if self.family.encoders:
                further = _text_options(self.family, self.sampling)
                run.of_prompts(prompts, given, **options, **further)
            else:
                labels = _labels(self.pipeline, self.family, prompts, self.sampling)
                run.of_classes(labels, given, **options)
        return run

    def _packed(self, latents: npt.NDArray[np.float32]) -> torch.Tensor:
        made: torch.Tensor = self.execution.cast(
            torch.from_numpy(self.family.latents.pack(latents))
        )
        return made

    def _unpacked(self, latents: torch.Tensor) -> torch.Tensor:
        shape = (len(latents), *self._shape)
        given = host(latents).float().numpy()
        return torch.from_numpy(self.family.latents.unpack(given, shape))


@torch.no_grad()
def sample_latents(
    pipeline: Any,
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_call: Callable[[], None] = lambda: None,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
    execution: Execution = HOST,
) -> torch.Tensor:
    """Final latents [P, C, H, W] of prompt i from the noise of seed i, on the host.

    A scheduler that adds noise at its steps adds `runtime.sampling.step_noise`.

    Args:
        pipeline: as `load_pipeline` returns it; its transformer may be a simulation.
        family: for the options of the pipeline's call.
        prompts: P texts.
        seeds: P seeds of the initial noise.
        sampling: steps, guidance, size and text length.
        on_call: called after each call of the transformer.
        on_step: called after each step of the scheduler, batch by batch, with the step's index in
            its batch and the latents [B, C, H, W] that it made, on the host.
        execution: where the pipeline is, and in which type.

    Raises:
        UsageError: a size that the diffusers pipeline does not take.
    """
    generation = _Generation(pipeline, family, prompts, seeds, sampling, execution)
    return generation.latents(range(len(prompts)), on_call, on_step)


def _sides(pipeline: Any, family: Family, sampling: Sampling) -> tuple[int, int]:
    """Height and width in latents; a pipeline that takes classes has a size of its own."""
    if family.encoders:
        factor = pipeline.vae_scale_factor
        return sampling.height // factor, sampling.width // factor
    own = int(pipeline.transformer.config.sample_size)
    pixels = own * pixels_a_latent(pipeline.vae.config)
    if (sampling.height, sampling.width) != (pixels, pixels):
        raise UsageError(
            f"{sampling.width} x {sampling.height} pixels: the float pipeline of {family.name} in "
            f"diffusers generates {pixels} x {pixels} alone; ask for that size"
        )
    return own, own


def _text_options(family: Family, sampling: Sampling) -> dict[str, Any]:
    """Of a pipeline that takes prompts."""
    length = sampling.max_sequence_length
    return {
        "height": sampling.height,
        "width": sampling.width,
        **({"max_sequence_length": length} if length and family.lets_choose_length else {}),
        **family.pipeline_options,
    }


def _labels(
    pipeline: Any, family: Family, prompts: Sequence[str], sampling: Sampling
) -> list[int]:
    """The classes that prompts name or number."""
    index = {"id2label": {str(number): name for name, number in pipeline.labels.items()}}
    config = pipeline.transformer.config
    request = Request(prompts, "", sampling, Guidance("none"), config, index)
    (labels,) = family.feed(request, _no_text).values()
    found: list[int] = labels.tolist()
    return found


def _no_text(text: Text, length: int, texts: Sequence[str]) -> Encoded:
    raise AssertionError(text)


@torch.no_grad()
def decode(pipeline: Any, family: Family, latents: torch.Tensor) -> list[Image.Image]:
    """The images of `latents` [P, C, H, W]; one at a time to bound the memory."""
    images: list[Image.Image] = []
    decoder = VaeDecoder(pipeline.vae)
    for row in torch.split(latents, 1):  # [1, C, H, W]
        given = family.latents.for_decoder(row, pipeline.vae.config)
        found = decoder(given.to(pipeline.vae.device, pipeline.vae.dtype))[0]
        images.append(image_of(host(found[0]).float().numpy()))
    return images


def pipeline_sampler(
    pipeline: Any,
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    execution: Execution = HOST,
    *,
    last: bool = True,
    known: npt.NDArray[np.float32] | None = None,
    kept: Path | None = None,
) -> Sampler:
    """The float pipeline over `prompts` as calibration runs it.

    Args:
        pipeline: as `load_pipeline` returns it.
        family: for the options of the pipeline's call.
        prompts: P texts.
        seeds: P seeds of the initial noise.
        sampling: steps, guidance, size and text length.
        execution: where the pipeline is, and in what precision.
        last: whether the text encoders are not needed any more once the prompts are encoded.
        known: latents [P, C, H, W] of images without noise that each step begins with, noised to its
            timestep, where the first begins with noise alone; None to generate images. The importance
            of steps is that of images that are generated either way.
        kept: file for the encodings of the prompts; those in it are read in place of encoding.
    """
    generating = _Generation(pipeline, family, prompts, seeds, sampling, execution)
    generation = replace(generating, known=known)
    encodings: Encodings | None = None

    @torch.no_grad()
    def prepare() -> None:
        nonlocal encodings
        if kept is not None and kept.exists():
            encodings = load_encodings(kept, execution)
        else:
            encodings = generation.encodings()
            if kept is not None and encodings is not None:
                encodings.save(kept)
        if last:
            drop_encoders(pipeline)

    @torch.no_grad()
    def sample(on_call: Callable[[], None], batch: int) -> torch.Tensor:
        rows = range(batch * BATCH, min((batch + 1) * BATCH, len(prompts)))
        return generation.latents(rows, on_call, encodings=encodings)

    @torch.no_grad()
    def probe(steps: int = sampling.steps) -> torch.Tensor:
        few = range(min(PROBE_PROMPTS, len(prompts)))
        own = replace(generating, sampling=replace(sampling, steps=steps))
        return own.latents(few, encodings=encodings)

    def close() -> None:
        for name in pipeline.components:
            if name != "transformer":
                setattr(pipeline, name, None)

    return Sampler(
        sample=sample,
        calls=network_calls(len(prompts), sampling.steps),
        prompts=len(prompts),
        batch=BATCH,
        steps=sampling.steps,
        tables=family.interface(pipeline.transformer.config).tables,
        guidance=Guided(family.guidance, sampling.guidance),
        probe=probe,
        prepare=prepare,
        close=close,
    )
