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
from fp4dit_onnx.runtime.schedulers.options import (
    BOOLEAN,
    MOST_TIMESTEPS,
    SIGMAS,
    Option,
    Options,
    nothing_or,
    number,
    whole_number,
)
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, check_steps, needed
from fp4dit_onnx.runtime.schedulers.spacing import FALLS

__all__ = ["FLOW_MATCH_EULER"]

FloatArray = npt.NDArray[np.float32]

LEAST_SHIFT, ALMOST_ONE = 1e-6, 0.999
OPTIONS = {
    "num_train_timesteps": Option(1000, whole_number(2, MOST_TIMESTEPS)),
    "shift": Option(1.0, number(LEAST_SHIFT)),
    "use_dynamic_shifting": Option(False, BOOLEAN),
    "base_shift": Option(0.5, number(-100, 100)),
    "max_shift": Option(1.15, number(-100, 100)),
    "base_image_seq_len": Option(256, whole_number(1, 2**31)),
    "max_image_seq_len": Option(4096, whole_number(1, 2**31)),
    "invert_sigmas": Option(False, (False,)),
    "shift_terminal": Option(None, nothing_or(number(0, ALMOST_ONE))),
    **SIGMAS,
    "time_shift_type": Option("exponential", ("exponential", "linear")),
    "stochastic_sampling": Option(False, BOOLEAN),
}


@dataclass(frozen=True)
class FlowMatchEuler:
    """Euler steps over shifted sigmas (arXiv 2403.03206, section 5.3.2).

    Attributes:
        options: the checked options of diffusers' FlowMatchEulerDiscreteScheduler.
    """

    options: Options

    @property
    def stochastic(self) -> bool:
        """Whether every step begins again from fresh noise."""
        return bool(self.options["stochastic_sampling"])

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run; see `Scheduler.start`.

        Raises:
            UsageError: a number of steps out of range, or dynamic shifting without a plan.
        """
        check_steps(steps, self.options)
        sigmas = self._shifted(self._even(steps, plan is not None and plan.from_one), plan)
        if self.options["shift_terminal"]:
            data = 1 - sigmas
            if data[-1] == 0:
                raise UsageError(
                    f"{FLOW_MATCH_EULER.name}: shift_terminal stretches what lies after pure noise, "
                    f"and {steps} steps have nothing there: take more steps"
                )
            sigmas = 1 - data / (data[-1] / (1 - self.options["shift_terminal"]))
        for key, between in FALLS.items():
            if self.options[key]:
                sigmas = between(float(sigmas[0]), float(sigmas[-1]), steps)
        rounded = sigmas.astype(np.float32)
        times = rounded * np.float32(self.options["num_train_timesteps"])
        steps_to_take = _Steps(np.append(rounded, np.float32(0)), self.stochastic)
        return Run(times, steps_to_take, (1 - rounded, rounded))

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
        """`sigmas` moved towards noise, by a constant or as the image's size asks."""
        options = self.options
        if not options["use_dynamic_shifting"]:
            return _shift(options["shift"], sigmas)
        if plan is None:
            raise UsageError(
                "FlowMatchEulerDiscreteScheduler: use_dynamic_shifting depends on the image's "
                "size: expected a FlowPlan"
            )
        if plan.empirical:
            return self._moved(sigmas, _empirical(plan.tokens, len(sigmas)))
        shorter, longer = options["base_image_seq_len"], options["max_image_seq_len"]
        if shorter == longer:
            raise UsageError(
                f"{FLOW_MATCH_EULER.name}: base_image_seq_len and max_image_seq_len are both "
                f"{shorter}: expected two lengths, between which the shift is interpolated; change "
                "scheduler_config.json"
            )
        slope = (options["max_shift"] - options["base_shift"]) / (longer - shorter)
        mu = plan.tokens * slope + (options["base_shift"] - slope * shorter)
        return self._moved(sigmas, mu)

    def _moved(self, sigmas: npt.NDArray[np.floating], mu: float) -> npt.NDArray[np.floating]:
        exponential = self.options["time_shift_type"] == "exponential"
        strength = math.exp(mu) if exponential else mu
        return np.asarray(strength / (strength + (1 / sigmas - 1)), sigmas.dtype)


def _empirical(tokens: int, steps: int) -> float:
    """The shift of FLUX.2: lines over the tokens at 10 and at 200 steps, and one between them."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190
    return slope * steps + (many - 200 * slope)


def _shift(shift: float, sigmas: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas), sigmas.dtype)


@dataclass
class _Steps:
    """The state of a run.

    Attributes:
        sigmas: share of noise at every timestep and at the end, float32 [steps + 1].
        stochastic: whether a step goes to the data and back to fresh noise.
        index: of the step to come.
    """

    sigmas: FloatArray
    stochastic: bool
    index: int = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Solver`."""
        now, then = self.sigmas[self.index], self.sigmas[self.index + 1]
        self.index += 1
        if not self.stochastic:
            return np.asarray(sample + (then - now) * model_output, np.float32)
        data = sample - now * model_output
        fresh = then * needed(noise, FLOW_MATCH_EULER.name)
        return np.asarray((1 - then) * data + fresh, np.float32)


FLOW_MATCH_EULER = Record("FlowMatchEulerDiscreteScheduler", OPTIONS, FlowMatchEuler)
