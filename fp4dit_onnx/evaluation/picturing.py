"""Images of one model, a batch at a time: calls that are pure functions of files, so they run anywhere.

A process opens a model once, and keeps it open until `close_all`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, open_checkpoint, scheduler_settings
from fp4dit_onnx.errors import CheckpointError, MissingExtraError, UsageError
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.runtime import Pipeline, Sampling
from fp4dit_onnx.runtime.schedulers import scheduler_from_config
from fp4dit_onnx.system.executors import LOCAL, Executor, Place
from fp4dit_onnx.system.progress import Reporter

if TYPE_CHECKING:
    from fp4dit_onnx.network.execution import Execution

__all__ = [
    "BATCH",
    "Exported",
    "FloatModel",
    "Images",
    "Model",
    "close_all",
    "executor_of",
    "float_images",
    "generate",
    "joined",
]

FloatArray = npt.NDArray[np.float32]
Pictures = list[Image.Image]
OnLatents = Callable[[int, FloatArray], None]

BATCH = 8
"""Images in a batch."""
ACTIVATIONS = 2 * 2**30
"""Bytes that a batch takes beside the weights of all models, about."""


@dataclass(frozen=True)
class Images:
    """Of P prompts.

    Attributes:
        latents: after each denoising step, float32 [P, C, H, W].
        pictures: P.
    """

    latents: list[FloatArray]
    pictures: Pictures


class Model(Protocol):
    """Names a model by its files; a value that other machines can take."""

    @property
    def files(self) -> Iterable[Path]:
        """That it is made of."""
        ...

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: OnLatents,
    ) -> Pictures:
        """One per prompt; `on_step` as `float_images` has it."""
        ...


@dataclass(frozen=True)
class Exported:
    """A bundle.

    Attributes:
        folder: absolute.
        library: see `Pipeline`.
        threads: see `Pipeline`.
        device: see `Pipeline`.
    """

    folder: Path
    library: bool | None
    threads: int | None = None
    device: str = "cpu"

    @property
    def pipeline(self) -> Pipeline:
        """Opened once; raises as `Pipeline`."""
        return _exported(self)

    @property
    def files(self) -> Iterable[Path]:
        """See `Model`."""
        return sorted(self.folder / name for name in Bundle.open(self.folder).manifest.files)

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: OnLatents,
    ) -> Pictures:
        """See `Model`."""
        return self.pipeline.generate(
            prompts,
            seeds=seeds,
            steps=sampling.steps,
            guidance=sampling.guidance,
            height=sampling.height,
            width=sampling.width,
            batch_size=BATCH,
            on_step=on_step,
        )


@dataclass(frozen=True)
class FloatModel:
    """A pipeline in diffusers' format, in float32; fields as `float_images` has them.

    Attributes:
        folder: absolute.
        lora: files.
        device: where torch runs it.
    """

    folder: Path
    lora: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def execution(self) -> Execution:
        """Device and type here; raises as `float_images`."""
        from fp4dit_onnx.network.execution import execution_of

        try:
            return execution_of(self.device)
        except UsageError as error:  # it knows the option of `export`
            raise UsageError(str(error).replace("--device", "--float-device")) from error

    @property
    def checkpoint(self) -> Checkpoint:
        """Raises CheckpointError: the folder holds no readable pipeline."""
        return open_checkpoint(self.folder, lora=self.lora)

    @property
    def files(self) -> Iterable[Path]:
        """See `Model`."""
        parts = self.checkpoint.components.values()
        return sorted({info.file for part in parts for info in part.tensors.values()})

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: OnLatents,
    ) -> Pictures:
        """See `Model`; raises as `float_images`."""
        for package in ("torch", "diffusers", "transformers"):
            _require(package)
        import torch

        from fp4dit_onnx.calibration.sampling import decode, sample_latents

        def watch(index: int, latents: torch.Tensor) -> None:
            on_step(index, latents.numpy())

        where = self.execution
        with where.within_memory():
            pipeline, family = _float(self, where)
            latents = sample_latents(
                pipeline, family, prompts, seeds, sampling, on_step=watch, execution=where
            )
            if not torch.isfinite(latents).all():
                raise CheckpointError(
                    f"{self.folder} computes numbers that are not finite in float32: expected a "
                    "working model to compare with; check its weights"
                )
            return decode(pipeline, family, latents)


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
    try:
        model = FloatModel(pipeline_folder, tuple(lora), device)
        return model.images(prompts, seeds, sampling, on_step)
    finally:
        _float.cache_clear()


@cache
def _exported(model: Exported) -> Pipeline:
    return Pipeline(
        model.folder, device=model.device, library=model.library, threads=model.threads
    )


@lru_cache(maxsize=1)
def _float(model: FloatModel, where: Execution) -> tuple[Any, Family]:
    """The pipeline in float32 and its family; errors as `float_images` says."""
    from fp4dit_onnx.calibration.sampling import load_pipeline

    checkpoint = model.checkpoint
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    pipeline = load_pipeline(checkpoint, execution=where)
    scheduler_from_config(scheduler_settings(checkpoint.components["scheduler"]))
    return pipeline, family


def close_all() -> None:
    """Let go of the models that this process has open."""
    _exported.cache_clear()
    _float.cache_clear()


def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: Callable[[], None] = lambda: None,
) -> Images:
    """A batch of at most `BATCH` images.

    Args:
        model: what makes them.
        prompts: one per image.
        seeds: one per prompt.
        sampling: how.
        on_step: called after each denoising step.
    """
    latents: list[FloatArray] = []

    def watch(index: int, made: FloatArray) -> None:
        latents.append(made.copy())
        on_step()

    pictures = model.images(prompts, seeds, sampling, watch)
    return Images(latents, pictures)


def joined(batches: Sequence[Images]) -> Images:
    """One after the other."""
    steps = zip(*(batch.latents for batch in batches), strict=True)
    pictures = [picture for batch in batches for picture in batch.pictures]
    return Images([np.concatenate(step) for step in steps], pictures)


@contextmanager
def executor_of(
    place: Place, source: FloatModel, bundles: Sequence[Exported], reporter: Reporter
) -> Iterator[tuple[Executor, Sequence[Model]]]:
    """What makes the calls of `generate`, and the models as it is to be given them.

    Args:
        place: where.
        source: the float model.
        bundles: made from it.
        reporter: told what was found.

    Raises:
        UsageError: see `ray_cluster.connected`.
    """
    if not place.elsewhere:
        yield LOCAL, (source, *bundles)
        return
    from fp4dit_onnx.system.ray_cluster import connected

    parts = source.checkpoint.components.values()
    weights = sum(4 * math.prod(info.shape) for part in parts for info in part.tensors.values())
    sizes = sum(path.stat().st_size for bundle in bundles for path in bundle.files)
    need = source.execution.need(ACTIVATIONS + weights + sizes)
    if any(bundle.device != "cpu" for bundle in bundles):
        need = replace(need, gpus=1)
    alike = [replace(bundle, threads=need.cpus) for bundle in bundles]
    models: tuple[Model, ...] = source, *bundles
    files = {path for model in models for path in model.files}
    with connected(place.address, need, sorted(files), reporter.note) as cluster:
        yield cluster, (source, *alike)


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "export")
