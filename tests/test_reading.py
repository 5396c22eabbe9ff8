"""Text and JSON from disk: damaged and hostile files are refused in one line, good ones are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fp4dit_onnx.errors import BundleError, CheckpointError, UsageError
from fp4dit_onnx.files import BUNDLE, CHECKPOINT, GIVEN, parse_json, read_json, read_text
from fp4dit_onnx.prompts import read_prompts

PROMPTS = ["red apple", "tiger face", "Straße, 東京"]
NESTED = b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"


def parsed(data: bytes, *, infinite: bool = False) -> object:
    return parse_json(data, "x.json", "settings", CHECKPOINT, infinite=infinite)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (NESTED, "is nested more than 64 deep"),
        (b"[" * 200_000, "is nested more than 64 deep"),
        (b"[" * 66 + b"]" * 66, "is nested more than 64 deep"),
        (b'{"a": ' + b"7" * 5_000 + b"}", "holds a whole number of 5000 digits"),
        (b'{"a": -' + b"7" * 65 + b"}", "holds a whole number of 65 digits"),
        (b'{"a": NaN}', "holds the number NaN"),
        (b'{"a": -Infinity}', "holds the number -Infinity"),
        (b'{"a": 1e999}', "holds the number 1e999"),
        (b'{"a": 1, "b": 2, "a": 1}', "holds the key 'a' twice"),
        (rb'{"a": "\ud800"}', "holds half a surrogate pair"),
        (rb'{"\udfff": 1}', "holds half a surrogate pair"),
        (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
        ("{}".encode("utf-16"), "is not UTF-8 but UTF-16"),
        ("{}".encode("utf-16-le"), "is not UTF-8 but UTF-16"),
        (b'{"a": 1}\0', "is not a text: byte 8 is NUL"),
    ],
)
def test_json_that_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^x\.json {message}.*: expected settings"
    ) as caught:
        parsed(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value",
    [
        {"model_max_length": 1000000000000000019884624838656, "b": [1.5, None, True, "東"]},
        json.loads("[" * 64 + "]" * 64),
        "\U0001f34e",
        7,
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_that_is_read(value: object, mark: bytes) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=1).replace("\n", "\r\n")
        assert parsed(mark + text.encode()) == value


def test_infinity_is_read_where_it_may_stand() -> None:
    assert parsed(b'{"a": [-Infinity, 1e999]}', infinite=True) == {
        "a": [-float("inf"), float("inf")]
    }
    with pytest.raises(CheckpointError, match="holds the number NaN"):
        parsed(b'{"a": NaN}', infinite=True)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(BundleError, match=r"x\.json not found: expected settings; export the"):
        read_json(path, "settings", BUNDLE)
    with pytest.raises(BundleError, match="is not a file: expected settings"):
        read_json(tmp_path, "settings", BUNDLE)
    os.mkfifo(path)
    with pytest.raises(BundleError, match="is not a file: expected settings"):  # and nobody waits
        read_json(path, "settings", BUNDLE)
    path.unlink()
    path.write_bytes(b"[1]")
    with pytest.raises(CheckpointError, match="holds a JSON list: expected an object, settings"):
        read_json(path, "settings", CHECKPOINT)
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match=f"has {2**40} bytes: expected settings of at most 9"):
        read_text(path, "settings", GIVEN, limit=9)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_prompts_from_windows_are_the_same(tmp_path: Path, newline: str, encoding: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(newline.join([*PROMPTS, ""]).encode(encoding))
    assert read_prompts(path) == PROMPTS


def test_a_prompt_ends_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("red\u2028apple\r\nbig\x0c\x85cat\rdog\n".encode())
    assert read_prompts(path) == ["red\u2028apple", "big\x0c\x85cat", "dog"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_prompts_in_utf_16_are_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\r\n".join(PROMPTS).encode(encoding))
    with pytest.raises(
        UsageError, match="is not UTF-8 but UTF-16 or UTF-32: expected a file of prompts in UTF-8"
    ):
        read_prompts(path)
