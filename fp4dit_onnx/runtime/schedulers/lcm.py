"""Latent consistency models (arXiv 2310.04378): a guess of the data, and fresh noise on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.ancestral import CLIPPING, check_signal, clipped
from fp4dit_onnx.runtime.schedulers.options import (
    BOOLEAN,
    MOST_TIMESTEPS,
    SCHEDULE,
    THRESHOLDING,
    Option,
    Options,
    number,
    whole_number,
)
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, check_steps, needed
from fp4dit_onnx.runtime.schedulers.training import cumulative_alphas, data_and_noise

__all__ = ["LCM"]

FloatArray = npt.NDArray[np.float32]

DATA_VARIANCE = np.float32(0.25)
"""Of the data, as the boundary condition takes it."""
OPTIONS = {
    **SCHEDULE,
    **THRESHOLDING,
    **CLIPPING,
    "beta_start": Option(0.00085, number(0, 1)),
    "beta_end": Option(0.012, number(0, 1)),
    "beta_schedule": Option("scaled_linear", SCHEDULE["beta_schedule"].accepts),
    "clip_sample": Option(False, BOOLEAN),
    "set_alpha_to_one": Option(True, BOOLEAN),
    "original_inference_steps": Option(50, whole_number(1, MOST_TIMESTEPS)),
    "timestep_scaling": Option(10.0, number(0)),
}


@dataclass(frozen=True)
class Lcm:
    """A scheduler; see `Scheduler`.

    Attributes:
        options: the checked options of diffusers' LCMScheduler.
    """

    options: Options
    stochastic: bool = True

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run; see `Scheduler.start`. Its timesteps are some of distillation's."""
        count, original = (
            self.options[key] for key in ("num_train_timesteps", "original_inference_steps")
        )
        if original > count:
            raise UsageError(
                f"{LCM.name}: original_inference_steps = {original}: expected at most the "
                f"{count} of num_train_timesteps"
            )
        check_steps(steps, self.options, "original_inference_steps")
        distilled = (np.arange(1, original + 1) * (count // original) - 1)[::-1]
        chosen = np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)
        times = distilled[chosen]
        cumulative = cumulative_alphas(self.options)[times]
        check_signal(cumulative, self.options)
        state = _Steps(self.options, times, cumulative)
        return Run(times, state, (np.sqrt(cumulative), np.sqrt(1 - cumulative)))


@dataclass
class _Steps:
    """The state of a run.

    Attributes:
        options: the scheduler's.
        timesteps: int64 [steps].
        cumulative: cumulative alpha at every timestep, float32 [steps].
        index: of the step to come.
    """

    options: Options
    timesteps: npt.NDArray[np.int64]
    cumulative: FloatArray
    index: int = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Solver`."""
        i, now = self.index, self.cumulative[self.index]
        self.index += 1
        data, _ = data_and_noise(
            self.options["prediction_type"], model_output, sample, np.sqrt(now), np.sqrt(1 - now)
        )
        scaled = np.float32(self.timesteps[i]) * np.float32(self.options["timestep_scaling"])
        total = scaled * scaled + DATA_VARIANCE
        denoised = scaled / np.sqrt(total) * clipped(data, self.options)
        denoised = denoised + DATA_VARIANCE / total * sample
        if self.index < len(self.timesteps):
            then = self.cumulative[self.index]
            denoised = np.sqrt(then) * denoised + np.sqrt(1 - then) * needed(noise, LCM.name)
        return np.asarray(denoised, np.float32)


LCM = Record("LCMScheduler", OPTIONS, Lcm)
