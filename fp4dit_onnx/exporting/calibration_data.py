"""The user's own calibration data: a folder of latents or of images, each with its caption."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
from fp4dit_onnx.checkpoint.tensor_files import read_header
from fp4dit_onnx.checkpoint.tensor_reading import BF16, FLOATS, read_float32
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.calibration_images import SUFFIXES, ImageData, check_images
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.exporting.sampling_plan import latent_pixels
from fp4dit_onnx.families import Family
from fp4dit_onnx.files import GIVEN, read_text
from fp4dit_onnx.runtime.sizes import check_sides

__all__ = ["CalibrationData", "OwnData", "asked_data", "read_data", "repeated"]

FloatArray = npt.NDArray[np.float32]
NUMPY, SAFETENSORS, CAPTION = ".npy", ".safetensors", ".txt"
SAY = (
    f"expected images, NAME{'|'.join(SUFFIXES)}, or latents, NAME{NUMPY} or NAME{SAFETENSORS}, each "
    "[channels, height, width] as the transformer is given them, and beside each its caption "
    f"NAME{CAPTION}"
)


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Latents and their captions, in the order of their names.

    Attributes:
        latents: float32 [P, C, H, W], of images without noise, as a VAE's encoder gives them once they
            are shifted and scaled.
        captions: P texts; of a model of classes their names or numbers.
    """

    latents: FloatArray
    captions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the latents."""
        return hashlib.sha256(self.latents.tobytes()).hexdigest()

    def encoded(self, *_: object) -> FloatArray:
        """See `ImageData`."""
        return self.latents

    def sampling(self, usual: Sampling, family: Family, checkpoint: Checkpoint) -> Sampling:
        """How data of this size are sampled.

        Raises:
            UsageError: the network has other channels, or does not take the size.
        """
        config, factor = checkpoint.transformer_config, latent_pixels(checkpoint)
        _, channels, *sides = self.latents.shape
        wanted = family.latents.channels(int(config["in_channels"]))
        if channels != wanted:
            raise UsageError(
                f"calibration data have latents of {channels} channels: expected {wanted}, as "
                f"{checkpoint.transformer_class} takes them"
            )
        height, width = (factor * side for side in sides)
        if not family.encoders and (height, width) != (usual.height, usual.width):
            raise UsageError(
                f"calibration data are of {width} x {height} pixels: {family.name} takes "
                f"{usual.width} x {usual.height} alone"
            )
        check_sides(height, width, family, config, factor)
        return replace(usual, height=height, width=width)


OwnData = CalibrationData | ImageData


def repeated(latents: FloatArray, count: int) -> FloatArray:
    """As many latents as `count`, from the first again where there are fewer."""
    return latents[np.arange(count) % len(latents)]


def asked_data(request: ExportRequest, method: Method) -> OwnData | None:
    """The user's own data, None where none are given.

    Raises:
        UsageError: they are not used, or also given otherwise; or as `read_data`.
    """
    if request.calibration_data is None:
        return None
    where = f"calibration data {request.calibration_data}"
    if not method.needs_data:
        raise UsageError(f"{where}: method {method.name} looks at none: leave them out")
    if request.prompts is not None:
        raise UsageError(f"{where} have captions: leave out --prompts")
    found = read_data(request.calibration_data)
    size = request.calibration_size
    if isinstance(found, ImageData):
        return replace(found, size=size)
    if size is not None:
        raise UsageError(f"{where} are latents and have a size: leave out --calibration-size")
    return found


def read_data(folder: Path) -> OwnData:
    """The latents or images in a folder, and their captions.

    Raises:
        UsageError: no folder, nothing in it, or both in it; a file that is no latents or no image,
            latents of unlike shapes or that are not finite, or a file without a caption.
    """
    if not folder.is_dir():
        raise UsageError(f"calibration data {folder}: no such folder: {SAY}")
    there = sorted(folder.iterdir())
    files = [p for p in there if p.suffix in (NUMPY, SAFETENSORS)]
    images = [p for p in there if p.suffix.lower() in SUFFIXES]
    if not (files or images):
        raise UsageError(f"calibration data {folder}: neither latents nor images in it: {SAY}")
    if files and images:
        raise UsageError(
            f"calibration data {folder}: latents ({files[0].name}) and images ({images[0].name}) in "
            f"it: expected one kind; {SAY}"
        )
    if images:
        check_images(images)
        return ImageData(tuple(images), tuple(map(_caption, images)))
    latents = [_latents(file) for file in files]
    for file, one in zip(files, latents, strict=True):
        if one.shape != latents[0].shape:
            raise UsageError(
                f"{file} has shape {list(one.shape)}, {files[0].name} {list(latents[0].shape)}: "
                "expected latents of one size"
            )
    return CalibrationData(np.stack(latents), tuple(map(_caption, files)))


def _latents(file: Path) -> FloatArray:
    found = _numpy(file) if file.suffix == NUMPY else _safetensors(file)
    if found.ndim != 3 or not found.size:
        raise UsageError(
            f"{file} has shape {list(found.shape)}: expected latents [channels, height, width]"
        )
    if not np.isfinite(found).all():
        raise UsageError(f"{file} holds NaN or infinity: expected finite latents")
    return found


def _numpy(file: Path) -> FloatArray:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{file} cannot be read as numpy's: {error}: {SAY}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        kind = getattr(found, "dtype", type(found).__name__)
        raise UsageError(f"{file} holds {kind}: expected numbers of floating point")
    return found.astype(np.float32)


def _safetensors(file: Path) -> FloatArray:
    tensors = [*read_header(file).values()]
    if len(tensors) != 1 or tensors[0].dtype not in (*FLOATS, BF16):
        raise UsageError(
            f"{file} holds {len(tensors)} tensors: expected one, F32, F16 or BF16, with latents"
        )
    return read_float32(tensors[0])


def _caption(file: Path) -> str:
    path = file.with_suffix(CAPTION)
    if not path.is_file():
        raise UsageError(f"{file} has no caption {path.name} beside it: {SAY}")
    return " ".join(read_text(path, "a caption", GIVEN).split())
