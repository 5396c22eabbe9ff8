"""Budget: group sizes that each layer may have, for an evolutionary search over the whole network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.spec import LayerSpec, PerGroup, TensorSpec, whole_group
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["Evolve"]

NARROW = 4
"""Bits of the weights that are searched."""


@dataclass(frozen=True)
class Evolve:
    """Q-DiT's automatic granularity allocation (arXiv 2406.17343): `calibration.evolution` searches.

    Each layer with 4-bit weights is rounded in groups of every size. A token's activations share scales
    in groups of the same size, where they have scales of groups at all.

    Attributes:
        groups: sizes, with spaces between; a layer's whole row where it is shorter.
        mean: the mean over layers of the sizes is at least that, or that of the request's own sizes
            where narrow layers make that smaller: no more groups than with this size everywhere.
        generations: after the first.
        population: of each generation at most; what was measured before is not measured again.
        parents: best sets of group sizes, of which others are made.
        mutation: sets of a generation that are a parent with some layers changed.
        crossover: sets that take each layer from one of two parents. The rest is random.
        probability: with which a mutation changes a layer.
        steps: denoising steps of the images whose final latents are compared.
    """

    kind: ClassVar[str] = "budget"
    needs: ClassVar[str] = MOMENTS
    iterations: ClassVar[int] = 0
    groups: str = "32 64 128 192 288"
    mean: float = 128.0
    generations: int = 10
    population: int = 50
    parents: int = 10
    mutation: int = 25
    crossover: int = 25
    probability: float = 0.1
    steps: int = 10

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("population", "parents", "steps"):
            whole(f"evolve.{name}", getattr(self, name), 1)
        for name in ("generations", "mutation", "crossover"):
            whole(f"evolve.{name}", getattr(self, name), 0)
        real("evolve.mean", self.mean, 0)
        real("evolve.probability", self.probability, 0, 1)
        for size in self.groups.split():
            if not (size.isdecimal() and int(size) and int(size) % 8 == 0):
                raise UsageError(f"evolve.groups: {size!r}: expected positive multiples of 8")

    def precisions(self, spec: LayerSpec, k: int, width: int | None) -> tuple[TensorSpec, ...]:
        """What the weight of a layer may be, its own specification first, each once.

        Args:
            spec: of the layer.
            k: inputs of the layer.
            width: of each of the tensors that they are made of; None for one.
        """
        if spec.weight_format.bits > NARROW:
            return ()
        asked = [min(int(size), width or k) for size in self.groups.split()]
        sizes = asked if width is None else [whole_group(size, width) for size in asked]
        made = (replace(spec.weight, granularity=PerGroup(size)) for size in sizes)
        return tuple(dict.fromkeys((spec.weight, *made)))

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts as they are; each was also rounded in every group size that it may have."""
        for draft in drafts.values():
            for weight in draft.precisions:
                spec = replace(draft.spec, weight=weight)
                if spec.input is not None and spec.activation_group_size is not None:
                    assert isinstance(weight.granularity, PerGroup)
                    given = TensorSpec.of_activations(spec.input.format, weight.granularity.size)
                    spec = replace(spec, input=given)
                evidence.rounded(replace(draft, spec=spec))
        return drafts
