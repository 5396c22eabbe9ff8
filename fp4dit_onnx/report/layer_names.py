"""Where a layer stands in its network, read off its torch name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Blocks", "Place", "arranged", "kind_of"]

_IN_A_LIST = re.compile(r"(.+?)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Place:
    """A layer in a list of blocks: ``transformer_blocks.3.ff.net.2`` is ff.net.2 of block 3."""

    blocks: str
    block: int
    linear: str


@dataclass(frozen=True)
class Blocks:
    """A list of equal blocks.

    Attributes:
        name: of the list, such as ``transformer_blocks``.
        numbers: of its blocks, ascending.
        linears: names within a block, in order of appearance.
    """

    name: str
    numbers: tuple[int, ...]
    linears: tuple[str, ...]

    def layer(self, number: int, linear: str) -> str:
        """The torch name."""
        return f"{self.name}.{number}.{linear}"


def arranged(names: Iterable[str]) -> tuple[list[Blocks], list[str]]:
    """Lists of blocks among the layers, and the layers that stand in none.

    A numbered module counts as a block if there are several of its list, or if it has several
    linears.
    """
    all_names = list(names)
    places: dict[str, list[Place]] = {}
    for name in all_names:
        if match := _IN_A_LIST.fullmatch(name):
            places.setdefault(match[1], []).append(Place(match[1], int(match[2]), match[3]))
    found = {prefix: _blocks(prefix, members) for prefix, members in places.items()}
    lists = [b for b in found.values() if len(b.numbers) > 1 or len(b.linears) > 1]
    inside = {b.layer(number, one) for b in lists for number in b.numbers for one in b.linears}
    return lists, [name for name in all_names if name not in inside]


def _blocks(prefix: str, members: list[Place]) -> Blocks:
    numbers = tuple(sorted({place.block for place in members}))
    return Blocks(prefix, numbers, tuple(dict.fromkeys(place.linear for place in members)))


def kind_of(names: Iterable[str]) -> dict[str, str]:
    """Each name -> itself, with ``*`` for the block's number where it stands in a list of blocks."""
    all_names = list(names)
    found = {name: name for name in all_names}
    for blocks in arranged(all_names)[0]:
        for number in blocks.numbers:
            for linear in blocks.linears:
                name = blocks.layer(number, linear)
                if name in found:
                    found[name] = f"{blocks.name}.*.{linear}"
    return found
