"""Noise schedulers in numpy: the trajectories of diffusers' schedulers without torch.

A scheduler is built from ``scheduler_config.json``; `Scheduler.start` gives a `Trajectory`, which
holds the timesteps and the state of one run. An option whose value is not supported is refused,
never ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.flow_matching import FlowMatchEuler, FlowPlan
from fp4dit_onnx.runtime.noise_schedule import (
    DDIM,
    DDPM,
    DPM_SOLVER,
    FLOW_MATCH_EULER,
    Options,
    check_steps,
    checked_options,
    cumulative_alphas,
)

__all__ = ["SCHEDULERS", "FlowPlan", "Scheduler", "Trajectory", "scheduler_from_config"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class Trajectory(Protocol):
    """One run from noise to data; `step` is called once for every timestep, in order."""

    @property
    def timesteps(self) -> IntArray | FloatArray:
        """The timesteps at which the model is called, [steps]: int64, of flow matching float32."""

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample.

        Args:
            model_output: the model's prediction at the current timestep, float32 [B, C, H, W].
            sample: what the model was given, the same shape.
            noise: standard normal, the same shape; only stochastic schedulers look at it.
        """


class Scheduler(Protocol):
    """A noise schedule and a solver, without the state of a run."""

    @property
    def stochastic(self) -> bool:
        """Whether every step needs noise."""

    def start(self, steps: int, plan: FlowPlan | None = None) -> Trajectory:
        """A fresh trajectory of `steps` steps.

        Args:
            steps: calls of the model.
            plan: what the run looks like; only flow matching asks for it.

        Raises:
            UsageError: `steps` is not between 1 and the number of training timesteps.
        """


def _data_and_noise(
    kind: str, output: FloatArray, sample: FloatArray, alpha: np.float32, sigma: np.float32
) -> tuple[FloatArray, FloatArray]:
    """The data and the noise that ``sample = alpha * data + sigma * noise`` is made of."""
    data, noise = output, output
    if kind == "epsilon":
        data = np.asarray((sample - sigma * output) / alpha, np.float32)
    elif kind == "sample":
        noise = np.asarray((sample - alpha * output) / sigma, np.float32)
    else:
        data = np.asarray(alpha * sample - sigma * output, np.float32)
        noise = np.asarray(alpha * output + sigma * sample, np.float32)
    return data, noise


@dataclass(frozen=True)
class DpmSolverMultistep:
    """DPM-Solver++ (Lu et al., arXiv 2211.01095) with one to three steps of history.

    Attributes:
        options: the checked options of diffusers' DPMSolverMultistepScheduler.
    """

    options: Options
    stochastic: bool = False

    def start(self, steps: int, plan: FlowPlan | None = None) -> DpmSolverTrajectory:
        """A fresh trajectory; see `Scheduler.start`."""
        check_steps(steps, self.options)
        cumulative = cumulative_alphas(self.options)
        table = np.sqrt((1 - cumulative) / cumulative)
        if self.options["use_karras_sigmas"]:
            sigmas = _karras_sigmas(table, steps)
            times = _times_of(sigmas, np.log(table))
            if self.options["beta_schedule"] != "squaredcos_cap_v2":
                times = times.round()
        else:
            times = self._spaced(steps, cumulative).astype(np.float64)
            sigmas = np.interp(times, np.arange(len(table)), table)
        last = table[0] if self.options["final_sigmas_type"] == "sigma_min" else 0
        all_sigmas = np.concatenate([sigmas, [last]]).astype(np.float32)
        return DpmSolverTrajectory(self.options, times.astype(np.int64), all_sigmas)

    def _spaced(self, steps: int, cumulative: FloatArray) -> IntArray:
        """Timesteps spaced evenly over those whose log signal-to-noise ratio is not clipped."""
        log_snr = np.log(np.sqrt(cumulative)) - np.log(np.sqrt(1 - cumulative))
        clipped = np.searchsorted(log_snr[::-1], np.float32(self.options["lambda_min_clipped"]))
        end = int(self.options["num_train_timesteps"] - clipped)
        spacing = self.options["timestep_spacing"]
        if spacing == "linspace":
            return np.linspace(0, end - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        if spacing == "leading":
            rising = np.arange(0, steps + 1) * (end // (steps + 1))
            return rising[::-1][:-1].astype(np.int64) + int(self.options["steps_offset"])
        stride = self.options["num_train_timesteps"] / steps
        return np.arange(end, 0, -stride).round().astype(np.int64) - 1


def _karras_sigmas(table: FloatArray, steps: int) -> npt.NDArray[np.float64]:
    """Sigmas falling evenly in their 7th root (arXiv 2206.00364), float64 [steps]."""
    rho = 7.0
    low, high = float(table[0]) ** (1 / rho), float(table[-1]) ** (1 / rho)
    return np.asarray((high + np.linspace(0, 1, steps) * (low - high)) ** rho, np.float64)


def _times_of(sigmas: npt.NDArray[np.float64], log_table: FloatArray) -> npt.NDArray[np.float64]:
    """The fractional training timestep of every sigma, by its logarithm."""
    logs = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_table, logs, side="right") - 1, 0, len(log_table) - 2)
    span = log_table[low] - log_table[low + 1]
    weight = np.clip((log_table[low] - logs) / span, 0, 1)
    return np.asarray((1 - weight) * low + weight * (low + 1), np.float64)


@dataclass
class DpmSolverTrajectory:
    """One run of `DpmSolverMultistep`.

    Attributes:
        options: the scheduler's.
        timesteps: int64 [steps].
        sigmas: noise over signal at every timestep and at the end, float32 [steps + 1].
    """

    options: Options
    timesteps: IntArray
    sigmas: FloatArray

    def __post_init__(self) -> None:
        self._alphas = 1 / np.sqrt(self.sigmas * self.sigmas + 1)
        self._noise_levels = self.sigmas * self._alphas
        with np.errstate(divide="ignore"):  # the last sigma may be zero: infinite log SNR
            self._log_snr = np.log(self._alphas) - np.log(self._noise_levels)
        self._data: list[FloatArray] = []
        self._index = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Trajectory.step`."""
        i, order = self._index, self._order()
        alpha, sigma = self._alphas[i], self._noise_levels[i]
        kind = self.options["prediction_type"]
        data, _ = _data_and_noise(kind, model_output, sample, alpha, sigma)
        self._data = [data, *self._data[: self.options["solver_order"] - 1]]
        self._index += 1
        h = self._log_snr[i + 1] - self._log_snr[i]
        decay = np.exp(-h) - 1
        first = (self._noise_levels[i + 1] / sigma) * sample - self._alphas[i + 1] * decay * data
        if order == 1:
            return np.asarray(first, np.float32)
        return np.asarray(first + self._alphas[i + 1] * self._correction(i, order, h), np.float32)

    def _order(self) -> int:
        """The order of the step to come: what history there is, and lower towards the end."""
        order = min(self.options["solver_order"], self._index + 1)
        left = len(self.timesteps) - self._index
        short = self.options["lower_order_final"] and len(self.timesteps) < 15
        ends = self.options["euler_at_final"] or self.options["final_sigmas_type"] == "zero"
        if left == 1 and (short or ends):
            return 1
        return min(order, 2) if left == 2 and short else int(order)

    def _correction(self, i: int, order: int, h: np.float32) -> FloatArray:
        """What orders 2 and 3 add to the first-order step, before the factor alpha."""
        decay = np.exp(-h) - 1
        r0 = (self._log_snr[i] - self._log_snr[i - 1]) / h
        slope = (self._data[0] - self._data[1]) / r0
        if order == 2 and self.options["solver_type"] == "midpoint":
            return np.asarray(-np.float32(0.5) * decay * slope, np.float32)
        weight = decay / h + 1
        if order == 2:
            return np.asarray(weight * slope, np.float32)
        r1 = (self._log_snr[i - 1] - self._log_snr[i - 2]) / h
        older = (self._data[1] - self._data[2]) / r1
        bend = (slope - older) / (r0 + r1)
        curve = (decay + h) / (h * h) - np.float32(0.5)
        return np.asarray(weight * (slope + r0 * bend) - curve * bend, np.float32)


def _ancestral_times(options: Options, steps: int) -> IntArray:
    """The timesteps of DDIM and DDPM, falling, int64 [steps]."""
    count, spacing = options["num_train_timesteps"], options["timestep_spacing"]
    if spacing == "linspace":
        return np.linspace(0, count - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "leading":
        rising = np.arange(0, steps) * (count // steps)
        return np.asarray(rising[::-1] + int(options["steps_offset"]), np.int64)
    falling = np.arange(count, 0, -count / steps)
    return falling.round().astype(np.int64) - 1


@dataclass(frozen=True)
class Ancestral:
    """DDIM with eta 0 (arXiv 2010.02502), or DDPM (arXiv 2006.11239) if `stochastic`.

    Attributes:
        options: the checked options of diffusers' DDIMScheduler or DDPMScheduler.
    """

    options: Options
    stochastic: bool

    def start(self, steps: int, plan: FlowPlan | None = None) -> AncestralTrajectory:
        """A fresh trajectory; see `Scheduler.start`."""
        check_steps(steps, self.options)
        times = _ancestral_times(self.options, steps)
        count = self.options["num_train_timesteps"]
        if times.max() >= count:
            raise UsageError(
                f"steps = {steps} with steps_offset = {self.options['steps_offset']} reaches "
                f"timestep {times.max()}: expected less than {count}; take fewer steps"
            )
        cumulative = cumulative_alphas(self.options)
        ahead = np.append(times[1:], -1) if self.stochastic else times - count // steps
        last = np.float32(1) if self.options.get("set_alpha_to_one", True) else cumulative[0]
        following = np.where(ahead >= 0, cumulative[np.maximum(ahead, 0)], last)
        return AncestralTrajectory(self, times, cumulative[times], following.astype(np.float32))


@dataclass
class AncestralTrajectory:
    """One run of `Ancestral`.

    Attributes:
        scheduler: whose run it is.
        timesteps: int64 [steps].
        cumulative: cumulative alpha at every timestep, float32 [steps].
        following: cumulative alpha that every step leads to, float32 [steps].
    """

    scheduler: Ancestral
    timesteps: IntArray
    cumulative: FloatArray
    following: FloatArray

    def __post_init__(self) -> None:
        self._index = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Trajectory.step`."""
        options, i = self.scheduler.options, self._index
        self._index += 1
        now, then = self.cumulative[i], self.following[i]
        data, direction = _data_and_noise(
            options["prediction_type"], model_output, sample, np.sqrt(now), np.sqrt(1 - now)
        )
        if options["clip_sample"]:
            limit = np.float32(options["clip_sample_range"])
            data = np.clip(data, -limit, limit)
        if not self.scheduler.stochastic:
            result = np.sqrt(then) * data + np.sqrt(1 - then) * direction
            return np.asarray(result, np.float32)
        beta = 1 - now / then
        share = np.sqrt(then) * beta / (1 - now)
        result = share * data + np.sqrt(now / then) * (1 - then) / (1 - now) * sample
        if self.timesteps[i] > 0:
            if noise is None:
                raise UsageError("DDPMScheduler: a step needs noise, and none was given")
            small = np.maximum((1 - then) / (1 - now) * beta, np.float32(1e-20))
            variance = small if options["variance_type"] == "fixed_small" else beta
            result = result + np.sqrt(variance) * noise
        return np.asarray(result, np.float32)


SCHEDULERS: dict[str, Callable[[Options], Scheduler]] = {
    "DPMSolverMultistepScheduler": lambda config: DpmSolverMultistep(
        checked_options("DPMSolverMultistepScheduler", config, DPM_SOLVER)
    ),
    "DDIMScheduler": lambda config: Ancestral(
        checked_options("DDIMScheduler", config, DDIM), False
    ),
    "DDPMScheduler": lambda config: Ancestral(
        checked_options("DDPMScheduler", config, DDPM), True
    ),
    "FlowMatchEulerDiscreteScheduler": lambda config: FlowMatchEuler(
        checked_options("FlowMatchEulerDiscreteScheduler", config, FLOW_MATCH_EULER)
    ),
}
"""diffusers' class name -> constructor from the contents of scheduler_config.json."""


def scheduler_from_config(config: Options) -> Scheduler:
    """The scheduler that the contents of a ``scheduler_config.json`` describe.

    Raises:
        UsageError: an unknown class, or an option whose value is not supported.
    """
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise UsageError(
            f"scheduler {name} is not supported: expected one of {', '.join(SCHEDULERS)}"
        )
    return SCHEDULERS[name](config)
