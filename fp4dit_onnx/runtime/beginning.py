"""An image to begin with: read, encoded, noised to a strength, and kept outside of a mask.

The arithmetic is that of diffusers' image-to-image and inpainting pipelines.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import GIVEN, LARGE, read_bytes
from fp4dit_onnx.runtime.schedulers import Run
from fp4dit_onnx.values import real

__all__ = [
    "STRENGTH",
    "Start",
    "checked_strength",
    "drawn",
    "mask_of",
    "pixels_of",
    "read_image",
    "steps_taken",
]

FloatArray = npt.NDArray[np.float32]

STRENGTH = 0.6
IMAGE_MODES, MASK_MODES = ("RGB",), ("L", "1")
LARGEST_LOG_VARIANCE, LEAST_LOG_VARIANCE = 20, -30
"""diffusers keeps a VAE's logarithms of variances within these."""
_POSTERIOR = 0
"""Spawn key of a seed's noise on what the VAE's encoder gives."""


@dataclass(frozen=True)
class Start:
    """What denoising begins with in place of noise alone.

    Attributes:
        latents: of the image, as they are denoised, float32 [B, C, H, W].
        strength: share of the steps that are taken, above 0 and at most 1.
        mask: 1 where the image is made anew, 0 where it stays, float32 [H, W]; None for 1 everywhere.
    """

    latents: FloatArray
    strength: float = STRENGTH
    mask: FloatArray | None = None

    def rest(self, run: Run) -> Run:
        """The steps of a fresh run that are taken."""
        steps = len(run.timesteps)
        return run.since(steps - steps_taken(steps, self.strength))

    def kept(self, found: FloatArray, run: Run, index: int, noise: FloatArray) -> FloatArray:
        """`found`, the sample after step `index` of `rest`, with the image outside of the mask.

        Args:
            found: float32 [B, C, H, W].
            run: of which `index` is a step.
            index: 0, 1, ...
            noise: that the run began with, the same shape.
        """
        if self.mask is None:
            return found
        last = index + 1 == len(run.timesteps)
        there = self.latents if last else run.noised(self.latents, noise, index + 1)
        return np.asarray(self.mask * found + (1 - self.mask) * there, np.float32)


def steps_taken(steps: int, strength: float) -> int:
    """How many of `steps` are taken at a strength: one at least."""
    return steps - min(int(steps - steps * checked_strength(strength)), steps - 1)


def checked_strength(strength: Any) -> float:
    """A strength, above 0 and at most 1.

    Raises:
        UsageError: anything else.
    """
    if real("strength", strength, 0, 1) == 0:
        raise UsageError(
            "strength = 0: expected more than 0 and at most 1; with 0 nothing is denoised"
        )
    return float(strength)


def read_image(path: Path, what: str) -> Image.Image:
    """The image in a file, turned as its EXIF data say.

    Args:
        path: a file that pillow reads.
        what: its role, for messages.

    Raises:
        UsageError: no such file, or not an image.
    """
    data = read_bytes(path, what, GIVEN, LARGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a size that is an attack, or of damaged metadata
            image = Image.open(io.BytesIO(data))
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as cause:
        raise UsageError(
            f"{path} is not an image that pillow reads ({cause}): expected {what}, such as a PNG file"
        ) from cause


def pixels_of(image: Any, sampling: Sampling) -> FloatArray:
    """What a VAE's encoder takes of an image, -1 .. 1, float32 [1, 3, H, W].

    Raises:
        UsageError: no RGB image of the size that is asked for.
    """
    _check("image", image, IMAGE_MODES, sampling)
    values = np.asarray(image, np.float32) / 255  # [H, W, 3]
    return np.ascontiguousarray((2 * values - 1).transpose(2, 0, 1)[None])


def mask_of(mask: Any, sampling: Sampling, shape: tuple[int, int]) -> FloatArray:
    """1 where an image is made anew, 0 where it stays, for each of its latents.

    Args:
        mask: white where the image is made anew.
        sampling: says the image's size.
        shape: of the latents, H and W.

    Raises:
        UsageError: no image of one channel, of the size that is asked for.
    """
    _check("mask", mask, MASK_MODES, sampling)
    white = np.asarray(mask.convert("L")) >= 128
    rows, columns = (  # the pixel at the corner of each latent's, as diffusers takes it
        np.arange(latents) * pixels // latents
        for latents, pixels in zip(shape, white.shape, strict=True)
    )
    return white[np.ix_(rows, columns)].astype(np.float32)


def _check(what: str, image: Any, modes: Sequence[str], sampling: Sampling) -> None:
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"{what} is of type {type(image).__name__}: expected a PIL image; "
            "PIL.Image.open reads one from a file"
        )
    if image.mode not in modes:
        raise UsageError(
            f"{what} has the mode {image.mode}: expected {' or '.join(modes)}; "
            f"image.convert({modes[0]!r}) of pillow makes one"
        )
    width, height = sampling.width, sampling.height
    if image.size != (width, height):
        raise UsageError(
            f"{what} has {image.width} x {image.height} pixels: expected {width} x {height}, width "
            "and height of what is generated; resize it, or give its size as width and height"
        )


def drawn(parameters: FloatArray, seeds: Sequence[int], channels: int) -> FloatArray:
    """Latents of an image for each seed, as its VAE gives them, float32 [B, C, H, W].

    Args:
        parameters: means and logarithms of variances, float32 [1, 2 C, H, W]; or latents, [1, C, H, W].
        seeds: B seeds.
        channels: C.
    """
    mean = parameters[:, :channels]
    if parameters.shape[1] == channels:
        return np.repeat(mean, len(seeds), axis=0)
    logarithms = parameters[:, channels:].clip(LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
    # In float64 and rounded: exp of float32 differs from one library and processor to the next.
    spread = np.exp(logarithms.astype(np.float64) / 2).astype(np.float32)
    sequences = (np.random.SeedSequence(seed, spawn_key=(_POSTERIOR,)) for seed in seeds)
    generators = (np.random.Generator(np.random.PCG64(sequence)) for sequence in sequences)
    noise = [generator.standard_normal(mean.shape[1:], np.float32) for generator in generators]
    return np.asarray(mean + spread * np.stack(noise), np.float32)
