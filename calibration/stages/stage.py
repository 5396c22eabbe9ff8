"""What a stage of a method is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts
    from fp4dit_onnx.calibration.evidence import FloatUnit
    from fp4dit_onnx.calibration.layer_inputs import LayerInputs

__all__ = [
    "INPUTS",
    "KINDS",
    "MAXIMA",
    "MOMENTS",
    "WEIGHTS",
    "Evidence",
    "LayerStage",
    "Stage",
    "Together",
    "by_reader",
]

KINDS = ("transform", "branch", "choice", "budget", "tuning", "range", "rounding", "correction")
"""Kinds of stages, in the order of a method; it has one range and one rounding."""

WEIGHTS, MOMENTS, MAXIMA, INPUTS = "weights", "moments", "maxima", "inputs"
"""What a stage may look at: weights alone; second moments and some rows of what layers receive, from
one pass of the float sampler; these and the largest magnitudes of every sample; all that a unit receives
and gives, on recorded samples."""


@dataclass(frozen=True)
class Evidence:
    """What stages may look at beside the layers themselves.

    Attributes:
        rounded: a draft with the method's own scales and codes; to nearest where rounding is trained.
        chosen: a draft after the method's branch and choices, rounded.
        inputs: second moments and rows of what a draft's layer receives; None unless a stage of the
            method asks for ``moments``.
        unit: the float block or linear that holds the layers, and what it receives and should
            give; None unless a stage of the method asks for ``inputs``.
        seed: of random choices; no other state decides them.
        on_step: to be called after each of a stage's iterations, with the error so far in units of
            nearest rounding's.
        tried: a draft with the method's scales, to nearest; nothing is kept of it. None where layers
            are rounded by their weights alone.
    """

    rounded: Callable[[Draft], Draft]
    chosen: Callable[[Draft], Draft] | None = None
    inputs: Callable[[Draft], LayerInputs] | None = None
    unit: FloatUnit | None = None
    seed: int = 0
    on_step: Callable[[float], None] = lambda error: None
    tried: Callable[[Draft], Draft] | None = None


class Stage(Protocol):
    """A frozen dataclass: its fields are its settings, and its keys in TOML.

    Attributes:
        kind: one of `KINDS`.
        needs: `WEIGHTS`, `MOMENTS`, `MAXIMA` or `INPUTS`: all but the first need prompts.
    """

    kind: ClassVar[str]
    needs: ClassVar[str]

    @property
    def iterations(self) -> int:
        """Of its longest loop, for progress; 0 for none."""
        ...

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The layers of one unit, one step further; without side effects.

        Raises:
            UsageError: a layer that it cannot handle, by name.
        """
        ...


def by_reader(drafts: Iterable[Draft], evidence: Evidence) -> Sequence[Sequence[Draft]]:
    """Drafts of a unit in groups that read one tensor: a transform of it is one operator."""
    assert evidence.inputs is not None
    groups: dict[str, list[Draft]] = {}
    for draft in drafts:
        groups.setdefault(evidence.inputs(draft).reader, []).append(draft)
    return [*groups.values()]


class LayerStage:
    """A stage that looks at each layer by itself."""

    needs: ClassVar[str] = WEIGHTS
    iterations: ClassVar[int] = 0

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """See `Stage`."""
        return {name: self.layer(draft, evidence) for name, draft in drafts.items()}

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """One layer, one step further."""
        raise NotImplementedError


class Together:
    """Linears of a unit that read one tensor get one transform or branch, by the rule of the stage."""

    kind: ClassVar[str] = "transform"
    needs: ClassVar[str] = MOMENTS

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts with what is done to their inputs, and the weights that make up for it."""
        found = dict(drafts)
        for members in by_reader(filter(self.takes, drafts.values()), evidence):
            found |= self.group(members, evidence)
        return found

    def takes(self, draft: Draft) -> bool:
        """Whether a layer takes part; others are left alone."""
        return True

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """Those that read one tensor."""
        raise NotImplementedError
