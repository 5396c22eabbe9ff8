"""Timing what a calibration consists of, on the machine that runs it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from statistics import median

import torch

from fp4dit_onnx.calibration.methods import Method, with_settings
from fp4dit_onnx.calibration.pacing import Division
from fp4dit_onnx.calibration.record import Sampler, first_call
from fp4dit_onnx.calibration.samples import batch_of
from fp4dit_onnx.calibration.solving import UnitRecipe, solve
from fp4dit_onnx.calibration.stages import Stage
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.walk import Walk
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.network.network import Network

__all__ = ["Pace", "PacedRecipes", "paced_recipes", "row_seconds"]

TIMED_ITERATIONS = 5
TIMED_SAMPLES = 32
STEP, ITERATIONS, TIMED = "step", "iterations", "timed"
"""What is kept in the work folder, and what is there for a while."""


@dataclass(frozen=True)
class Pace:
    """Settles what is left open of a method once its data are recorded.

    Attributes:
        left: seconds until everything is to be done.
        after: seconds of what follows the units, as predicted.
        walk: seconds of running the samples through all units, as predicted.
        method: with so many iterations.
        asked: iterations of every unit; None for what there is time for.
    """

    left: Callable[[], float]
    after: float
    walk: float
    method: Callable[[int], Method]
    asked: int | None = None

    def search(self) -> float:
        """Seconds that are left before the units, as predicted."""
        return self.left() - self.after - self.walk


@dataclass
class PacedRecipes:
    """Gives each unit as many iterations as there is time for when it begins.

    Attributes:
        recipe: of every unit, but for the iterations.
        method: with so many iterations.
        division: of the time.
        work: keeps what each unit got.
        iterations: of the units so far, by name.
    """

    recipe: UnitRecipe
    method: Callable[[int], Method]
    division: Division
    work: Work
    iterations: dict[str, int] = field(default_factory=dict)

    def begin(self, name: str) -> UnitRecipe:
        """See `blockwise.Recipes`."""
        steps = self.division.begin(name)
        made = self.method(max(1, steps))
        self.iterations[name] = made.iterations if steps else 0
        self.work.save(ITERATIONS, self.iterations)
        stages = made.after_choices if steps else _untrained(made.after_choices)
        return replace(self.recipe, stages=stages)

    def skip(self, name: str) -> None:
        """See `blockwise.Recipes`."""
        self.division.skip(name)

    def finish(self, name: str) -> None:
        """See `blockwise.Recipes`."""
        self.division.finish(name)

    @property
    def usual(self) -> Method:
        """The method with the mean of the units' iterations, each weighted by its size."""
        sizes = {name: self.division.sizes[name] for name in self.iterations}
        total = sum(sizes[name] * count for name, count in self.iterations.items())
        return self.method(max(1, round(total / max(sum(sizes.values()), 1e-9))))


def _untrained(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """`stages` with rounding to nearest in place of rounding that is trained."""
    return tuple(Nearest() if s.kind == "rounding" and s.iterations else s for s in stages)


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


def paced_recipes(
    pace: Pace, method: Method, walk: Walk, recipe: UnitRecipe, units: Sequence[Unit], seed: int
) -> PacedRecipes:
    """What gives units their iterations, once an optimizer step was timed; a resumed run times none.

    Args:
        pace: says how long.
        method: with any iterations.
        walk: to what units receive.
        recipe: of every unit, but for the iterations.
        units: all of them.
        seed: of the mini-batches.
    """
    first = next(u for u in units if u.layers and walk.topology.by_name[u.name].block)
    step: float | None = walk.work.load(STEP)
    if step is None:
        few = with_settings(method, {"iterations": TIMED_ITERATIONS})
        step = _step_seconds(walk, first, replace(recipe, stages=few.after_choices), seed)
        walk.work.save(STEP, step)
    one = _weights(walk.network, first)
    sizes = {unit.name: _weights(walk.network, unit) / one for unit in units}
    division = Division(pace.left, pace.after, pace.walk, step, sizes, asked=pace.asked)
    kept = walk.work.load(ITERATIONS) or {}
    return PacedRecipes(recipe, pace.method, division, walk.work, kept)


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
