"""T5's tokenizer: SentencePiece's unigram model, as transformers' T5Tokenizer of version 4 ran it.

Texts between special tokens are normalized and cut each on its own. Special tokens are set in
marks by the normalizer, as one step that sees the whole text: the end token is added only where
the text does not end with it. So none of them is an "added token" of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.tokenizer_files.charsmap import (
    MARKS,
    charsmap_normalizers,
    read_charsmap,
    replaced,
)
from fp4dit_onnx.tokenizer_files.sentencepiece_model import (
    Kind,
    ModelType,
    SentencePieceModel,
    read_model,
)
from fp4dit_onnx.tokenizer_files.settings import Settings, made_elsewhere, read_settings

__all__ = ["read_unigram"]

SPACE = "\u2581"
"""SentencePiece's space."""
_OPEN, _CLOSE, _KEPT, _NEVER, _BEGIN = "\ufff2", "\ufff3", "\ufff4", "\ufff5", "\ufff6"
"""Marks: before and after a special token, a space that stays, a piece that no text has, the begin."""
_FIRST, _END = f"(?<=[{_BEGIN}{_CLOSE}])", r"(?![\s\S])"
"""Places in regular expressions: before the first character of a part, after the last one of all."""
_WHITE = "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001))))
"""What Python strips."""
USUAL = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_EXTRA = "<extra_id_{}>"
EXTRA_IDS = 100
_MOST_EXTRA = 10000


def read_unigram(folder: Path) -> tuple[Tokenizer, Settings]:
    """The tokenizer in a folder with ``spiece.model``.

    Raises:
        CheckpointError: a file is damaged, or the model is of another kind.
    """
    path = folder / "spiece.model"
    model = read_model(path)
    if model.model_type != ModelType.UNIGRAM or model.suffix or not model.escaped_spaces:
        kind = model.model_type.name.lower()
        raise CheckpointError(
            f"{path} is a SentencePiece model of type {kind}: expected T5's, of type unigram with "
            f"spaces before the words; {made_elsewhere(folder)}"
        )
    settings = read_settings(folder, USUAL)
    special = _special(settings, model)
    tokens = {token.content: number for number, token in special.items()}
    vocabulary = _vocabulary(model, tokens)
    unknown = [i for i, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(f"{path} has {len(unknown)} unknown pieces: expected one")
    tokenizer = Tokenizer(
        models.Unigram(vocabulary, unk_id=unknown[0], byte_fallback=model.byte_fallback)
    )
    eos = settings.special["eos"].content
    try:
        steps = _normalizers(model, list(special.values()), eos, settings.values)
    except (ValueError, IndexError) as cause:
        raise CheckpointError(
            f"{path}: {cause}; expected those of T5: download it again"
        ) from cause
    tokenizer.normalizer = normalizers.Sequence(steps)
    marks = Regex(f"[{_BEGIN}{_OPEN}{_CLOSE}]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(marks, behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", eos], special_tokens=[(eos, tokens[eos])]
    )
    return tokenizer, settings


def _special(settings: Settings, model: SentencePieceModel) -> dict[int, AddedToken]:
    """Special and added tokens by their numbers; sentinels count down to the vocabulary's end."""
    path, size = settings.folder / "tokenizer_config.json", len(model.pieces)
    count = settings.values.get("extra_ids", EXTRA_IDS)
    if not isinstance(count, int) or not 0 <= count <= _MOST_EXTRA:
        raise CheckpointError(f"{path}: extra_ids is {count!r}: expected 0 to {_MOST_EXTRA}")
    names = [token.content for token in settings.further]
    given = sum(name.startswith("<extra_id_") for name in names)
    extra = [_EXTRA.format(i) for i in range(given or count)]
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    if names and not given:  # they follow the tokens that were given
        further = (*settings.further, *(AddedToken(name, special=True) for name in extra))
        return replace(settings, further=further).numbered(vocabulary)
    sentinels = {
        size - 1 + count - i: AddedToken(name, lstrip=True, rstrip=True, special=True)
        for i, name in enumerate(extra)
    }
    return replace(settings, added={**sentinels, **settings.added}).numbered(vocabulary)


def _vocabulary(model: SentencePieceModel, tokens: dict[str, int]) -> list[tuple[str, float]]:
    """Pieces and scores; those that no text is cut into get a name that none has."""
    normal = [piece.score for piece in model.pieces if piece.kind == Kind.NORMAL] or [0.0]
    least, most = min(normal), max(normal)
    rows: list[tuple[str, float]] = []
    for piece in model.pieces:
        text, score = piece.text, piece.score
        if piece.kind == Kind.USER_DEFINED:  # preferred to all else
            score = max(len(text.encode()) * most - 0.1, least)
        hidden = piece.kind in (Kind.CONTROL, Kind.UNUSED) and text not in tokens
        rows.append((_NEVER + text if hidden else text, score))
    unnamed = range(len(rows), max(tokens.values()) + 1)
    rows += [(f"{_NEVER}{number}", 0.0) for number in unnamed]
    for text, number in tokens.items():
        rows[number] = (text, rows[number][1])
    return rows


def _normalizers(
    model: SentencePieceModel, special: Iterable[AddedToken], eos: str, values: Mapping[str, Any]
) -> list[normalizers.Normalizer]:
    legacy = values.get("legacy") is not False
    prefixed = values.get("add_prefix_space") is not False
    steps: list[normalizers.Normalizer] = []

    def change(pattern: str, content: str) -> None:
        steps.append(normalizers.Replace(Regex(pattern), content))

    change(f"[{MARKS}]", "\ufff8")  # as unknown as they
    steps.append(normalizers.Prepend(_BEGIN))
    if not legacy:
        steps.append(normalizers.Replace(SPACE, " "))
    blank = _blank(model)
    change(f"{re.escape(eos)}[{blank}]*{_END}" if blank else re.escape(eos) + _END, "")
    if left := _any(token for token in special if token.lstrip):
        change(f"[{_WHITE}]+(?={left})", "")
    if right := _any(token for token in special if token.rstrip):
        change(f"(?<={right})[{_WHITE}]+", "")
    change(f"(?={_any(special)})", _OPEN)
    change(f"(?<={_any(special)})", _CLOSE)
    if not legacy:
        change(f"(?<={_CLOSE}) " if prefixed else f"{_FIRST} ", _KEPT)
    steps += charsmap_normalizers(model.charsmap)
    if model.single_spaces:
        change(f"{_KEPT}?[ {SPACE}]+(?:(?={_OPEN})|{_END})|{_KEPT}(?:(?={_OPEN})|{_END})", "")
        change(f"(?<=[{_BEGIN}{_CLOSE}{_KEPT}]) +| +(?= )", "")
    steps.append(normalizers.Replace(_KEPT, " "))
    if legacy and model.dummy_prefix:
        change(f"{_FIRST}(?=[^{_OPEN}])", SPACE)
    elif not legacy and prefixed:
        change(f"(?<={_BEGIN})(?=[^{_OPEN}])", SPACE)
    steps.append(normalizers.Replace(" ", SPACE))
    return [*steps, *_restored(steps, special)]


def _restored(
    steps: Sequence[normalizers.Normalizer], special: Iterable[AddedToken]
) -> list[normalizers.Normalizer]:
    """What gives special tokens back their names where the rules change them."""
    every = normalizers.Sequence(list(steps))
    found: list[normalizers.Normalizer] = []
    for token in special:
        changed = every.normalize_str(f"{token.content}.").split(_OPEN)[1].split(_CLOSE)[0]
        if changed != token.content:
            marked = (f"{_OPEN}{name}{_CLOSE}" for name in (changed, token.content))
            found.append(normalizers.Replace(*marked))
    return found


def _any(tokens: Iterable[AddedToken]) -> str:
    """A regular expression of `tokens`, the longest first."""
    return "|".join(map(re.escape, sorted({t.content for t in tokens}, key=len, reverse=True)))


def _blank(model: SentencePieceModel) -> str:
    """Characters that are nothing at the end of a text, as a regular expression's class."""
    rules = read_charsmap(model.charsmap) if model.charsmap else {}
    nothing = {c for c, value in rules.items() if len(c) == 1 and not value.strip(" ")}
    if not model.single_spaces:
        nothing = set()
    else:
        nothing |= {" "} | ({SPACE} if replaced(rules, SPACE) in (SPACE, " ") else set())
    return "".join(map(re.escape, sorted(nothing)))
