"""One batch through a pipeline of diffusers: begun with given noise, watched, left with its latents."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from fp4dit_onnx.calibration.patching import patched

__all__ = ["PipelineRun"]


class _Done(Exception):  # noqa: N818 - no error: it leaves a pipeline early
    """Raised to leave a pipeline once its latents are there."""


def _adding(scheduler: Any, noise: Callable[[], torch.Tensor]) -> AbstractContextManager[Any]:
    """While open, what a scheduler adds at a step is `noise()`, for as many rows as it steps."""
    module = sys.modules[type(scheduler).__module__]

    def ours(_: Any, shape: Sequence[int], *__: Any, dtype: Any, device: Any, **___: Any) -> Any:
        found = noise()
        return found.repeat(shape[0] // len(found), *[1] * (found.ndim - 1)).to(device, dtype)

    adds = hasattr(module, "randn_tensor")
    return patched(module, "randn_tensor", ours) if adds else nullcontext()


def _replaced(result: Any, latents: torch.Tensor) -> Any:
    """What a scheduler's step gives, with other latents."""
    if isinstance(result, tuple):
        return (latents, *result[1:])
    result.prev_sample = latents
    return result


class PipelineRun:
    """One batch through a diffusers pipeline.

    Args:
        pipeline: of diffusers.
        noise: what a scheduler that adds noise adds at a step, as the transformer takes latents.
        on_step: see `sample_latents`.
        known: images without noise and the noise, both as the transformer takes latents: each step
            begins with the images at the step's noise, whatever the one before it made. None to
            generate images.

    Attributes:
        latents: after the last denoising step so far, as the transformer takes them.
    """

    def __init__(
        self,
        pipeline: Any,
        noise: Callable[[int], torch.Tensor],
        on_step: Callable[[int, torch.Tensor], None] | None,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._known = known
        self._pipeline, self._noise, self._on_step = pipeline, noise, on_step
        self._count = 0
        self._rows: int | None = None  # of a step's, where it takes both halves of guidance
        self.latents = torch.empty(0)

    def of_prompts(self, prompts: Sequence[str], noise: torch.Tensor, **options: Any) -> None:
        """A pipeline that takes prompts, and the noise that it begins with."""
        # The scheduler is watched because the pipelines of diffusers differ in their callbacks.
        with patched(self._pipeline.scheduler, "step", self._step):
            self._pipeline(prompt=list(prompts), latents=noise, output_type="latent", **options)

    def of_classes(self, labels: Sequence[int], noise: torch.Tensor, **options: Any) -> None:
        """A pipeline that takes classes, and would begin with noise of its own and end with images."""
        scheduler = self._pipeline.scheduler
        self._rows = len(labels)

        def begin(scale: Any, sample: torch.Tensor, timestep: Any) -> Any:
            first, halves = self._count == 0, len(sample) // len(labels)
            return scale(torch.cat([noise] * halves) if first else sample, timestep)

        def step(original: Any, *arguments: Any, **further: Any) -> Any:
            result = self._step(original, *arguments, **further)
            if self._count == len(scheduler.timesteps):
                raise _Done
            return result

        with (
            patched(scheduler, "scale_model_input", begin),
            patched(scheduler, "step", step),
            suppress(_Done),
        ):
            self._pipeline(class_labels=list(labels), **options)

    def _step(self, original: Any, *arguments: Any, **options: Any) -> Any:
        with _adding(self._pipeline.scheduler, lambda: self._noise(self._count)):
            result = original(*arguments, **options)
        if self._known is not None and self._count + 1 < len(self._pipeline.scheduler.timesteps):
            result = _replaced(result, self._noised(result[0], *self._known))
        self.latents = result[0][: self._rows]
        if self._on_step is not None:
            self._on_step(self._count, self.latents)
        self._count += 1
        return result

    def _noised(
        self, like: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Images with the noise of the next step."""
        scheduler = self._pipeline.scheduler
        times = scheduler.timesteps[self._count + 1].expand(len(clean))
        # Flow matching has a name of its own for it, with its arguments in another order.
        if hasattr(scheduler, "scale_noise"):
            found = scheduler.scale_noise(clean.float(), times, noise.float())
        else:
            found = scheduler.add_noise(clean.float(), noise.float(), times)
        halves = len(like) // len(found)
        made: torch.Tensor = found.repeat(halves, *[1] * (found.ndim - 1)).to(like)
        return made
