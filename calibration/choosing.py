"""Formats and transforms chosen per layer, and compared with each uniform choice at the end.

A layer's choice looks at that layer alone. What counts is the network, so the chosen set and every
set that makes one choice for all layers run on the float sampler's trajectory, activations
quantized, and the set of the least guided error is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fp4dit_onnx.bundle.manifest import Compared
from fp4dit_onnx.calibration.applying import Alternatives
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.layer_inputs import UnitInputs
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import Moments
from fp4dit_onnx.calibration.samples import Samples
from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.system.progress import Reporter

__all__ = ["CHOSEN", "Choosing", "output_channels"]

CHOSEN = "each layer's own choice"
COMPARED_PAIRS = 64
"""Pairs of samples on which sets are compared."""
Layers = dict[str, QuantizedLayer]


def output_channels(network: torch.nn.Module, call: tuple[Any, ...], kwargs: Any) -> torch.Tensor:
    """The network's prediction [B, C, ...] without the variance that some give behind it."""
    latents = call[0] if call else kwargs["hidden_states"]
    output: torch.Tensor = network(*call, **kwargs)[0]
    return output[:, : latents.shape[1]]


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
        work: where finished units go.
        chunk: samples that are run at a time.
        reporter: progress.
    """

    network: Network
    specs: Mapping[str, LayerSpec]
    method: Method
    moments: Moments
    samples: Samples
    guidance: Guided
    attention: Mapping[str, str]
    candidates: Mapping[str, Sequence[str]]
    work: Work
    chunk: int
    reporter: Reporter

    def run(self, units: Sequence[Unit]) -> tuple[Layers, tuple[Compared, ...]]:
        """The layers of the best set, and what was compared; finished units are read from disk."""
        made: dict[str, list[_Made]] = {}
        with self.reporter.stage("choosing and rounding", len(units), "blocks") as advance:
            for unit in units:
                made |= self._unit(unit)
                advance(1, unit.name)
        sets = {CHOSEN: {name: rows[0] for name, rows in made.items()}, **self._uniform(made)}
        if len(sets) == 1:
            return self._load(sets[CHOSEN]), ()
        errors = self._errors(sets)
        best = min(errors, key=lambda label: errors[label])
        unit_of_error = max(errors[CHOSEN], 1e-30)
        table = [Compared(n, error / unit_of_error, n == best) for n, error in errors.items()]
        return self._load(sets[best]), tuple(table)

    def _uniform(self, made: Mapping[str, Sequence[_Made]]) -> dict[str, dict[str, _Made]]:
        """A set for each choice that all layers which have it can share; others keep their own."""
        known = {row.format for rows in made.values() for row in rows}
        every = {row.input_ops for rows in made.values() for row in rows}
        formats = dict.fromkeys(f for name in made for f in self.candidates.get(name, ()))
        rotates = any(stage.kind == "transform" for stage in self.method.stages)
        shared: list[str | None] = [*(f for f in formats if f in known)]
        sets = {}
        for fmt in shared or [None]:
            for input_ops in sorted(every, key=lambda given: (len(given), repr(given))):
                turned = ", ".join(map(str, input_ops)) or "not rotated"
                if label := ", ".join([*([fmt] if fmt else []), *([turned] if rotates else [])]):
                    sets[label] = {
                        name: self._matching(name, rows, fmt, input_ops)
                        for name, rows in made.items()
                    }
        return sets

    def _matching(
        self,
        name: str,
        rows: Sequence[_Made],
        fmt: str | None,
        input_ops: tuple[Transform, ...],
    ) -> _Made:
        """What was made of a layer in the format, if it has that choice, and with these transforms."""
        free = not self.candidates.get(name)
        same = (r for r in rows if r.input_ops == input_ops and (free or r.format == fmt))
        return next(same, rows[0])

    def _unit(self, unit: Unit) -> dict[str, list[_Made]]:
        """Of each layer of a unit, what was chosen, then all that was made; it is on disk then."""
        if not unit.layers:
            return {}
        place = f"{unit.name}@choices"
        known = self.work.finished(place)
        if known is None:
            alternatives = Alternatives(self.method.stages, UnitInputs(self.moments, self.network))
            best = alternatives.best({name: self._draft(name) for name in unit.layers})
            drafts = [*best.values(), *alternatives.made.values()]
            named = {f"{i}@{draft.name}": draft.layer() for i, draft in enumerate(drafts)}
            kept = {key: replace(layer, name=key) for key, layer in named.items()}
            known = kept, _mean_error(best)
            self.work.finish(place, *known)
        found: dict[str, list[_Made]] = {name: [] for name in unit.layers}
        for key in sorted(known[0], key=lambda key: int(key.partition("@")[0])):
            spec = known[0][key].spec
            row = _Made(place, key, spec.weight.format, spec.input_ops)
            found[key.partition("@")[2]].append(row)
        return found

    def _load(self, chosen: Mapping[str, _Made]) -> Layers:
        """The layers of a set: one at a time is in memory."""
        layers: Layers = {}
        for place in dict.fromkeys(row.place for row in chosen.values()):
            known = self.work.finished(place)
            assert known is not None, place
            layers |= {
                name: replace(known[0][row.key], name=name)
                for name, row in chosen.items()
                if row.place == place
            }
        return {name: layers[name] for name in chosen}

    def _draft(self, name: str) -> Draft:
        weight = self.network.tensor(f"{name}.weight").float()
        return Draft(name, weight, self.specs[name], tuple(self.candidates.get(name, ())))

    @torch.no_grad()
    def _errors(self, sets: Mapping[str, Mapping[str, _Made]]) -> dict[str, float]:
        """Guided error of the network under each set, on the same samples."""
        samples = self.samples
        count = min(samples.pairs, COMPARED_PAIRS)
        pairs = torch.from_numpy(np.linspace(0, samples.pairs - 1, count).round().astype(int))
        batches = torch.split(pairs, self.chunk // 2 or 1)
        right = [self._prediction(batch) for batch in batches]
        errors = {}
        with self.reporter.stage("comparing choices", len(sets), "sets") as advance:
            for label, chosen in sets.items():
                state = QuantizedState(self._load(chosen), attention=self.attention)
                with simulated(self.network.module, state):
                    both = zip(batches, right, strict=True)
                    parts = [self._error(b, self._prediction(b) - r) for b, r in both]
                errors[label] = sum(parts) / float(samples.weight[pairs].sum())
                advance(1, label)
        return errors

    def _prediction(self, pairs: torch.Tensor) -> torch.Tensor:
        return output_channels(self.network.module, *self.samples.take(self.samples.twins(pairs)))

    def _error(self, pairs: torch.Tensor, difference: torch.Tensor) -> float:
        """Weighted sum over pairs of the guided prediction's mean squared error."""
        guided = self.guidance.combined(difference).flatten(1).square().mean(dim=1)
        return float((self.samples.weight[pairs] * guided).sum())


@dataclass(frozen=True)
class _Made:
    """A rounded layer in a file of the work folder.

    Attributes:
        place: name of the file.
        key: of the layer in it.
        format: of its weight.
        input_ops: see `LayerSpec`.
    """

    place: str
    key: str
    format: str
    input_ops: tuple[Transform, ...]


def _mean_error(drafts: Drafts) -> float:
    errors = [draft.error for draft in drafts.values() if draft.error is not None]
    return sum(errors) / len(errors) if errors else 1.0
