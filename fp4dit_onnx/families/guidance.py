"""Guidance: how a pipeline follows its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Guidance", "Guided", "led"]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, or its substitute.

    Attributes:
        kind: ``cfg`` calls the transformer with the condition and without it in one batch;
            ``embedded`` tells the transformer how much; ``none`` does neither.
        negative_first: of ``cfg``, whether the rows without the condition precede the others.
        refusal: why there is no negative prompt; empty where there may be one.
        added: to the pipeline's weight, where it is that of ``c - u`` on top of c.
    """

    kind: Literal["cfg", "embedded", "none"] = "cfg"
    negative_first: bool = True
    refusal: str = ""
    added: float = 0.0

    def doubles(self, weight: float) -> bool:
        """Whether a batch has each image twice: a weight of at most 1 needs no comparison."""
        return self.kind == "cfg" and weight + self.added > 1

    def halves(self, rows: Any) -> tuple[Any, Any]:
        """The rows without the condition and those with it, of an array or tensor [2 B, ...]."""
        count = len(rows) // 2
        first, second = rows[:count], rows[count:]
        return (first, second) if self.negative_first else (second, first)

    def combined(self, rows: Any, weight: float) -> Any:
        """``u + weight (c - u)`` of both halves [2 B, ...], [B, ...]; what is not doubled stays."""
        if not self.doubles(weight):
            return rows
        return led(*self.halves(rows), weight + self.added)


def led(without: Any, given: Any, weight: float) -> Any:
    """``u + weight (c - u)`` of both halves, arrays or tensors [B, ...]."""
    return without + weight * (given - without)


@dataclass(frozen=True)
class Guided:
    """A guidance with its weight.

    Attributes:
        guidance: how.
        asked: how much, as pipelines are told.
    """

    guidance: Guidance = Guidance()
    asked: float = 1.0

    @property
    def weight(self) -> float:
        """Of ``c - u`` on top of u."""
        return self.asked + self.guidance.added

    @property
    def paired(self) -> bool:
        """See `Guidance.doubles`."""
        return self.guidance.doubles(self.asked)

    def halves(self, rows: Any) -> tuple[Any, Any]:
        """See `Guidance.halves`."""
        return self.guidance.halves(rows)

    def combined(self, rows: Any) -> Any:
        """See `Guidance.combined`."""
        return self.guidance.combined(rows, self.asked)
