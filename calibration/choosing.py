"""Formats and transforms chosen per layer, and compared with each uniform choice at the end.

A layer's choice looks at that layer alone. What counts is the network, so the chosen set and every
set that makes one choice for all layers run on the float sampler's trajectory, activations
quantized, and the set of the least guided error is taken. Under a budget layers also get different
bits and group sizes (`spending`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from fp4dit_onnx.bundle.calibration_notes import Compared, Spent
from fp4dit_onnx.calibration.evidence import Parts
from fp4dit_onnx.calibration.evolution import Evolution
from fp4dit_onnx.calibration.making import ChoiceRecipe, Ways, ways
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import Moments
from fp4dit_onnx.calibration.samples import Samples
from fp4dit_onnx.calibration.spending import Made, Sets, Spending, comparison, first, load
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.calibration.stages.evolve import Evolve
from fp4dit_onnx.calibration.trajectory import Trajectory
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.system.executors import Executor, Task
from fp4dit_onnx.system.progress import Advance, Reporter

__all__ = ["CHOSEN", "Choosing", "Chosen"]

CHOSEN = "each layer's own choice"
COMPARED_PAIRS = 64
"""Pairs of samples on which sets are compared."""
Layers = dict[str, QuantizedLayer]


@dataclass(frozen=True)
class Chosen:
    """The layers of the best set.

    Attributes:
        layers: by name.
        compared: sets that were compared; empty where there was one.
        spent: what became of a budget, None for none.
    """

    layers: Layers
    compared: tuple[Compared, ...] = ()
    spent: Spent | None = None


@dataclass(frozen=True)
class Choosing:
    """The transforms and choices of a method, over all units.

    Attributes:
        network: in float, left as it was.
        specs: name -> specification of each linear before any choice.
        method: its transforms and choices are made; its rounding too, unless that is trained.
        moments: what layers receive.
        samples: arguments of the network, on which sets are compared.
        guidance: of the sampler.
        attention: formats of q, k and v.
        candidates: weight formats to choose among, by layer.
        precisions: what a weight may be under a budget, by layer.
        work: where finished units go.
        chunk: samples that are run at a time.
        reporter: progress.
        executor: where units are rounded.
        parts: gives the parts of the network there.
        sample: final latents of some images in so many steps, always the same; None for none.
        seed: of every random choice.
        left: seconds that a search of sets may still take.
    """

    network: Network
    specs: Mapping[str, LayerSpec]
    method: Method
    moments: Moments
    samples: Samples
    guidance: Guided
    attention: Mapping[str, str]
    candidates: Mapping[str, Sequence[str]]
    precisions: Mapping[str, Sequence[TensorSpec]]
    work: Work
    chunk: int
    reporter: Reporter
    executor: Executor
    parts: Parts
    sample: Callable[[int], torch.Tensor] | None = None
    seed: int = 0
    left: Callable[[], float] = lambda: math.inf

    def run(self, units: Sequence[Unit]) -> Chosen:
        """The layers of the best set, and what was compared; finished units are read from disk.

        Raises:
            UsageError: a budget that cannot be kept.
        """
        with self.reporter.stage("choosing and rounding", len(units), "blocks") as advance:
            for task, found in self.executor.results(self._tasks(units, advance)):
                if self.method.budget is not None:
                    self.work.save(_losses(task.name), found.losses)
                self.work.finish(_place(task.name), found.layers, found.error)
                advance(1, task.name)
        made: dict[str, list[Made]] = {}
        for unit in units:
            made |= self._made(unit)
        if self.method.evolution is not None:
            taken, table = self._evolution(self.method.evolution).run(made)
            return Chosen(load(self.work, taken), table)
        own: Sets = {CHOSEN: {name: rows[:1] for name, rows in made.items()}}
        chosen = first(own[CHOSEN])
        others = {n: rows for n, rows in self._uniform(made).items() if first(rows) != chosen}
        sets = {**own, **others}
        if self.method.budget is not None:
            taken, table, spent = self._spending(self.method.budget).run(made, sets)
            return Chosen(load(self.work, taken), table, spent)
        if len(sets) == 1:
            return Chosen(load(self.work, chosen))
        errors: dict[str, float] | None = self.work.load("compared")
        if errors is None:
            errors = self._errors({label: first(rows) for label, rows in sets.items()})
            self.work.save("compared", errors)
        best = min(errors, key=errors.__getitem__)
        return Chosen(load(self.work, first(sets[best])), comparison(errors, best))

    def _evolution(self, settings: Evolve) -> Evolution:
        assert self.sample is not None
        return Evolution(
            settings=settings,
            network=self.network,
            sample=self.sample,
            attention=self.attention,
            work=self.work,
            seed=self.seed,
            reporter=self.reporter,
            left=self.left,
        )

    def _spending(self, budget: Budget) -> Spending:
        shapes = [self.network.module.get_parameter(f"{name}.weight").shape for name in self.specs]
        return Spending(
            budget=budget,
            weights=sum(map(prod, shapes)),
            work=self.work,
            trajectory=self._trajectory(COMPARED_PAIRS),
            probe=self._trajectory(budget.pairs),
            attention=self.attention,
            reporter=self.reporter,
        )

    def _trajectory(self, count: int) -> Trajectory:
        return Trajectory(self.network, self.samples, self.guidance, self.chunk, count)

    def _uniform(self, made: Mapping[str, Sequence[Made]]) -> Sets:
        """A set for each choice that all layers which have it can share; others keep their own."""
        known = {row.format for rows in made.values() for row in rows}
        every = {row.input_ops for rows in made.values() for row in rows}
        formats = dict.fromkeys(f for name in made for f in self.candidates.get(name, ()))
        rotates = len(every) > 1
        shared: list[str | None] = [*(f for f in formats if f in known)]
        sets: Sets = {}
        for fmt in shared or [None]:
            for input_ops in sorted(every, key=lambda given: (len(given), repr(given))):
                turned = ", ".join(map(str, input_ops)) or "not transformed"
                if label := ", ".join([*([fmt] if fmt else []), *([turned] if rotates else [])]):
                    sets[label] = {
                        name: self._matching(name, rows, fmt, input_ops)
                        for name, rows in made.items()
                    }
        return sets

    def _matching(
        self,
        name: str,
        rows: Sequence[Made],
        fmt: str | None,
        input_ops: tuple[Transform, ...],
    ) -> Sequence[Made]:
        """What was made of a layer in the format, if it has that choice, and with these transforms."""
        others = set(self.candidates.get(name, ())) - {fmt}
        same = [r for r in rows if r.input_ops == input_ops and r.format not in others]
        return same or rows[:1]

    def _tasks(self, units: Sequence[Unit], advance: Advance) -> Iterator[Task[Ways]]:
        """What is left to round."""
        recipe = ChoiceRecipe(
            parts=self.parts,
            specs=self.specs,
            stages=self.method.stages,
            moments=self.moments,
            candidates=dict(self.candidates),  # a view cannot be pickled
            precisions=dict(self.precisions),
            priced=self.method.budget is not None,
        )
        for unit in units:
            if unit.layers and self.work.finished(_place(unit.name)) is None:
                yield Task(unit.name, ways, (unit, recipe), lambda: None)
            else:
                advance(1, timed=False)

    def _made(self, unit: Unit) -> dict[str, list[Made]]:
        """Of each layer of a unit, what was chosen, then all that was made; it is on disk."""
        if not unit.layers:
            return {}
        place = _place(unit.name)
        known = self.work.layers(place)
        losses = self.work.load(_losses(unit.name)) or {}
        found: dict[str, list[Made]] = {name: [] for name in unit.layers}
        for key in sorted(known, key=lambda key: int(key.partition("@")[0])):
            layer = known[key]
            spec, loss = layer.spec, losses.get(key, 0.0)
            same = tuple(o.named_after("").without_tensors for o in spec.input_ops)
            size = spec.group_size
            row = Made(place, key, spec.weight.format, size, same, layer.nbytes, loss)
            found[key.partition("@")[2]].append(row)
        return found

    def _errors(self, sets: Mapping[str, Mapping[str, Made]]) -> dict[str, float]:
        """Guided error of the network under each set, on the same samples."""
        trajectory, errors = self._trajectory(COMPARED_PAIRS), {}
        with self.reporter.stage("comparing choices", len(sets), "sets") as advance:
            for label, chosen in sets.items():
                state = QuantizedState(load(self.work, chosen), attention=self.attention)
                errors[label] = trajectory.error(state)
                advance(1, label)
        return errors


def _place(unit: str) -> str:
    """Of what was made of a unit, the name in the work folder."""
    return f"{unit}@choices"


def _losses(unit: str) -> str:
    """Of its errors."""
    return f"{unit}@losses"
