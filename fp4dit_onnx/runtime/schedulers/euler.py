"""Euler steps over noise of growing size, and the same with fresh noise (arXiv 2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.runtime.schedulers.options import (
    SCHEDULE,
    SIGMA_BOUNDS,
    SIGMAS,
    SPACINGS,
    Option,
    Options,
)
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, check_steps, needed
from fp4dit_onnx.runtime.schedulers.spacing import FALLS, spaced, times_of
from fp4dit_onnx.runtime.schedulers.training import linspace, training_sigmas

__all__ = ["EULER", "EULER_ANCESTRAL"]

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

_COMMON = {**SCHEDULE, "timestep_spacing": Option("linspace", SPACINGS)}


@dataclass(frozen=True)
class Euler:
    """A scheduler; see `Scheduler`. A sample is ``data + sigma * noise``.

    Attributes:
        options: the checked options of diffusers' EulerDiscreteScheduler, or of its
            EulerAncestralDiscreteScheduler if `stochastic`.
    """

    options: Options
    stochastic: bool

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run; see `Scheduler.start`."""
        check_steps(steps, self.options)
        table = training_sigmas(self.options)
        times, sigmas = self._spaced(table, steps)
        last = table[0] if self.options.get("final_sigmas_type") == "sigma_min" else 0
        rounded = np.append(sigmas, last).astype(np.float32)
        total = np.sqrt(rounded * rounded + 1)
        leading = self.options["timestep_spacing"] == "leading"
        return Run(
            times.astype(np.float32),
            _Steps(self, rounded),
            (np.ones(steps, np.float32), rounded[:steps]),
            initial_scale=float(total.max() if leading else rounded.max()),
            input_divisors=total[:steps],
        )

    def _spaced(self, table: FloatArray, steps: int) -> tuple[DoubleArray, DoubleArray]:
        """Timesteps and sigmas of a run, [steps] each; of log-linear ones one sigma more."""
        options, logs = self.options, np.log(table)
        times = spaced(options, steps).astype(np.float32).astype(np.float64)
        sigmas = np.interp(times, np.arange(len(table)), table)
        if options.get("interpolation_type") == "log_linear":
            ends = float(logs[-1]), float(logs[0])
            sigmas = np.exp(linspace(*ends, steps + 1)).astype(np.float64)
        for key, between in FALLS.items():
            if options.get(key):
                first, last = (
                    float(sigmas[place]) if options[name] is None else options[name]
                    for name, place in (("sigma_max", 0), ("sigma_min", -1))
                )
                sigmas = between(first, last, steps)
                times = times_of(sigmas, logs)
        return times, sigmas


@dataclass
class _Steps:
    """The state of a run.

    Attributes:
        scheduler: whose run it is.
        sigmas: at every timestep and at the end, float32 [steps + 1].
        index: of the step to come.
    """

    scheduler: Euler
    sigmas: FloatArray
    index: int = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Solver`."""
        sigma, then = self.sigmas[self.index], self.sigmas[self.index + 1]
        self.index += 1
        slope = (sample - self._data(model_output, sample, sigma)) / sigma
        if not self.scheduler.stochastic:
            return np.asarray(sample + slope * (then - sigma), np.float32)
        added = np.sqrt(then**2 * (sigma**2 - then**2) / sigma**2)
        down = np.sqrt(then**2 - added**2)
        fresh = needed(noise, EULER_ANCESTRAL.name) * added
        return np.asarray(sample + slope * (down - sigma) + fresh, np.float32)

    def _data(self, output: FloatArray, sample: FloatArray, sigma: np.float32) -> FloatArray:
        """The data that the model's output says are in `sample`."""
        kind, total = self.scheduler.options["prediction_type"], sigma * sigma + 1
        if kind == "epsilon":
            return np.asarray(sample - sigma * output, np.float32)
        if kind == "sample":
            return output
        return np.asarray(output * (-sigma / np.sqrt(total)) + sample / total, np.float32)


EULER = Record(
    "EulerDiscreteScheduler",
    {
        **_COMMON,
        **SIGMAS,
        "prediction_type": Option(
            "epsilon", ("epsilon", "v_prediction", "sample"), {"original_sample": "sample"}
        ),
        "interpolation_type": Option("linear", ("linear", "log_linear")),
        **SIGMA_BOUNDS,
        "timestep_type": Option("discrete", ("discrete",)),
        "final_sigmas_type": Option("zero", ("zero", "sigma_min")),
    },
    lambda options: Euler(options, stochastic=False),
)
EULER_ANCESTRAL = Record(
    "EulerAncestralDiscreteScheduler",
    {**_COMMON, "prediction_type": Option("epsilon", ("epsilon", "v_prediction"))},
    lambda options: Euler(options, stochastic=True),
)
