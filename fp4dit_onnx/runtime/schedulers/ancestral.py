"""DDIM with eta 0 (arXiv 2010.02502) and DDPM (arXiv 2006.11239), which share their timesteps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.options import (
    BOOLEAN,
    SCHEDULE,
    THRESHOLDING,
    Option,
    Options,
    number,
)
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, check_steps, needed
from fp4dit_onnx.runtime.schedulers.spacing import check_timesteps, spaced
from fp4dit_onnx.runtime.schedulers.training import cumulative_alphas, data_and_noise

__all__ = ["CLIPPING", "DDIM", "DDPM", "check_signal", "clipped"]

FloatArray = npt.NDArray[np.float32]

LEAST_VARIANCE = np.float32(1e-20)
CLIPPING = {
    "clip_sample": Option(True, BOOLEAN),
    "clip_sample_range": Option(1.0, number(0)),
}
_COMMON = {**SCHEDULE, **THRESHOLDING, **CLIPPING}
_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


def check_signal(cumulative: FloatArray, options: Options) -> None:
    """Refuse runs that would divide by a signal of zero, which gives infinities.

    Args:
        cumulative: cumulative alphas at the run's timesteps.
        options: of the scheduler.
    """
    if options["prediction_type"] == "epsilon" and not cumulative.all():
        raise UsageError(
            "rescale_betas_zero_snr leaves no signal at the first timestep, from which "
            "prediction_type epsilon tells no data: expected v_prediction or sample, or a "
            "timestep_spacing that begins later"
        )


def clipped(data: FloatArray, options: Options) -> FloatArray:
    """`data` within the range that the options ask for."""
    if not options["clip_sample"]:
        return data
    limit = np.float32(options["clip_sample_range"])
    return np.clip(data, -limit, limit)


@dataclass(frozen=True)
class Ancestral:
    """DDIM, or DDPM if `stochastic`; see `Scheduler`.

    Attributes:
        options: the checked options of diffusers' DDIMScheduler or DDPMScheduler.
    """

    options: Options
    stochastic: bool

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run; see `Scheduler.start`."""
        check_steps(steps, self.options)
        times = spaced(self.options, steps).round().astype(np.int64)
        check_timesteps(times, self.options)
        cumulative = cumulative_alphas(self.options)
        count = self.options["num_train_timesteps"]
        ahead = np.append(times[1:], -1) if self.stochastic else times - count // steps
        last = np.float32(1) if self.options.get("set_alpha_to_one", True) else cumulative[0]
        following = np.where(ahead >= 0, cumulative[np.maximum(ahead, 0)], last)
        check_signal(cumulative[times], self.options)
        now = cumulative[times]
        return Run(times, _Steps(self, times, now, following), (np.sqrt(now), np.sqrt(1 - now)))


@dataclass
class _Steps:
    """The state of a run.

    Attributes:
        scheduler: whose run it is.
        timesteps: int64 [steps].
        cumulative: cumulative alpha at every timestep, float32 [steps].
        following: cumulative alpha that every step leads to, float32 [steps].
        index: of the step to come.
    """

    scheduler: Ancestral
    timesteps: npt.NDArray[np.int64]
    cumulative: FloatArray
    following: FloatArray
    index: int = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Solver`."""
        options, i = self.scheduler.options, self.index
        self.index += 1
        now, then = self.cumulative[i], np.float32(self.following[i])
        data, direction = data_and_noise(
            options["prediction_type"], model_output, sample, np.sqrt(now), np.sqrt(1 - now)
        )
        data = clipped(data, options)
        if not self.scheduler.stochastic:
            result = np.sqrt(then) * data + np.sqrt(1 - then) * direction
            return np.asarray(result, np.float32)
        beta = 1 - now / then
        share = np.sqrt(then) * beta / (1 - now)
        result = share * data + np.sqrt(now / then) * (1 - then) / (1 - now) * sample
        if self.timesteps[i] > 0:
            small = np.maximum((1 - then) / (1 - now) * beta, LEAST_VARIANCE)
            variance = beta if options["variance_type"] == "fixed_large" else small
            result = result + np.sqrt(variance) * needed(noise, DDPM.name)
        return np.asarray(result, np.float32)


DDIM = Record(
    "DDIMScheduler",
    {**_COMMON, "set_alpha_to_one": Option(True, BOOLEAN)},
    lambda options: Ancestral(options, stochastic=False),
)
DDPM = Record(
    "DDPMScheduler",
    {**_COMMON, "variance_type": Option("fixed_small", _VARIANCES)},
    lambda options: Ancestral(options, stochastic=True),
)
