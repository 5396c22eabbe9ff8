"""Images side by side, a row a variant and a column a prompt."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fp4dit_onnx.evaluation.image_grid import image_grid
from fp4dit_onnx.evaluation.quality import FLOAT


def test_grid_places_every_picture() -> None:
    blues = {b: Image.new("RGB", (8, 8), (0, 0, b)) for b in (100, 120, 140, 160)}  # no text is
    rows = {FLOAT: [blues[100], blues[120]], "e2m1": [blues[140], blues[160]]}
    sheet = image_grid(rows, ["one", "a caption of many words that needs several lines"])
    pixels = np.asarray(sheet)
    corners = []
    for blue in blues:
        place = np.argwhere((pixels == (0, 0, blue)).all(axis=2))
        assert len(place) == 16 * 16  # enlarged twice
        corner = place.min(axis=0)
        assert (place.max(axis=0) - corner == 15).all()  # one square
        corners.append(tuple(corner))
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = corners
    assert (y0, x0, y2, x1) == (y1, x2, y3, x3)  # rows are variants, columns are captions
    assert y0 < y2
    assert x0 < x1
    assert (pixels[:, 0] == 255).all()


def test_grid_keeps_large_pictures() -> None:
    sheet = image_grid({"a": [Image.new("RGB", (256, 300))]}, ["x"])
    assert 256 < sheet.width < 512
    assert 300 < sheet.height < 600


@pytest.mark.parametrize(
    ("rows", "captions"),
    [({}, []), ({"a": [Image.new("RGB", (8, 8))]}, ["x", "y"]), ({"a": []}, [])],
)
def test_grid_refuses_uneven_rows(rows: dict[str, list[Image.Image]], captions: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        image_grid(rows, captions)
