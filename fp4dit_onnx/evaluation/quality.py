"""How close bundles come to the float model, in latents and in images.

Every variant gets the same prompts and the same noise (`runtime.initial_latents`). Latents are
compared with the float model's after every denoising step, images are measured by `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.learned_metrics import offline
from fp4dit_onnx.evaluation.metrics import METRICS, Metric, Score, psnr, sqnr
from fp4dit_onnx.evaluation.picturing import (
    BATCH,
    Exported,
    FloatArray,
    FloatModel,
    Images,
    Model,
    Pictures,
    close_all,
    executor_of,
    generate,
    joined,
)
from fp4dit_onnx.runtime import Pipeline, Sampling
from fp4dit_onnx.system.executors import HERE, Executor, Task, place_of
from fp4dit_onnx.system.progress import Advance, Reporter, SilentReporter
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.values import checked_seed

__all__ = [
    "FLOAT",
    "METRICS",
    "Evaluation",
    "Score",
    "VariantQuality",
    "evaluate",
    "latent_sqnr",
    "psnr",
]

FLOAT = "float"
"""Name of the reference in tables and images."""


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


def evaluate(
    bundles: Mapping[str, Path],
    model_folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampling: Sampling | None = None,
    library: bool | None = None,
    reporter: Reporter | None = None,
    lora: Sequence[str] = (),
    device: str = "cpu",
    float_device: str = "cpu",
    executor: str = HERE,
) -> Evaluation:
    """Compare the latents and images of bundles with those of the float model.

    Args:
        bundles: name -> folder; the name `FLOAT` is the model's own.
        model_folder: the diffusers pipeline that the bundles were made from.
        prompts: at least one.
        seeds: at least one; one image per prompt and seed.
        sampling: how; None takes the settings that all bundles carry.
        library: see `Pipeline`.
        reporter: told of every model and every batch of images.
        lora: that the bundles were made with; see `open_checkpoint`.
        device: where ONNX Runtime runs the bundles, see `Pipeline`.
        float_device: where torch runs the float model, see `execution_of`.
        executor: where batches of images are generated, see `executors.place_of`.

    Raises:
        UsageError: nothing to compare, or bundles of different settings.
        Fp4DitError: a folder that cannot be read, as `Pipeline` and `float_images` say; or a cluster
            that cannot be used, see `ray_cluster.connected`.
    """
    if not (bundles and prompts and seeds):
        raise UsageError("nothing to compare: expected a bundle, a prompt and a seed at least")
    if FLOAT in bundles:
        raise UsageError(f"a bundle is called {FLOAT!r}, as is the reference: choose another name")
    reporter = reporter or SilentReporter()
    place = place_of(executor)
    exported = [Exported(path.absolute(), library, device=device) for path in bundles.values()]
    source = FloatModel(model_folder.absolute(), tuple(lora), float_device)
    try:
        pipelines = {n: one.pipeline for n, one in zip(bundles, exported, strict=True)}
        chosen = sampling or _common_sampling(pipelines)
        for pipeline in pipelines.values():
            pipeline.check(chosen, prompts)
        asked = [(prompt, checked_seed(seed)) for prompt in prompts for seed in seeds]
        with executor_of(place, source, exported, reporter) as (where, models):
            named = dict(zip((FLOAT, *bundles), models, strict=True))
            made = _made(named, asked, chosen, where, reporter)
    finally:
        close_all()
    pictures = {name: images.pictures for name, images in made.items()}
    reference = made[FLOAT].latents
    latents = {name: latent_sqnr(reference, made[name].latents) for name in bundles}
    drawn = [prompt for prompt, _ in asked]
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


@dataclass
class _Steps:
    """Advances a stage by one batch of images, step by step."""

    batch: int
    images: int
    left: int
    advance: Advance

    def __str__(self) -> str:
        first = self.batch * BATCH
        return f"images {first + 1} to {min(first + BATCH, self.images)} of {self.images}"

    def __call__(self, steps: int = 1) -> None:
        """Denoising steps are done."""
        self.left -= steps
        self.advance(steps, str(self))

    def end(self) -> None:
        """All are, whether they were told or not."""
        if self.left:
            self(self.left)


def _made(
    models: Mapping[str, Model],
    asked: Sequence[tuple[str, int]],
    sampling: Sampling,
    executor: Executor,
    reporter: Reporter,
) -> dict[str, Images]:
    """Images of every model, one per prompt and seed of `asked`, with a stage of progress each."""
    found = {}
    batches = [asked[i : i + BATCH] for i in range(0, len(asked), BATCH)]
    with reporter.stage("generating and comparing", len(models), "models") as next_model:
        for name, model in models.items():
            total = len(batches) * sampling.steps
            with reporter.stage(f"generating with {name}", total, "denoising steps") as advance:
                told = [
                    _Steps(i, len(asked), sampling.steps, advance) for i in range(len(batches))
                ]
                tasks = {
                    str(steps): (steps, generate, (model, *zip(*batch, strict=True), sampling))
                    for batch, steps in zip(batches, told, strict=True)
                }
                calls = (Task(n, call, given, steps) for n, (steps, call, given) in tasks.items())
                made: dict[str, Images] = {}
                for task, images in executor.results(calls):
                    made[task.name] = images
                    tasks[task.name][0].end()
                found[name] = joined([made[batch] for batch in tasks])
            next_model(1)
    return found


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
