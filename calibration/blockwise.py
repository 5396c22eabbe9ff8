"""Calibrating a network unit by unit, each against its float counterpart (FP4DiT section "calibration").

A unit's target comes from the float network, along the trajectory of the float sampler. Its inputs come
from where the method says: ``sequential``, from the network quantized so far, so that a unit makes up
for what earlier ones lost; or ``parallel``, from the float network, so that no unit waits for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fp4dit_onnx.calibration.methods import PARALLEL
from fp4dit_onnx.calibration.samples import Samples
from fp4dit_onnx.calibration.solving import Layers, Solved, UnitRecipe, solve
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.walk import Walk
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.system.executors import Executor, Task
from fp4dit_onnx.system.progress import Advance, Reporter
from fp4dit_onnx.system.resources import return_memory

__all__ = ["Blockwise", "Recipes", "Same"]


class Recipes(Protocol):
    """Says how each unit is quantized, when its turn has come."""

    def begin(self, name: str) -> UnitRecipe:
        """Of a unit that is solved next."""
        ...

    def skip(self, name: str) -> None:
        """A unit was solved by an earlier run."""
        ...

    def finish(self, name: str) -> None:
        """A unit that was begun is solved."""
        ...


@dataclass(frozen=True)
class Same:
    """One recipe for all units."""

    recipe: UnitRecipe

    def begin(self, name: str) -> UnitRecipe:
        """See `Recipes`."""
        return self.recipe

    def skip(self, name: str) -> None:
        """See `Recipes`."""

    def finish(self, name: str) -> None:
        """See `Recipes`."""


@dataclass
class _Steps:
    """Advances a stage by one unit, in parts."""

    name: str
    share: float
    advance: Advance
    done: float = 0.0

    def __call__(self, error: float) -> None:
        """One iteration is done."""
        self.done += self.share
        self.advance(self.share, f"{self.name}, error {error:.3f}")

    def end(self) -> None:
        """All are, whether they were told or not."""
        if self.done < 1 - self.share / 2:  # parts are sums of floats
            self.advance(1 - self.done, self.name)


@dataclass(frozen=True)
class _Waiting:
    """What belongs to a unit that is not solved yet."""

    inputs: Samples
    iterations: int
    steps: _Steps


@dataclass
class Blockwise:
    """A calibration over all units.

    Attributes:
        walk: finds what units receive and give.
        recipes: of the units.
        inputs: where they come from, ``sequential`` or ``parallel``.
        work: where finished units go.
        executor: where units are solved.
        seed: of the mini-batches.
        reporter: progress.
    """

    walk: Walk
    recipes: Recipes
    inputs: str
    work: Work
    executor: Executor
    seed: int
    reporter: Reporter
    _solved: Layers = field(default_factory=dict, init=False)
    _waiting: dict[str, _Waiting] = field(default_factory=dict, init=False)
    _last: str = field(default="", init=False)

    def run(self, units: Sequence[Unit]) -> Layers:
        """Quantize the layers of `units`, in order; finished ones are read from the work folder."""
        with self.reporter.stage("calibrating", len(units), "blocks") as advance:
            for task, solved in self.executor.results(self._tasks(units, advance)):
                self._keep(task.name, solved)
        return self._solved

    @property
    def _parallel(self) -> bool:
        return self.inputs == PARALLEL

    def _tasks(self, units: Sequence[Unit], advance: Advance) -> Iterator[Task[Solved]]:
        """What is left to solve; taking a task records what its unit receives."""
        for number, unit in enumerate(units):
            name, known = unit.name, self.work.finished(unit.name)
            if known is None and not self.work.keeps(_place(name)):
                self._record(name)
            self._last = name
            if known is not None:
                self._solved |= known[0]
                self._forget(name)
                self.recipes.skip(name)
                advance(1, timed=False)
                continue
            inputs = self.work.load_samples(_place(name), self.walk.network.execution)
            assert inputs is not None, name
            recipe = self.recipes.begin(name)
            given = unit, inputs, self.walk.targets(name), recipe, self.seed + number
            steps = _Steps(name, 1 / max(1, recipe.iterations), advance)
            self._waiting[name] = _Waiting(inputs, recipe.iterations, steps)
            yield Task(name, solve, given, steps)

    def _record(self, name: str) -> None:
        """Write what a unit receives and should give."""
        self.walk.write_targets(name)
        others = None if self._parallel else self._solved
        self.work.save(_place(name), self.walk.write_inputs(name, others, _place(name)))
        if self._parallel:
            self.walk.tidy(name, {name, *self._waiting})

    def _keep(self, name: str, solved: Solved) -> None:
        """Keep what became of a unit, and delete what only it needed."""
        waiting = self._waiting.pop(name)
        if not self._parallel:
            self.walk.write_results(name, solved.layers.values(), waiting.inputs)
        self.work.finish(name, solved.layers, solved.error)
        self._solved |= self.work.layers(name)
        self._forget(name)
        self.recipes.finish(name)
        self.walk.tidy(self._last, self._waiting)
        return_memory()
        steps = (
            f", {waiting.iterations} optimizer steps"
            if solved.trained and waiting.iterations
            else ""
        )
        self.reporter.note(f"{name}: error {solved.error:.3f} of nearest rounding{steps}")
        waiting.steps.end()

    def _forget(self, name: str) -> None:
        self.work.clear(_place(name))
        self.work.clear(f"{_place(name)}.pt")


def _place(unit: str) -> str:
    """Of what a unit receives, the name in the work folder."""
    return f"{unit}@inputs"
