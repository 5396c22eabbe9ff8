"""Text and JSON on disk: read in one place, with limits, and checked against dataclasses."""

from fp4dit_onnx.files.decoding import (
    Count,
    Positive,
    Range,
    WrongType,
    decoded,
    of_type,
    plain,
    shown,
)
from fp4dit_onnx.files.digests import sha256_of, sha256_of_all
from fp4dit_onnx.files.reading import (
    BUNDLE,
    CHECKPOINT,
    GIVEN,
    LARGE,
    Origin,
    checked,
    json_text,
    parse_json,
    parse_object,
    read_bytes,
    read_json,
    read_text,
)
from fp4dit_onnx.files.writing import append_text, write_text

__all__ = [
    "BUNDLE",
    "CHECKPOINT",
    "GIVEN",
    "LARGE",
    "Count",
    "Origin",
    "Positive",
    "Range",
    "WrongType",
    "append_text",
    "checked",
    "decoded",
    "json_text",
    "of_type",
    "parse_json",
    "parse_object",
    "plain",
    "read_bytes",
    "read_json",
    "read_text",
    "sha256_of",
    "sha256_of_all",
    "shown",
    "write_text",
]
