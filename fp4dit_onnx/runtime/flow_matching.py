"""Flow matching: Euler steps along the straight path from noise to data (arXiv 2210.02747).

A sample is ``(1 - sigma) * data + sigma * noise``, the model predicts its velocity ``noise - data``.
The arithmetic follows diffusers' FlowMatchEulerDiscreteScheduler in the precision of every
operation, so that the timesteps that the model is told are the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.noise_schedule import Options, check_steps

__all__ = ["FlowMatchEuler", "FlowPlan"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FlowPlan:
    """What a pipeline tells a flow-matching scheduler about the run to come.

    Attributes:
        tokens: of the picture in the transformer; dynamic shifting depends on it.
        from_one: whether sigmas fall evenly from 1 to 1 / steps before they are shifted, as the
            pipelines of Flux and Lumina2 ask; otherwise from the largest to the smallest of
            training, already shifted, as with SD3 and AuraFlow.
    """

    tokens: int
    from_one: bool


@dataclass(frozen=True)
class FlowMatchEuler:
    """Euler steps over shifted sigmas (arXiv 2403.03206, section 5.3.2).

    Attributes:
        options: the checked options of diffusers' FlowMatchEulerDiscreteScheduler.
    """

    options: Options
    stochastic: bool = False

    def start(self, steps: int, plan: FlowPlan | None = None) -> FlowMatchTrajectory:
        """A fresh trajectory; see `Scheduler.start`.

        Raises:
            UsageError: a number of steps out of range, or dynamic shifting without a plan.
        """
        check_steps(steps, self.options)
        sigmas = self._shifted(self._even(steps, plan is not None and plan.from_one), plan)
        if self.options["shift_terminal"]:
            data = 1 - sigmas
            sigmas = 1 - data / (data[-1] / (1 - self.options["shift_terminal"]))
        rounded = sigmas.astype(np.float32)
        times = rounded * np.float32(self.options["num_train_timesteps"])
        return FlowMatchTrajectory(times, np.append(rounded, np.float32(0)))

    def _even(self, steps: int, from_one: bool) -> npt.NDArray[np.floating]:
        """Sigmas before the shift of the run, [steps]."""
        if from_one:
            return np.asarray(np.linspace(1, 1 / steps, steps), np.float32)
        count = self.options["num_train_timesteps"]
        ends = np.array([1, count], np.float32)[::-1] / np.float32(count)
        if not self.options["use_dynamic_shifting"]:
            ends = _shift(self.options["shift"], ends)
        times = np.linspace(float(ends[0]) * count, float(ends[1]) * count, steps)
        return np.asarray(times / count)

    def _shifted(
        self, sigmas: npt.NDArray[np.floating], plan: FlowPlan | None
    ) -> npt.NDArray[np.floating]:
        """`sigmas` moved towards noise, by a constant or as the picture's size asks."""
        options = self.options
        if not options["use_dynamic_shifting"]:
            return _shift(options["shift"], sigmas)
        if plan is None:
            raise UsageError(
                "FlowMatchEulerDiscreteScheduler: use_dynamic_shifting depends on the picture's "
                "size: expected a FlowPlan"
            )
        shorter, longer = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (longer - shorter)
        mu = plan.tokens * slope + (options["base_shift"] - slope * shorter)
        strength = math.exp(mu) if options["time_shift_type"] == "exponential" else mu
        return np.asarray(strength / (strength + (1 / sigmas - 1)), sigmas.dtype)


def _shift(shift: float, sigmas: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas), sigmas.dtype)


@dataclass
class FlowMatchTrajectory:
    """One run of `FlowMatchEuler`.

    Attributes:
        timesteps: 1000 sigmas, for 1000 training timesteps; float32 [steps].
        sigmas: share of noise at every timestep and at the end, float32 [steps + 1].
    """

    timesteps: FloatArray
    sigmas: FloatArray

    def __post_init__(self) -> None:
        self._index = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Trajectory.step`."""
        i = self._index
        self._index += 1
        return np.asarray(
            sample + (self.sigmas[i + 1] - self.sigmas[i]) * model_output, np.float32
        )
