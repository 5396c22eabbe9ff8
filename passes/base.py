"""What a pass is: a callable from a graph, changed in place, to a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import onnx_graphsurgeon as gs

__all__ = ["Pass", "PassReport", "Skip", "rewrite_all"]

Match = TypeVar("Match")


@dataclass(frozen=True)
class Skip:
    """A place that a pass looked at and left alone.

    Attributes:
        name: of the node or layer.
        reason: why, with the value at fault.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What a pass did.

    Attributes:
        name: of the pass.
        rewritten: places changed.
        skipped: places that looked alike and were left, each with its reason.
    """

    name: str
    rewritten: int
    skipped: tuple[Skip, ...] = ()

    def plus(self, other: PassReport, renamed: Callable[[str], str]) -> PassReport:
        """Both together, the places of `other` under other names."""
        skipped = tuple(Skip(renamed(s.name), s.reason) for s in other.skipped)
        return PassReport(self.name, self.rewritten + other.rewritten, (*self.skipped, *skipped))


class Pass(Protocol):
    """A graph pass; running it a second time rewrites nothing."""

    @property
    def name(self) -> str:
        """Shown in reports."""

    def __call__(self, graph: gs.Graph) -> PassReport:
        """Change `graph` in place."""


def rewrite_all(
    graph: gs.Graph,
    name: str,
    found: Iterable[Match | Skip],
    rewrite: Callable[[gs.Graph, Match], None],
) -> PassReport:
    """Match everywhere, then rewrite every match, then drop what nothing reads any more.

    Args:
        graph: changed in place.
        name: of the pass.
        found: matches and skips; making one must not change the graph.
        rewrite: changes the graph at one match; earlier matches may be rewritten by then.
    """
    matches: list[Match] = []
    skipped: list[Skip] = []
    for item in found:
        if isinstance(item, Skip):
            skipped.append(item)
        else:
            matches.append(item)
    for match in matches:
        rewrite(graph, match)
    graph.cleanup().toposort()
    return PassReport(name, len(matches), tuple(skipped))
