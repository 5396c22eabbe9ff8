"""What a stage of a method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts
    from fp4dit_onnx.calibration.evidence import FloatUnit

__all__ = ["KINDS", "Evidence", "LayerStage", "Stage"]

KINDS = ("transform", "choice", "range", "rounding", "correction", "branch")
"""What a stage may do, in the order in which a method does it; it has one range and one rounding."""


@dataclass(frozen=True)
class Evidence:
    """What stages may look at beside the layers themselves.

    Attributes:
        nearest: rounds a draft to nearest under the method's own range.
        unit: the float block or linear that holds the layers, and what it receives and should
            give; None unless a stage of the method asks for ``inputs``.
        seed: of random choices; no other state decides them.
        on_step: to be called after each of a stage's iterations, with the error so far in units of
            nearest rounding's.
    """

    nearest: Callable[[Draft], Draft]
    unit: FloatUnit | None = None
    seed: int = 0
    on_step: Callable[[float], None] = lambda error: None


class Stage(Protocol):
    """A frozen dataclass: its fields are its settings, and its keys in TOML.

    Attributes:
        kind: one of `KINDS`.
        needs_inputs: whether it looks at what the unit receives and gives, so at prompts; otherwise
            at the weights alone.
    """

    kind: ClassVar[str]
    needs_inputs: ClassVar[bool]

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


class LayerStage:
    """A stage that looks at each layer by itself."""

    needs_inputs: ClassVar[bool] = False
    iterations: ClassVar[int] = 0

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """See `Stage`."""
        return {name: self.layer(draft, evidence) for name, draft in drafts.items()}

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """One layer, one step further."""
        raise NotImplementedError
