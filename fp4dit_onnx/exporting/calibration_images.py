"""The user's own images as calibration data: cut to one size, and encoded by the VAE's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.sampling_plan import at_size, check_size
from fp4dit_onnx.families import Family
from fp4dit_onnx.files import sha256_of_all
from fp4dit_onnx.system.progress import Reporter

if TYPE_CHECKING:
    from fp4dit_onnx.network.execution import Execution

__all__ = ["SUFFIXES", "ImageData", "check_images"]

FloatArray = npt.NDArray[np.float32]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and their captions, in the order of their names.

    Attributes:
        files: P images, of any sizes.
        captions: P texts; of a model of classes their names or numbers.
        size: side in pixels of the squares that they are cut to; None for the model's own size.
    """

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    size: int | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the files."""
        return sha256_of_all(self.files)

    def sampling(self, usual: Sampling, family: Family, checkpoint: Checkpoint) -> Sampling:
        """How data of this size are sampled; raises as `check_size`."""
        check_size(self.size, usual, family, checkpoint)
        return at_size(usual, self.size)

    def encoded(
        self,
        sampling: Sampling,
        family: Family,
        checkpoint: Checkpoint,
        execution: Execution,
        report: Reporter,
    ) -> FloatArray:
        """Latents without noise, as the transformer takes them but for packing: float32 [P, C, H, W].

        Args:
            sampling: has the size.
            family: of the latents.
            checkpoint: has the VAE, which is in memory for this alone.
            execution: where it runs; in float32.
            report: told of every image.

        Raises:
            CheckpointError: the VAE has no encoder.
            UsageError: a file is no image that can be read.
        """
        import torch

        from fp4dit_onnx.network.execution import host
        from fp4dit_onnx.network.networks import VaeEncoder
        from fp4dit_onnx.network.stored import loaded

        vae: Any = loaded(checkpoint.components["vae"], execution.exact)
        encoder = VaeEncoder(vae)
        found = []
        with (
            torch.no_grad(),
            report.stage("encoding your images", len(self.files), "images") as advance,
        ):
            for file in self.files:
                pixels = torch.from_numpy(_pixels(file, sampling.width, sampling.height)[None])
                latents = host(encoder.latents(pixels.to(execution.device)))
                found.append(family.latents.from_encoder(latents, vae.config).numpy())
                advance(1)
        return np.concatenate(found)


def check_images(files: Sequence[Path]) -> None:
    """Raise UsageError where a file is no image; its pixels are not read."""
    for file in files:
        with _opened(file):
            pass


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UsageError:
    why = " ".join(str(error).split())
    return UsageError(f"{file} cannot be read as an image: {why}: mend it or take it out")


def _pixels(file: Path, width: int, height: int) -> FloatArray:
    """Its middle, scaled to cover the size: [3, H, W], -1 .. 1, as a VAE's encoder takes it."""
    with _opened(file) as image:
        try:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(file, error) from error
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1
