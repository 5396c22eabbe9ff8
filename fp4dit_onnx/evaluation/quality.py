"""How close bundles come to the float model, in latents and in images.

Every variant gets the same prompts and the same noise (`runtime.initial_latents`). Latents are
compared with the float model's after every denoising step, images are measured by `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint, scheduler_settings
from fp4dit_onnx.errors import CheckpointError, MissingExtraError, UsageError
from fp4dit_onnx.evaluation.learned_metrics import offline
from fp4dit_onnx.evaluation.metrics import METRICS, Metric, Score, psnr, sqnr
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.runtime import Pipeline, Sampling
from fp4dit_onnx.runtime.schedulers import scheduler_from_config
from fp4dit_onnx.system.progress import Advance, Reporter, SilentReporter
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.values import checked_seed

if TYPE_CHECKING:
    from fp4dit_onnx.network.execution import Execution

__all__ = [
    "FLOAT",
    "METRICS",
    "Evaluation",
    "Score",
    "VariantQuality",
    "evaluate",
    "float_images",
    "latent_sqnr",
    "psnr",
]

FloatArray = npt.NDArray[np.float32]
Pictures = list[Image.Image]
OnLatents = Callable[[int, FloatArray], None]

FLOAT = "float"
"""Name of the reference in tables and images."""
BATCH = 8
"""Images in a batch."""


@dataclass(frozen=True)
class VariantQuality:
    """Scores of one variant.

    Attributes:
        name: as given to `evaluate`, or `FLOAT`.
        scores: metric name -> score; of the float model only those that need no reference.
        latent_sqnr: in dB against the float model, one per step; none of the float model itself.
    """

    name: str
    scores: Mapping[str, Score]
    latent_sqnr: tuple[Score, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values; steps without the values of single images."""
        steps = [
            {"step": i, "mean": score.mean, "standard_error": score.standard_error}
            for i, score in enumerate(self.latent_sqnr)
        ]
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {"name": self.name, "scores": scores, "latent_sqnr_db": steps}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        prompts: of the images.
        seeds: one image per prompt and seed.
        sampling: how.
        reference: the float model's own scores.
        bundles: scores, in the order given.
        absent: name of each metric that was not measured -> why.
        pictures: variant name, `FLOAT` first -> images, all seeds of the first prompt first.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    reference: VariantQuality
    bundles: tuple[VariantQuality, ...]
    absent: Mapping[str, str]
    pictures: Mapping[str, Pictures] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the images, as JSON values."""
        return {
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "sampling": asdict(self.sampling),
            "metrics": {
                name: {
                    "unit": metric.unit,
                    "larger_is_better": metric.larger_is_better,
                    "needs": metric.needs,
                }
                for name, metric in METRICS.items()
                if name not in self.absent
            },
            "absent": dict(self.absent),
            "reference": self.reference.to_json(),
            "bundles": [bundle.to_json() for bundle in self.bundles],
        }


def float_images(
    pipeline_folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnLatents = lambda *_: None,
    *,
    lora: Sequence[str] = (),
    device: str = "cpu",
) -> Pictures:
    """Images of the diffusers pipeline in float32, one per prompt.

    Args:
        pipeline_folder: a pipeline in diffusers' format.
        prompts: one per image.
        seeds: one per prompt, of `runtime.initial_latents`.
        sampling: how.
        on_step: called after each step of a batch with its index and the latents it made, float32
            [B, C, H, W].
        lora: see `open_checkpoint`.
        device: where torch runs it, see `execution_of`.

    Raises:
        CheckpointError: the folder holds no readable pipeline, or one whose images are not finite.
        MissingExtraError: torch, diffusers or transformers is not installed.
        UsageError: the scheduler is not known, DiT is asked for another size than its own, or the
            device is not there or too small.
    """
    for package in ("torch", "diffusers", "transformers"):
        _require(package)
    import torch

    from fp4dit_onnx.calibration.sampling import decode, sample_latents
    from fp4dit_onnx.network.execution import execution_of

    def watch(index: int, latents: torch.Tensor) -> None:
        on_step(index, latents.numpy())

    where = execution_of(device)
    with where.within_memory():
        pipeline, family = _float_pipeline(pipeline_folder, lora, where)
        latents = sample_latents(
            pipeline, family, prompts, seeds, sampling, on_step=watch, execution=where
        )
        if not torch.isfinite(latents).all():
            raise CheckpointError(
                f"{pipeline_folder} computes numbers that are not finite in float32: expected a "
                "working model to compare with; check its weights"
            )
        return decode(pipeline, family, latents)


def _float_pipeline(folder: Path, lora: Sequence[str], where: Execution) -> tuple[Any, Family]:
    """The pipeline in float32 and its family; errors as `float_images` says."""
    from fp4dit_onnx.calibration.sampling import load_pipeline

    checkpoint = open_checkpoint(folder, lora=lora)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    pipeline = load_pipeline(checkpoint, execution=where)
    scheduler_from_config(scheduler_settings(checkpoint.components["scheduler"]))
    return pipeline, family


def evaluate(
    bundles: Mapping[str, Path],
    model_folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampling: Sampling | None = None,
    library: bool = True,
    reporter: Reporter | None = None,
    lora: Sequence[str] = (),
    device: str = "cpu",
) -> Evaluation:
    """Compare the latents and images of bundles with those of the float model.

    Args:
        bundles: name -> folder; the name `FLOAT` is the model's own.
        model_folder: the diffusers pipeline that the bundles were made from.
        prompts: at least one.
        seeds: at least one; one image per prompt and seed.
        sampling: how; None takes the settings that all bundles carry.
        library: run the quantized layers in the custom-op library.
        reporter: told of every model and every batch of images.
        lora: that the bundles were made with; see `open_checkpoint`.
        device: where torch runs the float model, see `execution_of`.

    Raises:
        UsageError: nothing to compare, or bundles of different settings.
        Fp4DitError: a folder that cannot be read, as `Pipeline` and `float_images` say.
    """
    if not (bundles and prompts and seeds):
        raise UsageError("nothing to compare: expected a bundle, a prompt and a seed at least")
    if FLOAT in bundles:
        raise UsageError(f"a bundle is called {FLOAT!r}, as is the reference: choose another name")
    reporter = reporter or SilentReporter()
    pipelines = {name: Pipeline(path, library=library) for name, path in bundles.items()}
    chosen = sampling or _common_sampling(pipelines)
    drawn = [prompt for prompt in prompts for _ in seeds]
    drawn_seeds = [checked_seed(seed) for _ in prompts for seed in seeds]
    for pipeline in pipelines.values():
        pipeline.check(chosen, prompts)
    pictures: dict[str, Pictures] = {}
    latents: dict[str, tuple[Score, ...]] = {}
    with reporter.stage("generating and comparing", 1 + len(pipelines), "models") as next_model:
        with _watching(reporter, FLOAT, len(drawn), chosen) as watch:
            pictures[FLOAT] = float_images(
                model_folder, drawn, drawn_seeds, chosen, watch, lora=lora, device=device
            )
        reference = watch.latents()
        next_model(1)
        for name, pipeline in pipelines.items():
            with _watching(reporter, name, len(drawn), chosen) as watch:
                pictures[name] = _draw(pipeline, drawn, drawn_seeds, chosen, watch)
            latents[name] = latent_sqnr(reference, watch.latents())
            next_model(1)
    scores, absent = _measure(pictures, drawn, reporter)
    own = VariantQuality(FLOAT, scores[FLOAT])
    found = tuple(VariantQuality(name, scores[name], latents[name]) for name in bundles)
    return Evaluation(tuple(prompts), tuple(seeds), chosen, own, found, absent, pictures)


def latent_sqnr(
    reference: Sequence[FloatArray], latents: Sequence[FloatArray]
) -> tuple[Score, ...]:
    """The score of `metrics.sqnr` over the images after each step, in dB.

    Args:
        reference: one [P, C, H, W] per step.
        latents: likewise.
    """
    return tuple(
        Score.of([sqnr(a, b) for a, b in zip(wanted, found, strict=True)])
        for wanted, found in zip(reference, latents, strict=True)
    )


class _Watch:
    """Follows one model: keeps the latents after every step, and reports the current batch.

    Args:
        count: images in all.
        advance: of a stage that counts steps of batches.
    """

    def __init__(self, count: int, advance: Advance) -> None:
        self._count, self._advance = count, advance
        self._first = self._end = 0
        self._steps: list[list[FloatArray]] = []

    def __call__(self, index: int, latents: FloatArray) -> None:
        """After step `index` of a batch [B, C, H, W]."""
        if index == 0:
            self._first, self._end = self._end, self._end + len(latents)
        if index == len(self._steps):
            self._steps.append([])
        self._steps[index].append(latents.copy())
        self._advance(1, f"images {self._first + 1} to {self._end} of {self._count}")

    def latents(self) -> list[FloatArray]:
        """One [P, C, H, W] per step."""
        return [np.concatenate(batches) for batches in self._steps]


@contextmanager
def _watching(reporter: Reporter, name: str, count: int, sampling: Sampling) -> Iterator[_Watch]:
    steps = math.ceil(count / BATCH) * sampling.steps
    with reporter.stage(f"generating with {name}", steps, "denoising steps") as advance:
        yield _Watch(count, advance)


def _draw(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnLatents,
) -> Pictures:
    return pipeline.generate(
        prompts,
        seeds=seeds,
        steps=sampling.steps,
        guidance=sampling.guidance,
        height=sampling.height,
        width=sampling.width,
        batch_size=BATCH,
        on_step=on_step,
    )


def _measure(
    pictures: Mapping[str, Pictures], prompts: Sequence[str], reporter: Reporter
) -> tuple[dict[str, dict[str, Score]], dict[str, str]]:
    """Scores by variant and metric, and the metrics that are absent with the reasons."""
    scores: dict[str, dict[str, Score]] = {name: {} for name in pictures}
    absent: dict[str, str] = {}
    with reporter.stage("measuring", len(METRICS), "metrics") as advance:
        for name, metric in METRICS.items():
            advance(0, name)
            found = _of_metric(metric, pictures, prompts)
            if isinstance(found, str):
                absent[name] = found
            else:
                for variant, score in found.items():
                    scores[variant][name] = score
            advance(1, name)
    return scores, absent


def _of_metric(
    metric: Metric, pictures: Mapping[str, Pictures], prompts: Sequence[str]
) -> dict[str, Score] | str:
    """One metric of every variant, or why it has no value here.

    A learned metric is loaded, used and dropped: two of them need not fit into memory.
    """
    reference = [np.asarray(picture) for picture in pictures[FLOAT]]
    of_prompt = metric.needs == "prompt"
    others: Sequence[Any] = prompts if of_prompt else reference
    scores = {}
    try:
        with offline(), quiet():
            function = metric.load()
            if isinstance(function, str):
                return function
            for name, drawn in pictures.items():
                if name != FLOAT or of_prompt:
                    pairs = zip(drawn, others, strict=True)
                    scores[name] = Score.of([function(np.asarray(a), b) for a, b in pairs])
    except Exception as error:  # other people's code: its failure must not lose the images
        first_line = str(error).strip().partition("\n")[0]
        return f"fails here with {type(error).__name__}: {first_line}"
    if not all(math.isfinite(value) for score in scores.values() for value in score.values):
        return "gave numbers that are not finite"
    return scores


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
