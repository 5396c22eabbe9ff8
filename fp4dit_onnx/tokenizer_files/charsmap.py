"""SentencePiece's compiled rules of normalization, as normalizers of the tokenizers package.

The rules replace characters, and sequences of them such as e and U+0301, from left to right, the
longest first. `normalizers.Precompiled` reads the same bytes, but looks at what a reader sees as
one character, and takes the shortest rule: of e, U+0302, U+0301 it loses the last. So characters
are set apart first. The rules for sequences are what NFC makes of their characters' replacements;
that is checked, and NFC is given those sequences alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

import numpy as np
from tokenizers import Regex, normalizers

__all__ = ["MARKS", "charsmap_normalizers", "read_charsmap", "replaced"]

MARKS = "\ufff0-\ufff7"
"""Characters that no text has and that stand alone, as a regular expression's class."""
_APART, _TOGETHER = "\ufff0", "\ufff1"
_MOST_OTHERS = 1000
_MOST_NODES = 2**20
"""Of a trie; parts of it may be shared. That of T5 has 300,000."""
_LABELS = np.arange(1, 256)
_CHUNK = 4096


@lru_cache(maxsize=4)
def read_charsmap(data: bytes) -> Mapping[str, str]:
    """What replaces what.

    Args:
        data: bytes of a double-array trie, as a 32-bit number; the trie, of 32-bit units; what it
            points to, each text ended by 0.

    Raises:
        ValueError: cut off, or not so.
    """
    size = int.from_bytes(data[:4], "little")
    if size % 4 or 4 + size > len(data) or not size:
        raise ValueError("its rules are cut off")
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    texts = data[4 + size :]
    texts.decode()
    rules: dict[str, str] = {}
    places, keys, nodes = _offsets(units[:1]), [b""], 0
    while keys:
        next_places, next_keys = [], []
        for start in range(0, len(keys), _CHUNK):
            some = places[start : start + _CHUNK, None] ^ _LABELS  # [nodes, 255]
            found = units[np.minimum(some, len(units) - 1)]
            # A leaf has the highest bit.
            rows, labels = np.nonzero((found & 0x800000FF) == _LABELS)
            children, units_of = some[rows, labels], found[rows, labels]
            inner = children ^ _offsets(units_of)
            names = [keys[start + r] + bytes((b,)) for r, b in zip(rows, labels + 1, strict=True)]
            for i in np.nonzero(units_of & 0x100)[0]:
                value = int(units[inner[i]] & 0x7FFFFFFF)
                rules[names[i].decode()] = texts[value : texts.index(b"\0", value)].decode()
            next_places.append(inner)
            next_keys += names
            nodes += len(names)
            if nodes > _MOST_NODES:
                raise ValueError("its rules have no end")
        places, keys = np.concatenate(next_places), next_keys
    return rules


def _offsets(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & 0x200) >> 6)


def replaced(rules: Mapping[str, str], text: str) -> str:
    """`text` with each character replaced by itself."""
    return "".join(rules.get(character, character) for character in text)


@lru_cache(maxsize=4)
def charsmap_normalizers(data: bytes) -> tuple[normalizers.Normalizer, ...]:
    """Normalizers that do what the compiled rules say.

    Raises:
        ValueError: the rules are damaged, or cannot be said so.
    """
    if not data:
        return ()
    rules = read_charsmap(data)
    sequences = [source for source in rules if len(source) > 1]
    parts = "".join(f"{replaced(rules, source)}\n" for source in sequences)
    composed = normalizers.NFC().normalize_str(parts).split("\n")[:-1]
    # Letters that are younger than the package's tables, or rules of one's own.
    others = {
        source: rules[source]
        for source, found in zip(sequences, composed, strict=True)
        if found != rules[source]
    }
    sequences = [source for source in sequences if source not in others]
    _check(others, sequences)
    found: list[normalizers.Normalizer] = [
        normalizers.Replace(source, others[source])
        for source in sorted(others, key=len, reverse=True)
    ]
    if sequences:
        inside = "|".join(
            f"(?<={''.join(map(_class, kinds[:-1]))})(?={_class(kinds[-1])})"
            for kinds in _products({tuple(source) for source in sequences})
        )
        found.append(normalizers.Replace(Regex(inside), _TOGETHER))
    between = f"(?<=[^{_TOGETHER}])(?=[^{_TOGETHER}])"
    found += [normalizers.Replace(Regex(between), _APART), normalizers.Precompiled(data)]
    if sequences:
        found += [normalizers.Replace(_TOGETHER, ""), normalizers.NFC()]
    return (*found, normalizers.Replace(_APART, ""))


def _check(others: Collection[str], sequences: Collection[str]) -> None:
    """Raise ValueError where the places within sequences cannot be told by what is before them."""
    known, first = set(sequences), {source[0] for source in sequences}
    if (
        len(others) > _MOST_OTHERS
        or any(len(source) > 2 and source[:-1] not in known for source in sequences)
        or any(not first.isdisjoint(source[1:]) for source in sequences)
    ):
        raise ValueError("its rules of normalization are not those of NFKC")


def _products(sources: set[tuple[str, ...]]) -> list[tuple[frozenset[str], ...]]:
    """Sets of characters by place, of which `sources` are all the combinations."""
    if sources == {()}:
        return [()]
    before: dict[str, set[tuple[str, ...]]] = {}
    for source in sources:
        if source:
            before.setdefault(source[-1], set()).add(source[:-1])
    alike: dict[frozenset[tuple[str, ...]], set[str]] = {}
    for last, prefixes in before.items():
        alike.setdefault(frozenset(prefixes), set()).add(last)
    return [
        (*kinds, frozenset(last))
        for prefixes, last in alike.items()
        for length in sorted({len(prefix) for prefix in prefixes})
        for kinds in _products({prefix for prefix in prefixes if len(prefix) == length})
    ]


def _class(characters: Iterable[str]) -> str:
    """A regular expression's class, its runs written as ranges."""
    runs: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "[" + "".join(_run(*run) for run in runs) + "]"


def _run(first: int, last: int) -> str:
    names = [f"\\{chr(c)}" if chr(c) in "\\]^-[" else chr(c) for c in (first, last)]
    return names[0] if first == last else names[0] + ("-" if last > first + 1 else "") + names[1]
