"""The images of docs/concepts.md: as drawn now, whole, and named for those who do not see them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import generate_pictures
import pytest
from generate_pictures import PICTURES, main

SVG = "{http://www.w3.org/2000/svg}"


def test_the_pictures_are_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_the_check_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_pictures, "FOLDER", tmp_path / "pictures")
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "pictures" / "exact.svg").write_text("<svg/>", encoding="utf-8")
    capsys.readouterr()
    assert main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("docs/pictures differs in exact.svg: run")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_whole(name: str) -> None:
    root = ET.fromstring(PICTURES[name]())
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text
    card = root.find(f"{SVG}rect")
    assert card is not None, "a card, so that it is legible on dark pages"
    assert (float(card.attrib["width"]), float(card.attrib["height"])) == (width, height)
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height
    page = (generate_pictures.FOLDER.parent / "concepts.md").read_text(encoding="utf-8")
    assert f"(pictures/{name})" in page


def test_the_product_is_the_sum_of_its_terms() -> None:
    root = ET.fromstring(PICTURES["exact.svg"]())
    words = [text.text or "" for text in root.iter(f"{SVG}text")]
    cells = {w: words[i + 1 : i + 5] for i, w in enumerate(words) if re.match(r"as int|prod", w)}
    q, w, products = ([int(v) for v in row] for row in cells.values())
    assert [a * b for a, b in zip(q, w, strict=True)] == products
    assert words[words.index("sum, int32") + 1] == str(sum(products))
