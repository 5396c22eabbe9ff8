"""What calibration samples: prompts, steps, guidance and sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.families import Family
from fp4dit_onnx.families.request import Request
from fp4dit_onnx.families.table import largest_side
from fp4dit_onnx.files import CHECKPOINT, read_json
from fp4dit_onnx.files.settings import sampling_settings, vae_settings
from fp4dit_onnx.prompts import demo_prompts, read_prompts
from fp4dit_onnx.runtime.sizes import check_sides, pixels_a_latent

__all__ = ["at_size", "calibration_prompts", "check_size", "latent_pixels", "usual_sampling"]

SAMPLING = "sampling.json"
"""Of a pipeline folder: steps, guidance, max_sequence_length, where they are not the family's."""


def usual_sampling(request: ExportRequest, family: Family, checkpoint: Checkpoint) -> Sampling:
    """How images are generated unless told otherwise, in calibration and with the bundle."""
    defaults, stated = dict(family.sampling), checkpoint.folder / SAMPLING
    if stated.is_file():
        defaults |= sampling_settings(stated, CHECKPOINT)
    own = int(checkpoint.transformer_config.get("sample_size") or defaults["sample_size"])
    most = largest_side(checkpoint.transformer_config) or own
    pixels = min(own, most) * latent_pixels(checkpoint)
    return Sampling(
        steps=request.steps or int(defaults["steps"]),
        guidance=defaults["guidance"] if request.guidance is None else request.guidance,
        height=pixels,
        width=pixels,
        max_sequence_length=int(defaults["max_sequence_length"]),
    )


def at_size(sampling: Sampling, size: int | None) -> Sampling:
    """The same in square images with a side of `size` pixels; None leaves it."""
    return sampling if size is None else replace(sampling, height=size, width=size)


def check_size(
    size: int | None, sampling: Sampling, family: Family, checkpoint: Checkpoint
) -> None:
    """Refuse images for calibration of a size that the network cannot take.

    Raises:
        UsageError: it is no multiple of a token's, or beyond the model's positions, or another than a
            model of classes generates.
    """
    if size is None:
        return
    if not family.encoders and size != sampling.height:
        raise UsageError(
            f"calibration_size {size}: {family.name} generates images of {sampling.height} pixels alone"
        )
    config, factor = checkpoint.transformer_config, latent_pixels(checkpoint)
    check_sides(size, size, family, config, factor)


def latent_pixels(checkpoint: Checkpoint) -> int:
    """Pixels of an image along a latent."""
    path = checkpoint.folder / "vae" / "config.json"
    if not path.is_file():
        return pixels_a_latent(None)
    return pixels_a_latent(vae_settings(path, CHECKPOINT))


def calibration_prompts(
    request: ExportRequest,
    family: Family,
    checkpoint: Checkpoint,
    sampling: Sampling,
    method: Method,
    captions: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """A prompt for each image of a calibration.

    Args:
        request: says how many, and from what file.
        family: has prompts of its own, where none are given.
        checkpoint: may name classes.
        sampling: how images are generated.
        method: says how many by default.
        captions: of the user's own data, if there are any.

    Raises:
        UsageError: the file of prompts cannot be used, or a prompt is no class of a model of classes.
    """
    prompts: Sequence[str]
    if captions is not None:
        prompts = captions
    elif request.prompts is not None:
        prompts = read_prompts(request.prompts)
    elif request.model is None:
        prompts = demo_prompts("calibration")
    else:
        prompts = family.prompts
    index = read_json(checkpoint.folder / "model_index.json", "the list of components", CHECKPOINT)
    config = checkpoint.transformer_config
    family.check(Request(prompts, "", sampling, family.guidance, config, index))
    count = request.calibration_prompts or method.data.prompts
    return tuple(itertools.islice(itertools.cycle(prompts), count))
