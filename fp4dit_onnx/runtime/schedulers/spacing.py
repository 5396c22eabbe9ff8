"""Which timesteps, and which noise over signal, a run of a few steps has."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.options import Options

__all__ = [
    "FALLS",
    "check_timesteps",
    "exponential",
    "karras",
    "spaced",
    "spaced_before_zero",
    "times_of",
]

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

KARRAS_RHO = 7.0


def spaced(options: Options, steps: int) -> DoubleArray:
    """Falling timesteps, the last one the data's own where they reach it, not rounded, [steps]."""
    count, spacing = options["num_train_timesteps"], options["timestep_spacing"]
    if spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]
    if spacing == "leading":
        rising = np.arange(0, steps, dtype=np.float64) * (count // steps)
        return np.asarray(rising[::-1] + options["steps_offset"], np.float64)
    return np.arange(count, 0, -count / steps).round() - 1


def spaced_before_zero(options: Options, steps: int, end: int) -> npt.NDArray[np.int64]:
    """Falling timesteps below `end` of multistep solvers, which go on to the data, int64 [steps]."""
    spacing = options["timestep_spacing"]
    if spacing == "linspace":
        return np.linspace(0, end - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
    if spacing == "leading":
        rising = np.arange(0, steps + 1) * (end // (steps + 1))
        return rising[::-1][:-1].astype(np.int64) + int(options["steps_offset"])
    stride = options["num_train_timesteps"] / steps
    return np.arange(end, 0, -stride).round().astype(np.int64) - 1


def check_timesteps(times: npt.NDArray[np.int64], options: Options) -> None:
    """Raise UsageError for timesteps that training had not."""
    count = options["num_train_timesteps"]
    if times.max() >= count:
        raise UsageError(
            f"steps = {len(times)} with steps_offset = {options['steps_offset']} reaches "
            f"timestep {times.max()}: expected less than {count}; take fewer steps"
        )


def karras(first: float, last: float, steps: int) -> DoubleArray:
    """Sigmas falling evenly in their 7th root (arXiv 2206.00364), float64 [steps]."""
    low, high = last ** (1 / KARRAS_RHO), first ** (1 / KARRAS_RHO)
    return np.asarray((high + np.linspace(0, 1, steps) * (low - high)) ** KARRAS_RHO, np.float64)


def exponential(first: float, last: float, steps: int) -> DoubleArray:
    """Sigmas falling evenly in their logarithm, float64 [steps]."""
    return np.exp(np.linspace(math.log(first), math.log(last), steps))


FALLS = {"use_karras_sigmas": karras, "use_exponential_sigmas": exponential}
"""Option -> the sigmas that it asks for, from the first, the last and the number of steps."""


def times_of(sigmas: DoubleArray, log_table: FloatArray) -> DoubleArray:
    """The fractional training timestep of every sigma, by its logarithm.

    Args:
        sigmas: float64 [steps].
        log_table: logarithms of the training timesteps' sigmas; rising, or nearly so at the end of
            tables of which nothing but noise is left.
    """
    logs = np.log(np.maximum(sigmas, 1e-10))
    reached = (
        logs[:, None] >= log_table
    )  # [steps, table]; the last one counts, if tables rise or not
    last = len(log_table) - 1 - reached[:, ::-1].argmax(axis=1)
    low = np.where(reached.any(axis=1), np.minimum(last, len(log_table) - 2), 0)
    span = log_table[low] - log_table[low + 1]
    weight = np.clip((log_table[low] - logs) / span, 0, 1)
    return np.asarray((1 - weight) * low + weight * (low + 1), np.float64)
