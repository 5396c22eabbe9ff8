"""Reads SentencePiece's model files (``spiece.model``): pieces, scores, and how texts are normalized.

They are protocol buffers of sentencepiece_model.proto; the few fields that count are read here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import LARGE

__all__ = ["Kind", "ModelType", "Piece", "SentencePieceModel", "read_model"]


class ModelType(IntEnum):
    """How a text is cut; the numbers are the file's."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class Kind(IntEnum):
    """What a piece is for; the numbers are the file's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its number is its place."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a file holds.

    Attributes:
        pieces: the vocabulary, by number.
        model_type: how a text is cut.
        byte_fallback: whether unknown characters become bytes.
        suffix: whether a space belongs to the word before it.
        charsmap: compiled rules that replace characters; empty for none.
        dummy_prefix: whether a text begins with a space.
        single_spaces: whether runs of spaces become one and those at the ends vanish.
        escaped_spaces: whether a space is written as U+2581.
    """

    pieces: tuple[Piece, ...]
    model_type: ModelType
    byte_fallback: bool
    suffix: bool
    charsmap: bytes
    dummy_prefix: bool
    single_spaces: bool
    escaped_spaces: bool


_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_CHARSMAP, _DUMMY_PREFIX, _SINGLE_SPACES, _ESCAPED_SPACES = 2, 3, 4, 5
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Value = int | float | bytes


def read_model(path: Path) -> SentencePieceModel:
    """The model in `path`.

    Raises:
        CheckpointError: no whole file of SentencePiece's.
    """
    try:
        if path.stat().st_size > LARGE:
            raise ValueError(f"it has more than {LARGE} bytes")  # noqa: TRY301, one message for all
        return _model(path.read_bytes())
    except OSError as cause:
        raise CheckpointError(
            f"{path} cannot be read ({cause.strerror}): expected a SentencePiece model; check its "
            "permissions"
        ) from cause
    except (ValueError, IndexError, struct.error) as cause:
        raise CheckpointError(
            f"{path} is damaged ({cause}): expected a SentencePiece model; download it again"
        ) from cause


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: Mapping[int, _Value] = {}
    normalizer: Mapping[int, _Value] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_message(value)))
        elif number == _TRAINER:
            trainer = _message(value)
        elif number == _NORMALIZER:
            normalizer = _message(value)
    if not pieces:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(_CHARSMAP, b"")
    if not isinstance(charsmap, bytes):
        raise ValueError("its rules are a number")  # noqa: TRY004, the file's fault
    return SentencePieceModel(
        tuple(pieces),
        ModelType(int(trainer.get(_MODEL_TYPE, ModelType.UNIGRAM))),
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        suffix=bool(trainer.get(_SUFFIX, 0)),
        charsmap=charsmap,
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        single_spaces=bool(normalizer.get(_SINGLE_SPACES, 1)),
        escaped_spaces=bool(normalizer.get(_ESCAPED_SPACES, 1)),
    )


def _piece(fields: Mapping[int, _Value]) -> Piece:
    text, score = fields.get(_TEXT, b""), fields.get(_SCORE, 0.0)
    if not isinstance(text, bytes) or not isinstance(score, float):
        raise ValueError("a piece has no text and score")  # noqa: TRY004, the file's fault
    if not text or not math.isfinite(score):
        raise ValueError(f"the piece {text[:20]!r} has the score {score}")
    return Piece(text.decode("utf-8"), score, Kind(int(fields.get(_KIND, Kind.NORMAL))))


def _message(value: _Value) -> dict[int, _Value]:
    if not isinstance(value, bytes):
        raise ValueError("a number stands in place of a message")  # noqa: TRY004, the file's fault
    return dict(_fields(value))


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field of a message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        value: _Value
        if wire == _VARINT:
            value, place = _varint(data, place)
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            length = {_FIXED32: 4, _FIXED64: 8}.get(wire, 0)
            if wire == _BYTES:
                length, place = _varint(data, place)
            value, place = data[place : place + length], place + length
            if place > len(data):
                raise ValueError("it is cut off")
            if wire == _FIXED32:
                (value,) = struct.unpack("<f", value)
        else:
            raise ValueError(f"a field has the wire type {wire}")
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while shift < 64:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a number has more than 64 bits")
