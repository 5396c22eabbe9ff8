"""Formats and rotations chosen per layer, and compared with each uniform choice at the end.

A layer's choice looks at that layer alone. What counts is the network, so the chosen set and every
set that makes one choice for all layers run on the float sampler's trajectory, activations
quantized, and the set of the least guided error is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fp4dit_onnx.bundle.manifest import Compared
from fp4dit_onnx.calibration.applying import Alternatives
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.evidence import Objective
from fp4dit_onnx.calibration.layer_inputs import UnitInputs
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import Moments
from fp4dit_onnx.calibration.samples import Array, Samples
from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.system.progress import Reporter

__all__ = ["CHOSEN", "Choosing", "output_channels"]

CHOSEN = "each layer's own choice"
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
        own: Layers = {}
        made: dict[str, list[QuantizedLayer]] = {}
        with self.reporter.stage("choosing and rounding", len(units), "blocks") as advance:
            for unit in units:
                for name, (chosen, others) in self._unit(unit).items():
                    own[name], made[name] = chosen, others
                advance(1, unit.name)
        sets = {CHOSEN: own, **self._uniform(own, made)}
        if len(sets) == 1:
            return own, ()
        errors = self._errors(sets)
        best = min(errors, key=lambda label: errors[label])
        unit_of_error = max(errors[CHOSEN], 1e-30)
        table = [Compared(n, error / unit_of_error, n == best) for n, error in errors.items()]
        return sets[best], tuple(table)

    def _uniform(
        self, own: Layers, made: Mapping[str, Sequence[QuantizedLayer]]
    ) -> dict[str, Layers]:
        """A set for each choice that all layers which have it can share; others keep their own."""
        every = [_choice(layer) for layers in made.values() for layer in layers]
        formats = dict.fromkeys(f for name in made for f in self.candidates.get(name, ()))
        known = {fmt for fmt, _ in every}
        rotations = dict.fromkeys(rotation for _, rotation in sorted(every, key=str))
        sets: dict[str, Layers] = {}
        for fmt in [f for f in formats if f in known] or [None]:
            for rotation in rotations:
                wanted = [
                    *([fmt] if fmt else []),
                    *([f"Hadamard {rotation}" if rotation else "not rotated"] * self._rotates),
                ]
                if wanted:
                    sets[", ".join(wanted)] = {
                        name: self._matching(name, fmt, rotation, made[name]) or layer
                        for name, layer in own.items()
                    }
        return sets

    @property
    def _rotates(self) -> bool:
        return any(stage.kind == "transform" for stage in self.method.stages)

    def _matching(
        self, name: str, fmt: str | None, rotation: int | None, made: Sequence[QuantizedLayer]
    ) -> QuantizedLayer | None:
        """What was made of a layer in the format, if it has that choice, and with the rotation."""
        free = not self.candidates.get(name)
        return next(
            (y for y in made if _choice(y)[1] == rotation and (free or _choice(y)[0] == fmt)), None
        )

    def _unit(self, unit: Unit) -> dict[str, tuple[QuantizedLayer, list[QuantizedLayer]]]:
        """Of each layer of a unit, what was chosen and all that was made."""
        place = f"{unit.name}@choices"
        known = self.work.finished(place)
        if known is None:
            alternatives = Alternatives(self.method.stages, UnitInputs(self.moments, self.network))
            best = alternatives.best({name: self._draft(name) for name in unit.layers})
            named = {f"0@{name}": draft.layer() for name, draft in best.items()}
            for number, draft in enumerate(alternatives.made.values()):
                named[f"{number + 1}@{draft.name}"] = draft.layer()
            kept = {key: replace(layer, name=key) for key, layer in named.items()}
            self.work.finish(place, kept, _mean_error(best))
            known = kept, 1.0
        found: dict[str, list[QuantizedLayer]] = {name: [] for name in unit.layers}
        for key in sorted(known[0], key=lambda key: int(key.partition("@")[0])):
            name = key.partition("@")[2]
            found[name].append(replace(known[0][key], name=name))
        return {name: (layers[0], layers[1:]) for name, layers in found.items()}

    def _draft(self, name: str) -> Draft:
        weight = self.network.tensor(f"{name}.weight").float()
        return Draft(name, weight, self.specs[name], tuple(self.candidates.get(name, ())))

    @torch.no_grad()
    def _errors(self, sets: Mapping[str, Layers]) -> dict[str, float]:
        """Guided error of the network under each set."""
        samples = self.samples
        target = Array(self.work.clear("prediction.npy"))

        def predicted(*call: Any, **kwargs: Any) -> torch.Tensor:
            return output_channels(self.network.module, call, kwargs)

        for at in samples.chunks(self.chunk):
            call, kwargs = samples.take(at)
            output = predicted(*call, **kwargs)
            if at.start == 0:
                target.create(samples.count, output)
            target.write(at.start, output)
        objective = Objective(samples, {0: target}, self.guidance, 1.0)
        errors = {}
        with self.reporter.stage("comparing choices", len(sets), "sets") as advance:
            for label, layers in sets.items():
                with simulated(
                    self.network.module, QuantizedState(layers, attention=self.attention)
                ):
                    total = objective.total(predicted, self.chunk // 2 or 1)
                errors[label] = float(total[0, -1])
                advance(1, label)
        return errors


def _choice(layer: QuantizedLayer) -> tuple[str, int | None]:
    """Weight format and rotation."""
    return layer.spec.weight.format, layer.spec.hadamard


def _mean_error(drafts: Drafts) -> float:
    errors = [draft.error for draft in drafts.values() if draft.error is not None]
    return sum(errors) / len(errors) if errors else 1.0
