"""Docs, help, messages and comments use the words of diffusers, ONNX and the papers."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fp4dit_onnx", "passes", "calibration", "tools")
COUNTED = "scales?|bits|codes|images?|steps|rows|[Oo]ne|two|[Oo]nce|seconds|operations"
BY = "row|token|group|weight|byte|layer|channel|image|prompt|step|block|tensor|head|second|unit"
INSTEAD = {
    r"(?<![./'\"#\w{-])[Pp]ictures?\b(?![\[\](){}.=:,\w])": "image",
    r"\bcalled after (?!each\b|every\b)": "named after",
    r"\b[Cc]ontestants?\b": "backend",
    r"\b[Dd]raws? (?:images?|classes|prompts|with|without)\b": "generate",
    r"\bas they come\b": "at run time",
    rf"\b(?:{COUNTED}) an? (?:{BY})\b(?!'s| time)": "per",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of what a file says: Markdown but for code, or Python's comments and strings."""
    if path.suffix == ".md":
        prose = re.sub(
            r"(?ms)^```.*?^```|`[^`\n]*`|\]\([^)\n]*\)|<!--.*?-->", _blank, path.read_text()
        )
        yield from enumerate(prose.splitlines(), 1)
        return
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT or (
                token.type == tokenize.STRING and " " in token.string
            ):
                yield token.start[0], token.string


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


def said(text: str) -> list[str]:
    """The words in `text` for which there are better ones, each with that."""
    return [f"{m[0]!r}: {new}" for old, new in INSTEAD.items() for m in re.finditer(old, text)]


@pytest.mark.parametrize("folder", ["docs", *FOLDERS])
def test_words_of_the_field(folder: str) -> None:
    paths = [*(ROOT / folder).rglob("*.md"), *(ROOT / folder).rglob("*.py")]
    if folder == "docs":
        paths.append(ROOT / "README.md")
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in paths
        if path.name != "small_tokenizers.py"  # a vocabulary
        for line, text in texts(path)
        for words in said(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Draws images, a picture each, one scale a row.", 3),
        ("A layer called after its module; called after each step.", 1),
        ("docs/pictures, {picture.size}, a scale per row, drawn lines", 0),
    ],
)
def test_the_words_are_found(text: str, count: int) -> None:
    assert len(said(text)) == count
