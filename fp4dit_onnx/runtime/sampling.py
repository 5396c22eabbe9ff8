"""How to sample, and the noise of a seed.

The noise is the project's own definition, so that a float model in torch can start from the same
latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.values import checked_seed, whole

__all__ = [
    "LARGEST_COUNT",
    "Sampling",
    "Step",
    "image_of",
    "images_of",
    "initial_latents",
    "step_noise",
]

FloatArray = npt.NDArray[np.float32]

LARGEST_COUNT = 10_000
"""Images of one prompt in a run."""


@dataclass(frozen=True)
class Step:
    """What a callback gets of one denoising step.

    Attributes:
        index: 0, 1, ...
        timestep: the training timestep that the model was given.
        latents: what the model was given, float32 [B, C, H, W].
        model_output: its prediction after guidance, without the variance half, the same shape.
    """

    index: int
    timestep: float
    latents: FloatArray
    model_output: FloatArray


def initial_latents(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """The noise of `seed`: standard normal from numpy's PCG64, drawn in float32.

    Args:
        seed: 0 to `values.LARGEST_SEED`.
        shape: of one image's latents, [C, H, W]; a batch has one seed per image.

    Raises:
        UsageError: a seed out of range.
    """
    return np.random.Generator(np.random.PCG64(checked_seed(seed))).standard_normal(
        shape, np.float32
    )


def step_noise(seeds: Sequence[int], index: int, shape: tuple[int, ...]) -> FloatArray:
    """Noise of step `index` for every seed, float32 [B, *shape]; only stochastic schedulers.

    Args:
        seeds: B seeds, not negative.
        index: 0, 1, ...
        shape: of one image's latents, [C, H, W].
    """
    streams = (np.random.PCG64(np.random.SeedSequence([seed, index + 1])) for seed in seeds)
    noise = [np.random.Generator(s).standard_normal(shape, np.float32) for s in streams]
    return np.stack(noise)


def image_of(pixels: FloatArray) -> Image.Image:
    """The image of what a VAE's decoder gives, [3, H, W], about -1 .. 1."""
    scaled = np.clip(pixels / 2 + 0.5, 0, 1).transpose(1, 2, 0) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def images_of(
    prompts: Sequence[str], seeds: Sequence[int] | int, count: int = 1
) -> tuple[list[str], list[int]]:
    """Prompt and seed of each image, those of one prompt side by side.

    Args:
        prompts: P texts.
        seeds: one for all, P, or any number for a single prompt.
        count: images of each prompt and seed S, from S, S + 1, ...

    Raises:
        UsageError: prompts that are no list, another number of seeds, one out of range
            (`values.checked_seed`), or a count that is not within 1 .. `LARGEST_COUNT`.
    """
    if not isinstance(prompts, Iterable):
        raise UsageError(
            f"prompts is of type {type(prompts).__name__}: expected a list of strings"
        )
    texts = list(prompts)
    several = isinstance(seeds, Iterable) and getattr(seeds, "ndim", 1) > 0
    given: list[Any] = list(seeds) if several else [seeds] * len(texts)  # type: ignore[arg-type]
    texts *= len(given) if len(texts) == 1 else 1
    if len(given) != len(texts):
        raise UsageError(
            f"{len(given)} seeds for {len(texts)} prompts: expected one each, or one int"
        )
    each = range(whole("count", count, 1, LARGEST_COUNT))
    repeated = [text for text in texts for _ in each]
    return repeated, [checked_seed(checked_seed(seed) + more) for seed in given for more in each]
