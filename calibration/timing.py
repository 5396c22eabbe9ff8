"""Timing what a calibration consists of, on the machine that runs it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median

import torch

from fp4dit_onnx.calibration.methods import Method, with_settings
from fp4dit_onnx.calibration.pacing import iterations_within
from fp4dit_onnx.calibration.record import Sampler, first_call
from fp4dit_onnx.calibration.samples import batch_of
from fp4dit_onnx.calibration.solving import UnitRecipe, solve
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.walk import Walk
from fp4dit_onnx.network.network import Network

__all__ = ["Pace", "row_seconds", "settled"]

TIMED_ITERATIONS = 5
TIMED_SAMPLES = 32
SETTLED, TIMED = "settled", "timed"
"""What is kept in the work folder, and what is there for a while."""


@dataclass(frozen=True)
class Pace:
    """Settles what is left open of a method once its data are recorded.

    Attributes:
        left: seconds for training all units.
        method: with so many iterations.
    """

    left: Callable[[], float]
    method: Callable[[int], Method]


@torch.no_grad()
def row_seconds(network: Network, sampler: Sampler) -> float:
    """Seconds that the network takes for one sample, in a batch of the sampler's.

    Args:
        network: float transformer.
        sampler: whose first call is run.
    """
    args, kwargs = call = first_call(network.module, sampler)

    def run() -> float:
        output = network.module(*args, **kwargs)[0]
        return float(output.flatten()[0])  # a device is done only once a result is here

    run()  # reads what stays in memory
    start = time.monotonic()
    run()
    return (time.monotonic() - start) / batch_of(call)


def settled(
    pace: Pace, method: Method, walk: Walk, recipe: UnitRecipe, units: Sequence[Unit], seed: int
) -> Method:
    """The method with as many iterations as there is time for; a resumed run has the same.

    Args:
        pace: says how long.
        method: with any iterations.
        walk: to what units receive.
        recipe: of every unit, but for the iterations.
        units: all of them.
        seed: of the mini-batches.
    """
    iterations: int | None = walk.work.load(SETTLED)
    if iterations is None:
        first = next(u for u in units if u.layers and walk.topology.by_name[u.name].block)
        sizes = [_weights(walk.network, unit) for unit in units]
        shares = [size / _weights(walk.network, first) for size in sizes]
        few = with_settings(method, {"iterations": TIMED_ITERATIONS})
        step = _step_seconds(walk, first, replace(recipe, stages=few.after_choices), seed)
        iterations = iterations_within(pace.left(), step, shares)
        walk.work.save(SETTLED, iterations)
    return pace.method(iterations)


def _weights(network: Network, unit: Unit) -> int:
    """Weights that are to be quantized."""
    named = (network.module.get_parameter(f"{name}.weight") for name in unit.layers)
    return sum(prod(weight.shape) for weight in named)


def _step_seconds(walk: Walk, unit: Unit, recipe: UnitRecipe, seed: int) -> float:
    """Of one optimizer step of a unit that reads no other block's results, on a few samples."""
    few = replace(walk.samples, count=min(TIMED_SAMPLES, walk.samples.count))
    short = replace(walk, samples=few)
    short.write_targets(unit.name)
    inputs = short.write_inputs(unit.name, {}, TIMED)
    times: list[float] = []
    targets = short.targets(unit.name)
    solve(unit, inputs, targets, recipe, seed, lambda _: times.append(time.monotonic()))
    walk.work.clear(TIMED)
    return median(b - a for a, b in itertools.pairwise(times))
