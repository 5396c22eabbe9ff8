"""Which layer gets which precision: greedy, the most error saved per byte first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

__all__ = ["Allocation", "Option", "frontier"]

Key = TypeVar("Key")


@dataclass(frozen=True)
class Option(Generic[Key]):
    """One way to store a layer.

    Attributes:
        key: what it is.
        bytes: that it takes.
        error: what it adds to the network's error, expected.
    """

    key: Key
    bytes: int
    error: float


def frontier(options: Iterable[Option[Key]]) -> list[Option[Key]]:
    """The options on the lower convex hull of (bytes, error), the smallest first.

    From one to the next bytes rise, errors fall, and each byte saves less than those before.
    """
    kept: list[Option[Key]] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.error)):
        if kept and option.error >= kept[-1].error:
            continue
        while len(kept) > 1 and _saved(kept[-2], kept[-1]) <= _saved(kept[-1], option):
            kept.pop()
        kept.append(option)
    return kept


def _saved(small: Option[Key], large: Option[Key]) -> float:
    """Error that each byte more saves."""
    return (small.error - large.error) / (large.bytes - small.bytes)


class Allocation(Generic[Key]):
    """The layers of a network, each with its options.

    Args:
        layers: options by layer, one or more each.
    """

    def __init__(self, layers: Mapping[str, Sequence[Option[Key]]]) -> None:
        hulls = {name: frontier(options) for name, options in layers.items()}
        self.smallest = {name: hull[0] for name, hull in hulls.items()}
        steps = [
            (_saved(small, large), name, large)
            for name, hull in hulls.items()
            for small, large in pairwise(hull)
        ]
        # Steady, and steps of one layer save less each: they stay in their order.
        steps.sort(key=lambda step: -step[0])
        self.steps = [(name, option) for _, name, option in steps]

    def after(self, count: int) -> dict[str, Option[Key]]:
        """Every layer's option once the first `count` steps are made."""
        return {**self.smallest, **dict(self.steps[:count])}

    def within(self, limit: int) -> dict[str, Option[Key]] | None:
        """The options that take at most `limit` bytes in all; None if the smallest take more.

        A step that does not fit any more is left out, and smaller ones after it are made.
        """
        chosen, free = dict(self.smallest), limit - sum(o.bytes for o in self.smallest.values())
        if free < 0:
            return None
        full: set[str] = set()
        for name, option in self.steps:
            more = option.bytes - chosen[name].bytes
            if name in full or more > free:
                full.add(name)
                continue
            chosen[name], free = option, free - more
        return chosen
