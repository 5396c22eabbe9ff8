"""UniPC (arXiv 2302.04867): a predictor of several steps, and a corrector that costs no call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.options import (
    BOOLEAN,
    MOST_TIMESTEPS,
    SCHEDULE,
    SIGMA_BOUNDS,
    SIGMAS,
    SPACINGS,
    THRESHOLDING,
    Option,
    Options,
)
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, check_steps
from fp4dit_onnx.runtime.schedulers.spacing import (
    FALLS,
    spaced_before_zero,
    times_of,
)
from fp4dit_onnx.runtime.schedulers.training import data_and_noise, levels, training_sigmas
from fp4dit_onnx.values import whole

__all__ = ["UNIPC_MULTISTEP"]

FloatArray = npt.NDArray[np.float32]


def _step_numbers(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or len(value) > MOST_TIMESTEPS:
        raise UsageError(f"{name} = {value!r}: expected a list of steps")
    for one in value:
        whole(name, one, 0)


OPTIONS = {
    **SCHEDULE,
    **THRESHOLDING,
    **SIGMAS,
    "timestep_spacing": Option("linspace", SPACINGS),
    "solver_order": Option(2, (1, 2, 3)),
    "predict_x0": Option(True, BOOLEAN),
    "solver_type": Option(
        "bh2", ("bh1", "bh2"), dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")
    ),
    "lower_order_final": Option(True, BOOLEAN),
    "disable_corrector": Option([], _step_numbers),
    "solver_p": Option(None, (None,)),
    "use_flow_sigmas": Option(False, (False,)),
    "flow_shift": Option(1.0),
    "final_sigmas_type": Option("zero", ("zero", "sigma_min")),
    "use_dynamic_shifting": Option(False, (False,)),
    "time_shift_type": Option("exponential"),
    **SIGMA_BOUNDS,
    "shift_terminal": Option(None, (None,)),
}


@dataclass(frozen=True)
class UniPcMultistep:
    """A scheduler; see `Scheduler`.

    Attributes:
        options: the checked options of diffusers' UniPCMultistepScheduler.
    """

    options: Options
    stochastic: bool = False

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run; see `Scheduler.start`."""
        check_steps(steps, self.options)
        self._check_end(steps)
        table = training_sigmas(self.options)
        times, sigmas, least = self._spaced(table, steps)
        last = least if self.options["final_sigmas_type"] == "sigma_min" else 0
        all_sigmas = np.append(sigmas, last).astype(np.float32)
        solver = _Solver(self.options, all_sigmas)
        return Run(times.astype(np.int64), solver, solver.levels)

    def _check_end(self, steps: int) -> None:
        """Refuse what divides by the noise of the end where that is none."""
        options = self.options
        first_order = options["lower_order_final"] or options["solver_order"] == 1 or steps == 1
        finite = options["predict_x0"] and options["solver_type"] == "bh2" and first_order
        if options["final_sigmas_type"] == "zero" and not finite:
            raise UsageError(
                f"{UNIPC_MULTISTEP.name}: final_sigmas_type zero needs predict_x0 true, solver_type "
                "bh2 and lower_order_final true, or its last step is not finite: change these, or "
                "take sigma_min"
            )

    def _spaced(
        self, table: FloatArray, steps: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
        """Timesteps, to be rounded towards zero, and sigmas of a run, [steps]; the least sigma."""
        options, logs = self.options, np.log(table)
        for key, between in FALLS.items():
            if options[key]:
                first, last = (
                    float(table[place]) if options[name] is None else options[name]
                    for name, place in (("sigma_max", -1), ("sigma_min", 0))
                )
                sigmas = between(first, last, steps)
                times = times_of(sigmas, logs)
                rounded = times.round() if key == "use_karras_sigmas" else times
                return rounded, sigmas, float(sigmas[-1])
        times = spaced_before_zero(options, steps, len(table)).astype(np.float64)
        return times, np.interp(times, np.arange(len(table)), table), float(table[0])


class _Solver:
    """The state of a run.

    Args:
        options: the scheduler's.
        sigmas: noise over signal at every timestep and at the end, float32 [steps + 1].
    """

    def __init__(self, options: Options, sigmas: FloatArray) -> None:
        self._options, self._steps = options, len(sigmas) - 1
        self._alphas, self._noise_levels, self._log_snr = levels(sigmas)
        self.levels = self._alphas[:-1], self._noise_levels[:-1]
        self._found: list[FloatArray] = []
        self.index = self._order = 0

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample; see `Solver`."""
        i, options = self.index, self._options
        pair = data_and_noise(
            options["prediction_type"],
            model_output,
            sample,
            self._alphas[i],
            self._noise_levels[i],
        )
        found = pair[0] if options["predict_x0"] else pair[1]
        if self._found and i - 1 not in options["disable_corrector"]:
            sample = self._corrected(found, sample)
        self._found = [found, *self._found[: options["solver_order"] - 1]]
        left = self._steps - i if options["lower_order_final"] else options["solver_order"]
        self._order = min(options["solver_order"], left, len(self._found))
        self.index += 1
        return self._predicted(sample)

    def _predicted(self, sample: FloatArray) -> FloatArray:
        """The first-order step from `sample` at the timestep before `index`, and its correction."""
        i = self.index
        scale, own = self._scales(i)
        step = _Step(self._h(i), self._options["solver_type"])
        result = scale * sample - own * step.phi * self._found[0]
        if self._order > 1:
            result = result - own * step.size * self._slope(i, step.predictor(self._ratios(i)))
        return np.asarray(result, np.float32)

    def _corrected(self, found: FloatArray, sample: FloatArray) -> FloatArray:
        """`sample`, which the last step predicted, now that the model has seen it.

        The corrector takes the same first-order step as the predictor before it: what differs are
        the weights of the slopes, and the slope to what was found here.
        """
        i, ratios = self.index, self._ratios(self.index)
        _, own = self._scales(i)
        step = _Step(self._h(i), self._options["solver_type"])
        weights = step.corrector(ratios)
        change = weights[-1] * (found - self._found[0])
        if self._order > 1:
            change = change + self._slope(i, weights[:-1] - step.predictor(ratios))
        return np.asarray(sample - own * step.size * change, np.float32)

    def _h(self, i: int) -> np.float32:
        """How far the log SNR goes in the step to `i`; negative where data are predicted."""
        h = self._log_snr[i] - self._log_snr[i - 1]
        return np.float32(-h if self._options["predict_x0"] else h)

    def _scales(self, i: int) -> tuple[np.float32, np.float32]:
        """Weights of the sample and of what the model found, in the step to `i`."""
        kept, own = self._noise_levels, self._alphas
        if not self._options["predict_x0"]:
            kept, own = own, kept
        return kept[i] / kept[i - 1], own[i]

    def _ratios(self, i: int) -> FloatArray:
        """Where older timesteps lie, in units of the step to `i`: negative, [order - 1]."""
        h = self._log_snr[i] - self._log_snr[i - 1]
        older = [self._log_snr[i - 1 - k] - self._log_snr[i - 1] for k in range(1, self._order)]
        with np.errstate(
            divide="ignore"
        ):  # a step that goes nowhere takes no part of their slopes
            return np.asarray(np.array(older, np.float32) / h, np.float32)

    def _slope(self, i: int, weights: FloatArray) -> FloatArray:
        """The weighted slopes from older findings to the newest one."""
        slopes = [
            (self._found[k + 1] - self._found[0]) / ratio
            for k, ratio in enumerate(self._ratios(i))
        ]
        total = sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        return np.asarray(total, np.float32)


class _Step:
    """The numbers of a step of size `h` (the paper's B(h) and phi).

    Args:
        h: signed as `_Solver._h` gives it.
        kind: the option ``solver_type``.
    """

    def __init__(self, h: np.float32, kind: str) -> None:
        self._h, self.phi = h, np.expm1(h)
        self.size = h if kind == "bh1" else self.phi

    def _right_side(self, count: int) -> FloatArray:
        """The first `count` of b_i = phi_(i+1)(h) i! / B(h)."""
        phi, factorial, side = self.phi / self._h - 1, 1, []
        for i in range(1, count + 1):
            side.append(phi * factorial / self.size)
            factorial *= i + 1
            phi = phi / self._h - np.float32(1 / factorial)
        return np.array(side, np.float32)

    def predictor(self, ratios: FloatArray) -> FloatArray:
        """Weights of the slopes from `ratios`, [order - 1]."""
        if len(ratios) == 1:
            return np.array([0.5], np.float32)
        return self._solved(ratios)

    def corrector(self, ratios: FloatArray) -> FloatArray:
        """Weights of the slopes from `ratios` and of the one to the new finding, [order]."""
        if len(ratios) == 0:
            return np.array([0.5], np.float32)
        return self._solved(np.append(ratios, np.float32(1)))

    def _solved(self, places: FloatArray) -> FloatArray:
        powers = np.stack([places**k for k in range(len(places))])
        if not np.isfinite(powers).all() or len({*places.tolist()}) < len(places):
            raise UsageError(
                f"{UNIPC_MULTISTEP.name}: two of its steps have the same signal to "
                "noise in float32: expected fewer steps"
            )
        return np.asarray(np.linalg.solve(powers, self._right_side(len(places))), np.float32)


UNIPC_MULTISTEP = Record("UniPCMultistepScheduler", OPTIONS, UniPcMultistep)
