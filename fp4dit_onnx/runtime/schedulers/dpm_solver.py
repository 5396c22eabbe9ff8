"""DPM-Solver++ (Lu et al., arXiv 2211.01095) with one to three steps of history."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.options import (
    BOOLEAN,
    SCHEDULE,
    SIGMAS,
    SPACINGS,
    THRESHOLDING,
    Option,
    Options,
    number,
)
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, check_steps
from fp4dit_onnx.runtime.schedulers.spacing import (
    exponential,
    karras,
    spaced_before_zero,
    times_of,
)
from fp4dit_onnx.runtime.schedulers.training import (
    data_and_noise,
    flow_levels,
    levels,
    positive_alphas,
    training_sigmas,
)

__all__ = ["DPM_SOLVER_MULTISTEP"]

FloatArray = npt.NDArray[np.float32]

FLOW = "flow_prediction"
LEAST_SHIFT = 1e-6
SHORT = 15
"""Runs of fewer steps take lower orders at their end."""
_OTHER_SOLVERS = dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")
OPTIONS = {
    **SCHEDULE,
    **THRESHOLDING,
    **SIGMAS,
    "timestep_spacing": Option("linspace", SPACINGS),
    "solver_order": Option(2, (1, 2, 3)),
    "algorithm_type": Option("dpmsolver++", ("dpmsolver++",), {"deis": "dpmsolver++"}),
    "solver_type": Option("midpoint", ("midpoint", "heun"), _OTHER_SOLVERS),
    "lower_order_final": Option(True, BOOLEAN),
    "euler_at_final": Option(False, BOOLEAN),
    "use_lu_lambdas": Option(False, BOOLEAN),
    "prediction_type": Option("epsilon", ("epsilon", "v_prediction", "sample", FLOW)),
    "use_flow_sigmas": Option(False, BOOLEAN),
    "flow_shift": Option(1.0, number(LEAST_SHIFT)),
    "final_sigmas_type": Option("zero", ("zero", "sigma_min")),
    "lambda_min_clipped": Option(-math.inf, number(-math.inf)),
    "variance_type": Option(None, (None,)),
    "use_dynamic_shifting": Option(False, (False,)),
    "time_shift_type": Option("exponential"),
}


@dataclass(frozen=True)
class DpmSolverMultistep:
    """A scheduler; see `Scheduler`.

    Attributes:
        options: the checked options of diffusers' DPMSolverMultistepScheduler.
    """

    options: Options
    stochastic: bool = False

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run; see `Scheduler.start`."""
        check_steps(steps, self.options)
        flows, kind = self.options["use_flow_sigmas"], self.options["prediction_type"]
        if flows != (kind == FLOW):
            raise UsageError(
                f"{DPM_SOLVER_MULTISTEP.name}: use_flow_sigmas is {flows} and prediction_type is "
                f"{kind!r}: expected true with {FLOW!r}, or neither; change scheduler_config.json"
            )
        table = training_sigmas(self.options)
        times, sigmas = self._flowing(steps) if flows else self._spaced(table, steps)
        last = table[0] if self.options["final_sigmas_type"] == "sigma_min" else 0
        all_sigmas = np.concatenate([sigmas, [last]]).astype(np.float32)
        solver = _Solver(self.options, all_sigmas)
        return Run(times.astype(np.int64), solver, solver.levels)

    def _flowing(self, steps: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The same where sigmas are shares of noise."""
        shift, count = self.options["flow_shift"], self.options["num_train_timesteps"]
        even = 1.0 - np.linspace(1, 1 / count, steps + 1)
        sigmas = (shift * even / (1 + (shift - 1) * even))[:0:-1]
        return sigmas * count, sigmas

    def _spaced(
        self, table: FloatArray, steps: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Timesteps, to be rounded towards zero, and sigmas of a run, [steps] each."""
        options, logs = self.options, np.log(table)
        first, last = float(table[-1]), float(table[0])
        if options["use_karras_sigmas"]:
            sigmas = karras(first, last, steps)
        elif options["use_lu_lambdas"]:
            ramp = np.linspace(0, 1, steps)
            sigmas = np.exp(float(logs[-1]) + ramp * (float(logs[0]) - float(logs[-1])))
        elif options["use_exponential_sigmas"]:
            sigmas = exponential(first, last, steps)
            return times_of(sigmas, logs), sigmas
        else:
            times = spaced_before_zero(options, steps, self._unclipped()).astype(np.float64)
            return times, np.interp(times, np.arange(len(table)), table)
        times = times_of(sigmas, logs)
        cosine = options["beta_schedule"] == "squaredcos_cap_v2"
        return times if cosine else times.round(), sigmas

    def _unclipped(self) -> int:
        """Timesteps whose log signal-to-noise ratio is not clipped."""
        cumulative = positive_alphas(self.options)
        log_snr = np.log(np.sqrt(cumulative)) - np.log(np.sqrt(1 - cumulative))
        least = np.float32(self.options["lambda_min_clipped"])
        return len(cumulative) - int(np.searchsorted(log_snr[::-1], least))


class _Solver:
    """The state of a run.

    Args:
        options: the scheduler's.
        sigmas: noise over signal, or the share of noise where the model predicts a flow, at every
            timestep and at the end, float32 [steps + 1].
    """

    def __init__(self, options: Options, sigmas: FloatArray) -> None:
        self._options, self._steps = options, len(sigmas) - 1
        flows = options["use_flow_sigmas"]
        self._alphas, self._noise_levels, self._log_snr = (flow_levels if flows else levels)(
            sigmas
        )
        self.levels = self._alphas[:-1], self._noise_levels[:-1]
        self._data: list[FloatArray] = []
        self.index = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Solver`."""
        i, order = self.index, self._order()
        alpha, sigma = self._alphas[i], self._noise_levels[i]
        kind = self._options["prediction_type"]
        data, _ = data_and_noise(kind, model_output, sample, alpha, sigma)
        self._data = [data, *self._data[: self._options["solver_order"] - 1]]
        self.index += 1
        h = self._log_snr[i + 1] - self._log_snr[i]
        decay = np.exp(-h) - 1
        first = (self._noise_levels[i + 1] / sigma) * sample - self._alphas[i + 1] * decay * data
        if order == 1:
            return np.asarray(first, np.float32)
        return np.asarray(first + self._alphas[i + 1] * self._correction(i, order, h), np.float32)

    def _order(self) -> int:
        """The order of the step to come: what history there is, and lower towards the end."""
        order = min(self._options["solver_order"], len(self._data) + 1)
        left = self._steps - self.index
        short = self._options["lower_order_final"] and self._steps < SHORT
        ends = self._options["euler_at_final"] or self._options["final_sigmas_type"] == "zero"
        if left == 1 and (short or ends):
            return 1
        return min(order, 2) if left == 2 and short else int(order)

    def _correction(self, i: int, order: int, h: np.float32) -> FloatArray:
        """What orders 2 and 3 add to the first-order step, before the factor alpha."""
        decay = np.exp(-h) - 1
        r0 = (self._log_snr[i] - self._log_snr[i - 1]) / h
        slope = (self._data[0] - self._data[1]) / r0
        if order == 2 and self._options["solver_type"] == "midpoint":
            return np.asarray(-np.float32(0.5) * decay * slope, np.float32)
        weight = decay / h + 1
        if order == 2:
            return np.asarray(weight * slope, np.float32)
        r1 = (self._log_snr[i - 1] - self._log_snr[i - 2]) / h
        older = (self._data[1] - self._data[2]) / r1
        bend = (slope - older) / (r0 + r1)
        curve = (decay + h) / (h * h) - np.float32(0.5)
        return np.asarray(weight * (slope + r0 * bend) - curve * bend, np.float32)


DPM_SOLVER_MULTISTEP = Record("DPMSolverMultistepScheduler", OPTIONS, DpmSolverMultistep)
