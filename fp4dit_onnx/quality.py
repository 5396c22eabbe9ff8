"""How close the pictures of bundles are to those of the float model.

Every variant draws the same prompts from the same noise (`runtime.initial_latents`), and each of
its pictures is compared with the float model's by the metrics of `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.runtime import Pipeline, Sampling

__all__ = [
    "FLOAT",
    "METRICS",
    "BundleQuality",
    "Evaluation",
    "Score",
    "evaluate",
    "float_images",
    "picture_grid",
    "psnr",
]

Pixels = npt.NDArray[np.uint8]
Pictures = list[Image.Image]

FLOAT = "float"
"""Name of the reference in tables and pictures."""


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures, in dB.

    Equal pictures count as if one sample differed by one grey level, the closest that different
    pictures can be (89 dB at 64 x 64 in colour): means stay finite.

    Args:
        a: uint8, any shape.
        b: uint8, the same shape.

    Raises:
        ValueError: shapes or types differ.
    """
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"found {a.dtype} {a.shape} and {b.dtype} {b.shape}: expected uint8 of one shape"
        )
    squares = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return 10 * math.log10(255**2 * a.size / max(float(squares.sum()), 1.0))


METRICS: dict[str, Callable[[Pixels, Pixels], float]] = {"psnr": psnr}
"""Metric name -> function of two pictures, uint8 [H, W, 3]; larger is closer."""


@dataclass(frozen=True)
class Score:
    """One metric over all pictures of a variant.

    Attributes:
        mean: over prompts and seeds.
        standard_error: of the mean; None for a single picture.
        values: one a picture, all seeds of the first prompt first.
    """

    mean: float
    standard_error: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """The score of `values`, at least one."""
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
        return cls(float(np.mean(values)), error, tuple(values))


@dataclass(frozen=True)
class BundleQuality:
    """Scores of one bundle.

    Attributes:
        name: as given to `evaluate`.
        scores: metric name -> score.
    """

    name: str
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        prompts: what was drawn.
        seeds: each prompt was drawn from each of them.
        sampling: how.
        bundles: scores, in the order given.
        pictures: variant name, `FLOAT` first -> pictures, all seeds of the first prompt first.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    bundles: tuple[BundleQuality, ...]
    pictures: Mapping[str, Pictures] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values."""
        return {
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "sampling": asdict(self.sampling),
            "bundles": [asdict(bundle) for bundle in self.bundles],
        }


def float_images(
    pipeline_folder: Path, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling
) -> Pictures:
    """Pictures of the diffusers pipeline in float32, one a prompt.

    Args:
        pipeline_folder: a pipeline in diffusers' format.
        prompts: what to draw.
        seeds: one a prompt, of `runtime.initial_latents`.
        sampling: how.

    Raises:
        CheckpointError: the folder holds no readable pipeline.
        MissingExtraError: torch, diffusers or transformers is not installed.
        UsageError: the scheduler draws noise at every step, which has no seed that both know.
    """
    for package in ("torch", "diffusers", "transformers"):
        _require(package)
    import torch

    from fp4dit_onnx.calibration.sampling import load_pipeline, sample_latents
    from fp4dit_onnx.checkpoint import open_checkpoint
    from fp4dit_onnx.models import family_of

    checkpoint = open_checkpoint(pipeline_folder)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    pipeline = load_pipeline(checkpoint)
    if type(pipeline.scheduler).__name__ == "DDPMScheduler":
        raise UsageError(
            f"{checkpoint.folder} samples with DDPMScheduler, which adds noise at every step: "
            "expected a deterministic scheduler; change it to DDIMScheduler or "
            "DPMSolverMultistepScheduler"
        )
    pictures = []
    with torch.no_grad():
        latents = sample_latents(pipeline, family, prompts, seeds, sampling)  # [P, C, H, W]
        for row in torch.split(latents, 1):  # [1, C, H, W]
            scaled = row / pipeline.vae.config.scaling_factor
            decoded = pipeline.vae.decode(scaled, return_dict=False)[0]
            pictures += pipeline.image_processor.postprocess(decoded, output_type="pil")
    return pictures


def evaluate(
    bundles: Mapping[str, Path],
    model_folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampling: Sampling | None = None,
    library: bool = True,
) -> Evaluation:
    """Compare the pictures of bundles with those of the float model.

    Args:
        bundles: name -> folder; the name `FLOAT` is the model's own.
        model_folder: the diffusers pipeline that the bundles were made from.
        prompts: at least one.
        seeds: at least one; every prompt is drawn from every seed.
        sampling: how; None takes the settings that all bundles carry.
        library: run the quantized layers in the custom-op library.

    Raises:
        UsageError: nothing to compare, or bundles of different settings.
        Fp4DitError: a folder that cannot be read, as `Pipeline` and `float_images` say.
    """
    if not (bundles and prompts and seeds):
        raise UsageError("nothing to compare: expected a bundle, a prompt and a seed at least")
    if FLOAT in bundles:
        raise UsageError(f"a bundle is called {FLOAT!r}, as is the reference: choose another name")
    pipelines = {name: Pipeline(path, library=library) for name, path in bundles.items()}
    chosen = sampling or _common_sampling(pipelines)
    drawn = [prompt for prompt in prompts for _ in seeds]
    drawn_seeds = [seed for _ in prompts for seed in seeds]
    pictures = {FLOAT: float_images(model_folder, drawn, drawn_seeds, chosen)}
    for name, pipeline in pipelines.items():
        pictures[name] = pipeline.generate(
            drawn,
            seeds=drawn_seeds,
            steps=chosen.steps,
            guidance=chosen.guidance,
            height=chosen.height,
            width=chosen.width,
        )
    found = tuple(_quality(name, pictures[name], pictures[FLOAT]) for name in bundles)
    return Evaluation(tuple(prompts), tuple(seeds), chosen, found, pictures)


def _quality(name: str, pictures: Pictures, reference: Pictures) -> BundleQuality:
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(pictures, reference, strict=True)]
    scores = {
        metric: Score.of([measure(a, b) for a, b in pairs]) for metric, measure in METRICS.items()
    }
    return BundleQuality(name, scores)


def _common_sampling(pipelines: Mapping[str, Pipeline]) -> Sampling:
    settings = {name: pipeline.defaults for name, pipeline in pipelines.items()}
    (first, expected), *others = settings.items()
    for name, found in others:
        if found != expected:
            raise UsageError(
                f"bundles {first} and {name} sample differently ({expected} and {found}): "
                "expected the same settings; give the sampling explicitly"
            )
    return expected


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "export")


_SMALL = 256
_MARGIN = 6
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def picture_grid(
    rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str]
) -> Image.Image:
    """One labelled sheet: a row a variant, a column a picture, the prompts above.

    Pictures narrower than 256 pixels are enlarged twice, pixel by pixel.

    Args:
        rows: variant name -> pictures, all of one size.
        captions: one a column.

    Raises:
        ValueError: there is no picture, or a row has not one picture a caption.
    """
    pictures = [picture for row in rows.values() for picture in row]
    uneven = [name for name, row in rows.items() if len(row) != len(captions)]
    if not pictures or uneven:
        raise ValueError(f"rows {uneven or list(rows)}: expected {len(captions)} pictures in each")
    zoom = 2 if pictures[0].width < _SMALL else 1
    width, height = pictures[0].width * zoom, pictures[0].height * zoom
    font = ImageFont.load_default()
    lines = [_wrapped(caption, font, width) for caption in captions]
    line_height = math.ceil(font.getbbox("Ag")[3]) + 2
    left = math.ceil(max(font.getlength(name) for name in rows)) + 2 * _MARGIN
    top = line_height * max(len(line) for line in lines) + 2 * _MARGIN
    size = (left + len(captions) * (width + _MARGIN), top + len(rows) * (height + _MARGIN))
    sheet = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(lines):
        for i, line in enumerate(text):
            place = (left + column * (width + _MARGIN), _MARGIN + i * line_height)
            draw.text(place, line, _BLACK, font)
    for row, (name, drawn) in enumerate(rows.items()):
        y = top + row * (height + _MARGIN)
        draw.text((_MARGIN, y + (height - line_height) // 2), name, _BLACK, font)
        for column, picture in enumerate(drawn):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (width + _MARGIN), y))
    return sheet


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """The words of `text` in lines no longer than `width` pixels, a longer word cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            lines[-1] = lines[-1][:-1]
    return lines
