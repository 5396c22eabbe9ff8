"""The evidence behind a report: what was measured, and why the rest was not.

It is kept as JSON beside the manifest, so that the page can be rendered again without the float
model.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fp4dit_onnx.benchmark.machine import Machine
from fp4dit_onnx.benchmark.rounds import Spread
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.evaluation.metrics import Score
from fp4dit_onnx.files import LARGE, Origin, WrongType, checked, read_json
from fp4dit_onnx.runtime.sampling import Sampling

__all__ = [
    "FLOAT",
    "FUNCTIONS",
    "LIBRARY",
    "SECTIONS",
    "Evidence",
    "Histogram",
    "Memory",
    "Picture",
    "Quality",
    "Speed",
    "Timing",
    "read_evidence",
]

VERSION = 1
FLOAT, LIBRARY, FUNCTIONS = "float32, torch", "quantized", "quantized, no library"
"""Who computes a denoising step, as tables show it."""
_ORIGIN = Origin(BundleError, "measure again with  fp4dit-onnx report BUNDLE --model PIPELINE")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SECTIONS = {
    "quality": "pictures and latents beside the float model's",
    "histograms": "distributions of weights and activations",
    "speed": "time of a denoising step",
    "memory": "memory of a denoising step",
}
"""What can be measured -> in words."""


@dataclass(frozen=True)
class Picture:
    """One prompt and seed, drawn by both models.

    Attributes:
        prompt: what was drawn.
        seed: of the noise.
        float_png: the float model's picture as base64 of a PNG, reduced where it is large.
        quantized_png: the bundle's, likewise.
        difference_png: `DIFFERENCE_GAIN` times the absolute difference, likewise.
        psnr_db: of the pictures in full size.
        ssim: likewise; None where they are too small for it.
    """

    prompt: str
    seed: int
    float_png: str
    quantized_png: str
    difference_png: str
    psnr_db: float
    ssim: float | None


@dataclass(frozen=True)
class Quality:
    """How close pictures and latents come to the float model's.

    Attributes:
        sampling: how both models drew.
        pictures: one for each prompt and seed.
        scores: metric -> score over the pictures.
        latent_sqnr_db: SQNR of the latents after each step, over the pictures.
    """

    sampling: Sampling
    pictures: tuple[Picture, ...]
    scores: Mapping[str, Score]
    latent_sqnr_db: tuple[Score, ...]


@dataclass(frozen=True)
class Histogram:
    """How the values of a layer's weight or input lie on the grid of its format.

    Attributes:
        layer: torch name.
        why: the rule that chose the layer.
        part: ``weight`` or ``input``.
        format: of the grid.
        step: of the sampler, counted from 0; None for weights.
        low: left end of the first bin, in the format's own values.
        high: right end of the last bin; values beyond either end count in the outermost bins.
        counts: values a bin, all bins equally wide.
        sqnr_db: of quantizing these values; None where it is not finite.
    """

    layer: str
    why: str
    part: str
    format: str
    step: int | None
    low: float
    high: float
    counts: tuple[int, ...]
    sqnr_db: float | None


@dataclass(frozen=True)
class Timing:
    """Seconds that one model takes for a denoising step.

    Attributes:
        name: of the model, as tables show it.
        about: what ran.
        seconds: median and quartiles over the rounds.
        rounds: how many.
    """

    name: str
    about: str
    seconds: Spread
    rounds: int


@dataclass(frozen=True)
class Speed:
    """One denoising step, all models in turns in one process.

    Attributes:
        batch: rows of a step; two a picture where guidance is used.
        tokens: of the text.
        threads: that each model got.
        isa: the custom-op library's kernels.
        timings: in the order of tables; the first is the float model's, if it took part.
        absent: name -> why it did not take part.
    """

    batch: int
    tokens: int
    threads: int
    isa: str
    timings: tuple[Timing, ...]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class Memory:
    """What loading a transformer and one step add to the resident memory of a fresh process.

    Attributes:
        name: of the model, as tables show it.
        imports_bytes: resident once all packages are imported.
        loaded_bytes: added by loading the model, at most.
        peak_bytes: added by loading it and running a step, at most.
    """

    name: str
    imports_bytes: int
    loaded_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Evidence:
    """All that was measured.

    Attributes:
        model: name of the float pipeline's folder.
        machine: where; None if nothing was measured.
        quality: None where not measured, as are the others.
        histograms: of a few characteristic layers.
        speed: of a denoising step.
        memory: likewise.
        absent: section, one of `SECTIONS` -> why it was not measured.
        version: of this format.
    """

    model: str
    machine: Machine | None = None
    quality: Quality | None = None
    histograms: tuple[Histogram, ...] = ()
    speed: Speed | None = None
    memory: tuple[Memory, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION


def read_evidence(path: Path) -> Evidence | None:
    """What is kept at `path`; None where there is no such file.

    Raises:
        BundleError: unreadable, of another version, or altered; names the first entry at fault.
    """
    if not path.is_file():
        return None
    content = read_json(path, "measurements for a report", _ORIGIN, limit=LARGE)
    version = content.get("version")
    if version != VERSION:
        raise BundleError(
            f"{path} has version {version!r}: this program reads {VERSION}; {_ORIGIN.cure}"
        )
    found = checked(Evidence, content, str(path), _ORIGIN)
    try:
        _check(found)
    except WrongType as error:
        raise BundleError(f"{path}: {error}; {_ORIGIN.cure}") from None
    return found


def _check(evidence: Evidence) -> None:
    """What types alone do not say."""
    for number, picture in enumerate(evidence.quality.pictures if evidence.quality else ()):
        for name in ("float_png", "quantized_png", "difference_png"):
            if not _is_png(getattr(picture, name)):
                raise WrongType(
                    f"quality.pictures[{number}].{name} is no picture: expected base64 of a PNG"
                )
    for number, histogram in enumerate(evidence.histograms):
        if not histogram.counts or not histogram.low < histogram.high:
            raise WrongType(f"histograms[{number}] has no bins: expected counts and low < high")


def _is_png(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True).startswith(PNG_SIGNATURE)
    except (binascii.Error, ValueError):
        return False
