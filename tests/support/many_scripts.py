"""Texts of many scripts, the same at each call: what a tokenizer may meet, and what it should not."""

from __future__ import annotations

import random

__all__ = ["texts_of_many_scripts"]

_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x17F)),
    "greek": ((0x391, 0x3A1), (0x3A3, 0x3A9), (0x3B1, 0x3C9)),
    "cyrillic": ((0x410, 0x44F),),
    "chinese": ((0x4E00, 0x4FFF), (0x3041, 0x3096), (0x30A1, 0x30FE), (0xFF01, 0xFF5E)),
    "kana": ((0x304B, 0x3062), (0x3099, 0x309A), (0xFF66, 0xFF9F)),
    "hangul": ((0xAC00, 0xAD00), (0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2)),
    "jamo": ((0x3131, 0x3163), (0xFFA1, 0xFFBE), (0x11A8, 0x11C2)),
    "arabic": ((0x621, 0x64A), (0x64B, 0x65F), (0xFB50, 0xFBB1), (0xFE80, 0xFEFC)),
    "hebrew": ((0x5D0, 0x5EA), (0x5B0, 0x5C7)),
    "devanagari": ((0x904, 0x94D), (0x958, 0x96F)),
    "thai": ((0xE01, 0xE3A), (0xE40, 0xE4E)),
    "emoji": ((0x1F300, 0x1F64F), (0x200D, 0x200D), (0xFE0F, 0xFE0F), (0x1F3FB, 0x1F3FF)),
    "marks": ((0x300, 0x304), (0x308, 0x30C), (0x323, 0x328), (0x61, 0x7A), (0x41, 0x55)),
    "controls": ((0x1, 0x20), (0x7F, 0xA0), (0x61, 0x66)),
    "spaces": ((0x2000, 0x200F), (0x2028, 0x202F), (0x3000, 0x3000), (0x20, 0x20), (0x61, 0x66)),
    "letters of mathematics": ((0x1D400, 0x1D454), (0x2070, 0x2071), (0x2460, 0x24E9)),
    "punctuation": ((0x21, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0x2010, 0x2027), (0x3001, 0x3011)),
    "private": ((0xE000, 0xE010), (0x2581, 0x2581), (0x61, 0x66), (0xFFFD, 0xFFFD)),
}
_TEXT = "a the of red apple cat dog's horse don't I'll photo sky 42 7 Gro\u00dfe caf\u00e9"
_WORDS = tuple(_TEXT.split())
_SPECIAL = (
    *(
        "</s>",
        "<pad>",
        "<unk>",
        "<extra_id_0>",
        "<extra_id_99>",
        " </s> ",
        "[CLS]",
        "[SEP]",
        " [PAD] ",
    ),
    *("<|startoftext|>", "<|endoftext|>", "!", "\u2581", "  ", "\n", "\t", "\r\n", " "),
)
_EDGES = (
    *("", " ", "  ", "\n", "a", " a", "a ", "cat " * 3000, "e\u0301" * 2000, "x" * 5000),
    *("</s>", "a</s>", "a</s> \n", "a</s>b", "a </s> b", "</s> </s>", "</s>\u200b", "</s><pad>"),
    *(
        "e\u0302\u0301",
        "a\u0323\u0300",
        "\u304b\u3099\uff76\uff9e",
        "\ufb01\u0301",
        "\u1100\u1161\u11a8",
    ),
    *(
        "<extra_id_0>\u0085\u00a8",
        "\u00a8",
        "\u2581",
        "\u2581a\u2581",
        "<unk>a",
        "a<extra_id_7>\tb",
    ),
)


def texts_of_many_scripts(count: int = 1000, seed: int = 0) -> list[str]:
    """`count` texts: edge cases, then texts of one script, of all of them, and of words."""
    chance = random.Random(seed)
    texts = list(_EDGES)
    kinds = [*_RANGES, *["mixed"] * 4, *["words"] * 6]
    while len(texts) < count:
        kind = chance.choice(kinds)
        parts = [_part(chance, kind) for _ in range(chance.randint(1, 40))]
        texts.append("".join(parts))
    return texts[:count]


def _part(chance: random.Random, kind: str) -> str:
    if kind == "words":
        return chance.choice(_WORDS) + chance.choice((" ", " ", ", ", "  ", ""))
    if kind != "mixed":
        return _character(chance, kind) + (" " if chance.random() < 0.12 else "")
    draw = chance.random()
    if draw < 0.15:
        return chance.choice(_SPECIAL)
    return (
        f"{chance.choice(_WORDS)} "
        if draw < 0.4
        else _character(chance, chance.choice([*_RANGES]))
    )


def _character(chance: random.Random, kind: str) -> str:
    return chr(chance.randint(*chance.choice(_RANGES[kind])))
