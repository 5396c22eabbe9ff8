"""How to sample, and the noise of a seed.

The noise is the project's own definition, so that a float model in torch can start from the same
latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.files import BUNDLE, read_json
from fp4dit_onnx.values import checked_seed, real, whole

__all__ = [
    "LARGEST_COUNT",
    "Sampling",
    "Step",
    "default_sampling",
    "for_decoder",
    "images_of",
    "initial_latents",
    "step_noise",
]

FloatArray = npt.NDArray[np.float32]

LARGEST_COUNT = 10_000
"""Images of one prompt in a run."""

LARGEST_GUIDANCE = 1000.0


@dataclass(frozen=True)
class Sampling:
    """How to sample; checks itself.

    Attributes:
        steps: calls of the transformer, from 1.
        guidance: weight of classifier-free guidance, 0 to `LARGEST_GUIDANCE`; at most 1 means none.
        height: of the picture, in pixels, from 1.
        width: of the picture, in pixels, from 1.
        max_sequence_length: tokens that a prompt is padded or cut to, where the family lets one
            choose: PixArt; 0 where there is no text.

    Raises:
        UsageError: a value of another type or out of its range.
    """

    steps: int
    guidance: float
    height: int
    width: int
    max_sequence_length: int

    def __post_init__(self) -> None:
        """Refuse what no picture can be made with, whatever the model."""
        for name, least in (("steps", 1), ("height", 1), ("width", 1), ("max_sequence_length", 0)):
            whole(name, getattr(self, name), least)
        real("guidance", self.guidance, 0, LARGEST_GUIDANCE)


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
    timestep: float
    latents: FloatArray
    model_output: FloatArray


def initial_latents(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """The noise of `seed`: standard normal from numpy's PCG64, drawn in float32.

    Args:
        seed: 0 to `values.LARGEST_SEED`.
        shape: of one picture's latents, [C, H, W]; a batch has one seed a picture.

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
        shape: of one picture's latents, [C, H, W].
    """
    streams = (np.random.PCG64(np.random.SeedSequence([seed, index + 1])) for seed in seeds)
    noise = [np.random.Generator(s).standard_normal(shape, np.float32) for s in streams]
    return np.stack(noise)


def images_of(
    prompts: Sequence[str], seeds: Sequence[int] | int, count: int = 1
) -> tuple[list[str], list[int]]:
    """Prompt and seed of each image, those of one prompt side by side.

    Args:
        prompts: P texts.
        seeds: one for all, P, or any number for a single prompt.
        count: images of each prompt and seed S, from S, S + 1, ...

    Raises:
        UsageError: another number of seeds, one out of range (`values.checked_seed`), or a count that is
            not within 1 .. `LARGEST_COUNT`.
    """
    given = list(seeds) if isinstance(seeds, Iterable) else [seeds] * len(prompts)
    texts = list(prompts) * len(given) if len(prompts) == 1 else list(prompts)
    if len(given) != len(texts):
        raise UsageError(
            f"{len(given)} seeds for {len(texts)} prompts: expected one each, or one int"
        )
    each = range(whole("count", count, 1, LARGEST_COUNT))
    repeated = [text for text in texts for _ in each]
    return repeated, [checked_seed(checked_seed(seed) + more) for seed in given for more in each]


def for_decoder(latents: Any, vae_config: Mapping[str, Any]) -> Any:
    """What a VAE's decoder takes, of latents as they are denoised.

    Args:
        latents: float32 array of numpy or tensor of torch, of any shape.
        vae_config: diffusers' config of the VAE; it may have no shift_factor, or null.
    """
    shift = vae_config.get("shift_factor") or 0.0
    return latents / float(vae_config["scaling_factor"]) + float(shift)


def default_sampling(manifest: Path) -> Sampling:
    """The sampling settings that a bundle's manifest carries.

    Raises:
        BundleError: the manifest cannot be read, lacks one, or has one out of range.
    """
    stored = read_json(manifest, "the manifest", BUNDLE).get("sampling")
    expected = [field.name for field in fields(Sampling)]
    missing = [n for n in expected if not isinstance(stored, dict) or n not in stored]
    if missing or not isinstance(stored, dict):
        raise BundleError(f"{manifest} lacks sampling.{missing[0]}: export the bundle again")
    try:
        return Sampling(**{name: stored[name] for name in expected})
    except UsageError as error:
        raise BundleError(f"{manifest}: sampling: {error}; export the bundle again") from error
