"""What the JSON files beside a vocabulary say: special tokens, and tokens that were added to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, read_json

__all__ = ["CONFIG", "Settings", "made_elsewhere", "read_settings"]

CONFIG, SPECIAL_MAP, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MOST_TOKENS = 2**20
"""Of a vocabulary; mT5's has 250,000."""
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class Settings:
    """How a tokenizer treats what is not ordinary text.

    Attributes:
        folder: of the tokenizer.
        values: the content of tokenizer_config.json.
        special: special tokens by role, such as ``eos``.
        added: tokens with numbers of their own, by number.
        further: special tokens without a role, in order.
    """

    folder: Path
    values: Mapping[str, Any]
    special: Mapping[str, AddedToken]
    added: Mapping[int, AddedToken]
    further: tuple[AddedToken, ...]

    def numbered(self, vocabulary: Mapping[str, int]) -> dict[int, AddedToken]:
        """All special and added tokens by their numbers; what has none yet follows the vocabulary.

        Raises:
            CheckpointError: two tokens of one number.
        """
        found = dict(self.added)
        numbers = {token.content: number for number, token in found.items()}
        largest = max((*vocabulary.values(), *numbers.values()), default=-1)
        for token in (*self.special.values(), *self.further):
            number = numbers.get(token.content, vocabulary.get(token.content))
            if number is None:
                number = largest = largest + 1
            found.setdefault(number, token)
            numbers[token.content] = number
        names = {number: name for name, number in vocabulary.items()}
        for number, token in found.items():
            if names.get(number, token.content) != token.content:
                raise CheckpointError(
                    f"{self.folder}: token {token.content!r} has the number {number}, which is "
                    f"{names[number]!r} in the vocabulary; download the folder again"
                )
        return found


def made_elsewhere(folder: Path) -> str:
    """What to do where a tokenizer has to be converted by transformers; the end of a message."""
    return (
        "make a tokenizer.json with transformers, which may ask for sentencepiece, and give a copy "
        f"of the pipeline that has it: AutoTokenizer.from_pretrained({str(folder)!r})"
        ".save_pretrained(COPY)"
    )


def read_settings(folder: Path, usual: Mapping[str, str]) -> Settings:
    """The settings in a tokenizer's folder, which may have none of the files.

    Args:
        folder: of the tokenizer.
        usual: special tokens by role, as the class has them where no file says otherwise.

    Raises:
        CheckpointError: a file is damaged.
    """
    values = _read(folder / CONFIG, "the tokenizer's settings")
    further = values.get("additional_special_tokens") or values.get("extra_special_tokens") or []
    named: dict[str, Any] = {role: values.get(f"{role}_token") for role in _ROLES}
    stored = values.get("added_tokens_decoder")
    added: dict[int, AddedToken] = {}
    if stored is not None:
        path = folder / CONFIG
        for number, token in _object(path, "added_tokens_decoder", stored).items():
            added[_number(path, token, number)] = _token(path, token)
    else:  # what transformers wrote before 4.34
        listed = _read(folder / SPECIAL_MAP, "the special tokens")
        named |= {role: listed[f"{role}_token"] for role in _ROLES if f"{role}_token" in listed}
        further = listed.get("additional_special_tokens") or further
    tokens = {
        role: _token(folder, named[role] or usual[role])
        for role in _ROLES
        if named[role] or role in usual
    }
    if not isinstance(further, Collection) or isinstance(further, str):
        raise CheckpointError(
            f"{folder}: additional_special_tokens is {further!r}: expected a list"
        )
    others = tuple(_token(folder, token) for token in further)
    if stored is None:
        marked = {token.content for token in (*tokens.values(), *others)}
        path = folder / ADDED
        for name, number in _read(path, "the tokens added to the vocabulary").items():
            special = name in marked  # others are found in normalized text
            flags = {"content": name, "special": special, "normalized": not special}
            added[_number(path, name, number)] = _token(path, flags)
    own = {token.content: token for token in added.values()}
    return Settings(
        folder,
        values,
        {role: own.get(token.content, token) for role, token in tokens.items()},
        added,
        others,
    )


def _read(path: Path, what: str) -> dict[str, Any]:
    return read_json(path, what, CHECKPOINT, limit=LARGE) if path.is_file() else {}


def _object(path: Path, key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is {value!r}: expected an object of tokens")
    return value


def _number(path: Path, token: object, number: object) -> int:
    text = str(number)
    if isinstance(number, bool) or not text.isdecimal() or not int(text[:9]) < MOST_TOKENS:
        raise CheckpointError(
            f"{path}: token {str(token)[:80]!r} has the number {text[:20]}: expected one from 0 "
            f"below {MOST_TOKENS}; download the file again"
        )
    return int(text)


def _token(path: Path, token: object) -> AddedToken:
    """A special token; added ones are not cut either."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise CheckpointError(f"{path}: special token {token!r}: expected a text")
    flags = token if isinstance(token, dict) else {}
    chosen = {flag: flags.get(flag) is True for flag in _FLAGS}
    return AddedToken(content, special=flags.get("special") is not False, **chosen)
