"""SentencePiece's rules of normalization for a few scripts, compiled as its model files have them."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Mapping

__all__ = ["compiled", "latin_rules"]

_REMOVED = (*range(0x1, 0x9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F)
_SPACES = (0x9, 0xA, 0xC, 0xD, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF)
_LATIN = range(0xA0, 0x250)
_OTHERS = (*range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000, *range(0xFF01, 0xFF5F))
_BLOCK = 256


def latin_rules() -> dict[str, str]:
    """What replaces what in nmt_nfkc, of Latin letters, spaces, controls and wide forms."""
    rules = dict.fromkeys(map(chr, _REMOVED), "") | dict.fromkeys(map(chr, _SPACES), " ")
    for character in map(chr, (*_LATIN, *_OTHERS)):
        parts = unicodedata.normalize("NFD", character)
        composed = unicodedata.normalize("NFKC", character)
        if composed != character:
            rules[character] = composed
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) != parts:
            rules[parts] = composed
    return rules


def compiled(rules: Mapping[str, str]) -> bytes:
    """`rules` as a double-array trie of their sources, and what it points to."""
    texts, values = b"", {}
    for source, target in rules.items():
        values[source.encode()] = len(texts)
        texts += target.encode() + b"\0"
    units = _double_array(values)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts


def _double_array(values: Mapping[bytes, int]) -> list[int]:
    """Units of 32 bits: a child with label c of a node is at the node's base, exclusive-or c."""
    units, used, bases, lowest = {0: 0}, {0}, {0}, 1
    waiting = [(0, b"")]
    following: dict[bytes, set[int]] = {}
    for key in values:
        for end in range(len(key)):
            following.setdefault(key[:end], set()).add(key[end])
    while waiting:
        place, prefix = waiting.pop()
        labels = following.get(prefix, set()) | ({0} if prefix in values else set())
        base = lowest
        while base in bases or any(base ^ label in used for label in labels):
            base += 1
        bases.add(base)
        units[place] |= (place ^ base) << 10 | (0x100 if prefix in values else 0)
        for label in labels:
            used.add(base ^ label)
            units[base ^ label] = label if label else values[prefix] | 1 << 31
            if label:
                waiting.append((base ^ label, prefix + bytes([label])))
        while lowest in used:
            lowest += 1
    size = -(-(max(units) + 1) // _BLOCK) * _BLOCK
    return [units.get(place, 0) for place in range(size)]
