"""A budget of bits or of quality, spent on the layers whose precision saves the most error per byte.

What a layer's weight adds to the network's error is taken to be ``s tr(E H E^T)``: E what rounding
changes, H the second moments of its inputs, s the layer's sensitivity. It is measured: the network
runs with this layer alone in its smallest precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fp4dit_onnx.bundle.calibration_notes import Compared, Spent
from fp4dit_onnx.calibration.allocation import Allocation, Option
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.calibration.trajectory import Trajectory
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.system.progress import Reporter

__all__ = ["ALLOCATED", "Made", "Sets", "Spending", "comparison", "first", "load"]

ALLOCATED = "bits where they save the most error"
_SENSITIVITIES = "sensitivities"
ROUNDING = 1e-3
"""Bytes: bits per weight may be a quotient, whose product with the weights is not quite whole."""


@dataclass(frozen=True)
class Made:
    """A rounded layer in a file of the work folder.

    Attributes:
        place: name of the file.
        key: of the layer in it.
        format: of its weight.
        group_size: of it.
        input_ops: see `LayerSpec`; without tensors, which are each layer's own.
        bytes: that it takes.
        loss: ``tr(E H E^T)``; 0 where there is no budget.
    """

    place: str
    key: str
    format: str
    group_size: int
    input_ops: tuple[Transform, ...]
    bytes: int
    loss: float


Sets = dict[str, dict[str, Sequence[Made]]]
"""Label -> layer -> what of it the set may have, its own choice first."""
Set = dict[str, Made]


def first(rows: Mapping[str, Sequence[Made]]) -> Set:
    """Each layer's own choice."""
    return {name: own[0] for name, own in rows.items()}


def load(work: Work, chosen: Mapping[str, Made]) -> dict[str, QuantizedLayer]:
    """The layers of a set; one file at a time is in memory."""
    layers: dict[str, QuantizedLayer] = {}
    for place in dict.fromkeys(row.place for row in chosen.values()):
        known = work.layers(place)
        layers |= {
            name: replace(known[row.key], name=name)
            for name, row in chosen.items()
            if row.place == place
        }
    return {name: layers[name] for name in chosen}


def comparison(errors: Mapping[str, float], taken: str) -> tuple[Compared, ...]:
    """What the manifest says of sets, in units of the first one's error."""
    unit = max(next(iter(errors.values())), 1e-30)
    return tuple(Compared(label, error / unit, label == taken) for label, error in errors.items())


@dataclass(frozen=True)
class Spending:
    """Spends a budget on the layers of a network.

    Attributes:
        budget: what is asked for.
        weights: how many there are, in all layers.
        work: where layers are.
        trajectory: on which sets are compared.
        probe: on which sensitivities are measured.
        attention: formats of q, k and v.
        reporter: progress.
    """

    budget: Budget
    weights: int
    work: Work
    trajectory: Trajectory
    probe: Trajectory
    attention: Mapping[str, str]
    reporter: Reporter

    def run(
        self, made: Mapping[str, Sequence[Made]], sets: Sets
    ) -> tuple[Set, tuple[Compared, ...], Spent]:
        """The best set that keeps the budget, what was compared, and what was reached.

        Args:
            made: all that was rounded of each layer, its own choice first.
            sets: see `Sets`.

        Raises:
            UsageError: no set keeps the budget.
        """
        sensitivity = self._sensitivities(made)

        def allocation(rows: Mapping[str, Sequence[Made]]) -> Allocation[Made]:
            return Allocation(
                {
                    name: [Option(r, r.bytes, sensitivity[name] * r.loss) for r in own]
                    for name, own in rows.items()
                }
            )

        turned = {
            n: [r for r in rows if r.input_ops == rows[0].input_ops] for n, rows in made.items()
        }
        allocated = allocation(turned)
        if self.budget.bits:
            others = {label: allocation(rows) for label, rows in sets.items()}
            best, errors = self._smallest_error({ALLOCATED: allocated, **others})
        else:
            usual = {label: first(rows) for label, rows in sets.items()}
            best, errors = self._fewest_bits(allocated, usual)
        label, chosen = best
        added = {name: sensitivity[name] * row.loss for name, row in chosen.items()}
        total = max(sum(added.values()), 1e-30)
        spent = Spent(
            target_bits=self.budget.bits or None,
            min_sqnr_db=self.budget.sqnr or None,
            least_bits=self._bits(_stored(allocated.smallest)),
            most_bits=self._bits(_stored(allocated.after(len(allocated.steps)))),
            bits_per_weight=self._bits(chosen),
            sqnr_db=self._sqnr_db(errors[label]),
            shares={name: error / total for name, error in added.items()},
        )
        return chosen, comparison(errors, label), spent

    def _bits(self, chosen: Mapping[str, Made]) -> float:
        return 8 * _bytes(chosen) / self.weights

    def _sqnr_db(self, error: float) -> float:
        return 10 * math.log10(max(self.trajectory.signal, 1e-30) / max(error, 1e-30))

    def _error(self, chosen: Mapping[str, Made]) -> float:
        state = QuantizedState(load(self.work, chosen), attention=self.attention)
        return self.trajectory.error(state)

    def _smallest_error(
        self, allocations: Mapping[str, Allocation[Made]]
    ) -> tuple[tuple[str, Set], dict[str, float]]:
        """The set of the least error among those that fit, each with the bits spent where they help."""
        limit = math.floor(self.budget.bits * self.weights / 8 + ROUNDING)
        within = {label: each.within(limit) for label, each in allocations.items()}
        sets = {label: _stored(options) for label, options in within.items() if options}
        if ALLOCATED not in sets:
            least = self._bits(_stored(allocations[ALLOCATED].smallest))
            raise UsageError(
                f"target {self.budget.bits:g} bits per weight: the smallest precisions take "
                f"{least:.3f}; ask for that or more"
            )
        errors = {}
        with self.reporter.stage("comparing choices", len(sets), "sets") as advance:
            for label, chosen in sets.items():
                errors[label] = self._error(chosen)
                advance(1, label)
        best = min(errors, key=lambda label: errors[label])
        return (best, sets[best]), errors

    def _fewest_bits(
        self, allocated: Allocation[Made], usual: Mapping[str, Set]
    ) -> tuple[tuple[str, Set], dict[str, float]]:
        """The smallest set that keeps the SQNR: where layers' steps first do, or one of `usual`."""
        low, high = -1, len(allocated.steps)
        known: dict[int, float] = {}
        runs = high.bit_length() + 1 + len(usual)
        with self.reporter.stage("looking for the fewest bits", runs, "sets") as advance:

            def keeps(count: int) -> bool:
                known[count] = self._error(_stored(allocated.after(count)))
                advance(1)
                return self._sqnr_db(known[count]) >= self.budget.sqnr

            if not keeps(high):
                raise UsageError(self._beyond(allocated, known[high]))
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if keeps(middle) else (middle, high)
            sets = {ALLOCATED: _stored(allocated.after(high))}
            errors = {ALLOCATED: known[high]}
            best = ALLOCATED
            for label, own in usual.items():
                if self._bits(own) < self._bits(sets[best]):
                    sets[label], errors[label] = own, self._error(own)
                    if self._sqnr_db(errors[label]) >= self.budget.sqnr:
                        best = label
                advance(1, label)
        return (best, sets[best]), errors

    def _beyond(self, allocated: Allocation[Made], error: float) -> str:
        smallest = _stored(allocated.smallest)
        largest = _stored(allocated.after(len(allocated.steps)))
        return (
            f"min SQNR {self.budget.sqnr:g} dB: with these activations the guided prediction keeps from "
            f"{self._sqnr_db(self._error(smallest)):.1f} dB at {self._bits(smallest):.3f} bits per "
            f"weight to {self._sqnr_db(error):.1f} dB at {self._bits(largest):.3f}; ask for less, or "
            "for more bits of activations, such as --bits w4a8"
        )

    def _sensitivities(self, made: Mapping[str, Sequence[Made]]) -> dict[str, float]:
        """The network's error per ``tr(E H E^T)`` of each layer; what is measured is kept on disk."""
        found: dict[str, float] = self.work.load(_SENSITIVITIES) or {}
        with self.reporter.stage("measuring sensitivities", len(made), "layers") as advance:
            for name, rows in made.items():
                if name not in found:
                    found[name] = self._sensitivity(name, rows)
                    self.work.save(_SENSITIVITIES, found)
                advance(1, name)
        return found

    def _sensitivity(self, name: str, rows: Iterable[Made]) -> float:
        smallest = min(rows, key=lambda row: (row.bytes, row.loss))
        if smallest.loss <= 0:
            return 0.0
        (layer,) = load(self.work, {name: smallest}).values()
        alone = replace(layer, spec=replace(layer.spec, input=None))
        return self.probe.error(QuantizedState({name: alone})) / smallest.loss


def _bytes(chosen: Mapping[str, Made]) -> int:
    return sum(row.bytes for row in chosen.values())


def _stored(options: Mapping[str, Option[Made]]) -> Set:
    """What the options of layers stand for."""
    return {name: option.key for name, option in options.items()}
