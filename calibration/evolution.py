"""Group sizes of layers by evolutionary search: Q-DiT's automatic granularity allocation.

Its fitness is the FID of images against a reference set, which is not at hand here: this one is the
mean squared error of the final latents of a few images, always of the same noise and prompts, against
the float network's over as many steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fp4dit_onnx.bundle.calibration_notes import Compared
from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.calibration.spending import Made, Set, comparison, first, load
from fp4dit_onnx.calibration.stages.evolve import Evolve
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.network.execution import host
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.system.progress import Reporter

__all__ = ["Evolution", "Genome", "evolve"]

Genome = tuple[int, ...]
"""Group size of each layer."""
ATTEMPTS = 10
"""For each set that a generation is to have, as published."""
EVOLVED, USUAL = "group sizes by evolution", "one group size"
_MEASURED = "evolution"


def evolve(
    options: Sequence[Sequence[int]],
    usual: Genome,
    settings: Evolve,
    seed: int,
    fitness: Callable[[Genome], float],
) -> dict[Genome, float]:
    """Errors of every genome that was looked at, the usual one first.

    A genome of too many groups gets larger ones in random layers until the mean is large enough.

    Args:
        options: sizes that each layer may have.
        usual: where the search begins.
        settings: of the search.
        seed: of every random choice.
        fitness: error of a genome; each is asked for once.
    """
    random = np.random.default_rng(seed)
    ladders = [sorted(sizes) for sizes in options]
    least = min(settings.mean, float(np.mean(usual)))
    errors: dict[Genome, float] = {}

    def affordable(genome: Sequence[int]) -> Genome:
        found = list(genome)
        while np.mean(found) < least:
            layer = int(random.integers(len(found)))
            larger = [size for size in ladders[layer] if size > found[layer]]
            found[layer] = larger[0] if larger else found[layer]
        return tuple(found)

    def fresh() -> Genome:
        return affordable([int(random.choice(sizes)) for sizes in ladders])

    def mutated(parents: Sequence[Genome]) -> Genome:
        parent = parents[int(random.integers(len(parents)))]
        changed = random.random(len(parent)) < settings.probability
        pairs = zip(parent, ladders, changed, strict=True)
        return affordable([int(random.choice(own)) if new else old for old, own, new in pairs])

    def crossed(parents: Sequence[Genome]) -> Genome:
        one, other = (parents[int(i)] for i in random.integers(len(parents), size=2))
        taken = random.random(len(one)) < 0.5
        return affordable([a if t else b for a, b, t in zip(one, other, taken, strict=True)])

    def filled(population: list[Genome], count: int, make: Callable[[], Genome]) -> list[Genome]:
        for _ in range(ATTEMPTS * max(0, count - len(population))):
            if len(population) == count:
                break
            made = make()
            if made not in errors and made not in population:
                population.append(made)
        return population

    population = filled([usual], settings.population, fresh)
    for _ in range(settings.generations):
        errors |= {genome: fitness(genome) for genome in population}
        best = sorted(errors, key=errors.__getitem__)[: settings.parents]
        population = filled([], settings.mutation, lambda best=best: mutated(best))  # type: ignore[misc]
        more = len(population) + settings.crossover
        population = filled(population, more, lambda best=best: crossed(best))  # type: ignore[misc]
        population = filled(population, settings.population, fresh)
    return errors | {genome: fitness(genome) for genome in population}


class _TimeIsOver(Exception):  # noqa: N818 - no error: it leaves the search
    """Raised where no further set can be measured in time."""


@dataclass(frozen=True)
class Evolution:
    """Searches the group sizes of a network's layers.

    Attributes:
        settings: of the search.
        network: in float, left as it was.
        sample: final latents of some images in so many steps, always the same.
        attention: formats of q, k and v.
        work: where layers are, and what was measured.
        seed: of every random choice.
        reporter: progress.
        left: seconds that the search may still take: the best so far is kept when no set fits.
    """

    settings: Evolve
    network: Network
    sample: Callable[[int], torch.Tensor]
    attention: Mapping[str, str]
    work: Work
    seed: int
    reporter: Reporter
    left: Callable[[], float] = lambda: math.inf

    def run(self, made: Mapping[str, Sequence[Made]]) -> tuple[Set, tuple[Compared, ...]]:
        """The best set, and how it compares with the usual one.

        Args:
            made: all that was rounded of each layer, its usual precision first.
        """
        of_size = [{row.group_size: row for row in _alike(rows)} for rows in made.values()]
        usual = tuple(rows[0].group_size for rows in made.values())
        if all(len(own) == 1 for own in of_size):
            return first(made), ()
        known: dict[str, float] = self.work.load(_MEASURED) or {}
        settings = self.settings
        count = settings.population * (1 + settings.generations)
        errors: dict[Genome, float] = {}
        times: list[float] = []
        with self.reporter.stage("searching group sizes", count, "sets") as advance:
            exact = self._latents()

            def fitness(genome: Genome) -> float:
                key = " ".join(map(str, genome))
                timed = key not in known
                if timed:
                    if errors and self.left() < max(times, default=0.0):
                        raise _TimeIsOver
                    start = time.monotonic()
                    chosen = (own[size] for own, size in zip(of_size, genome, strict=True))
                    state = load(self.work, dict(zip(made, chosen, strict=True)))
                    quantized = QuantizedState(state, attention=self.attention)
                    with simulated(self.network.module, quantized):
                        known[key] = float((self._latents() - exact).square().mean())
                    self.work.save(_MEASURED, known)
                    times.append(time.monotonic() - start)
                errors[genome] = known[key]
                advance(1, timed=timed)
                return known[key]

            try:
                evolve([list(own) for own in of_size], usual, settings, self.seed, fitness)
            except _TimeIsOver:
                self.reporter.note(
                    f"group sizes: the time was over after {len(errors)} of up to {count} sets; the "
                    "best of them is kept"
                )
        best = min(errors, key=errors.__getitem__)
        if best == usual:
            self.reporter.note(
                f"of {len(errors)} sets of group sizes none has a smaller error than the request's own, "
                "which is kept"
            )
        table = {USUAL: errors[usual], EVOLVED: min(errors.values())}
        taken = {n: own[s] for n, own, s in zip(made, of_size, best, strict=True)}
        return taken, comparison(table, USUAL if best == usual else EVOLVED)

    def _latents(self) -> torch.Tensor:
        return host(self.sample(self.settings.steps)).double()


def _alike(rows: Sequence[Made]) -> list[Made]:
    """Those that differ from the first in group size alone; the first of a size goes last."""
    usual = rows[0]
    return [
        row
        for row in reversed(rows)
        if (row.format, row.input_ops) == (usual.format, usual.input_ops)
    ]
