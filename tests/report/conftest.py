"""What the tests of reports share: a bundle of stubs, evidence, and a strict reader of pages."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fp4dit_onnx.bundle.bundle import Bundle, write_manifest
from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.files import decoded
from fp4dit_onnx.report.data import Evidence

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fp4dit_onnx.report.svg import COLOURS

HOSTILE = "<script>alert(1)</script> & \"quotes' $x_1$"
LINEARS = ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj")
VOID = {"meta", "link", "img", "br", "hr", "input"}


def png(seed: int) -> str:
    """A small image, the same for the same seed, as base64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def layer(name: str, error: float | None) -> dict[str, Any]:
    """A row of the manifest."""
    return {
        "name": name,
        "weight_format": "e2m1",
        "activation_format": "e2m3",
        "group_size": 128,
        "shape": [192, 192],
        "weights": 36864,
        "bytes": 19200,
        "bytes_float32": 147456,
        "weight_sqnr_db": 18.25,
        "output_sqnr_db": error,
        "weight_kurtosis": 3.25,
        "outliers": {
            "input_kurtosis": 2 * error,
            "output_kurtosis": 4.0,
            "channels": [7, 11],
            "gains_db": {"smoothing": 1.5, "hadamard": 4.25, "nothing": 0.5},
        }
        if error is not None
        else None,
    }


def manifest(*, measured: bool = True, bits: str = "w4a6") -> dict[str, Any]:
    """A manifest of ten layers, one with a hostile name."""
    names = [f"transformer_blocks.{b}.{name}" for b in range(3) for name in LINEARS]
    rows = [layer(name, 12.5 + i if measured else None) for i, name in enumerate(names)]
    rows.append(layer(HOSTILE, 31.75 if measured else None))
    return {
        "recipe": {
            "bits": bits,
            "method": "fp-rtn",
            "activation": "e2m3",
            "attention": None,
            "group_size": 128,
            "rules": [{"pattern": "*", "weight": "e2m1", "activation": None}],
            "search": [],
        },
        "method": {"grid": "fp", "rounding": {"prompts": 16}, "range": "absmax"},
        "sampling": {
            "steps": 3,
            "guidance": 3.0,
            "height": 64,
            "width": 64,
            "max_sequence_length": 16,
        },
        "layers": rows,
        "totals": {
            "layers": len(rows),
            "weights": 368640,
            "bytes": 192000,
            "bytes_float32": 1474560,
            "bits_per_weight": 4.1667,
            "transformer_bytes": 2785408,
            "transformer_bytes_float32": 20512640,
        },
        "skipped": [{"name": "proj_out", "reason": HOSTILE}],
        "passes": [{"name": "fuse_linear", "rewritten": 10, "skipped": []}],
        "case_sqnr_db": [],
        "source": {
            "name": HOSTILE,
            "pipeline": "PixArtAlphaPipeline",
            "transformer": "PixArtTransformer2DModel",
            "family": "PixArt-alpha",
        },
        "versions": {"python": "3.11.7", "fp4dit-onnx": "0.1.0"},
    }


def evidence(shift: float = 0.0) -> Evidence:
    """Evidence of everything; `shift` moves its PSNR."""

    def histogram(part: str, step: int | None) -> dict[str, Any]:
        counts = [1, 5, 20, 60, 0, 60, 20, 5, 1, 2]
        grid = {"format": "e2m1" if part == "weight" else "e2m3", "low": -6.6, "high": 6.6}
        own = {"layer": "transformer_blocks.0.attn1.to_q", "why": "lowest output SQNR"}
        return {**own, **grid, "part": part, "step": step, "counts": counts, "sqnr_db": 19.5}

    score = {"mean": 30.5 + shift, "standard_error": 0.75, "values": [29.75, 31.25]}
    picture = {"float_png": png(0), "quantized_png": png(1), "difference_png": png(2)}
    timing = {"median": 0.0125, "low": 0.012, "high": 0.013}
    names = ("float32, torch", "quantized", "quantized, no library")
    content = {
        "model": "pipeline",
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "threads": 2,
            "load": 0.5,
            "system": "Linux",
            "versions": {"onnxruntime": "1.32.0"},
            "limits": {},
        },
        "quality": {
            "sampling": manifest()["sampling"],
            "pictures": [
                {"prompt": p, "seed": 7, **picture, "psnr_db": 30.25 + shift, "ssim": 0.97}
                for p in ("tiger face", HOSTILE)
            ],
            "scores": {"psnr": score},
            "latent_sqnr_db": [score, score, score],
        },
        "histograms": [histogram("weight", None), histogram("input", 0), histogram("input", 2)],
        "speed": {
            "batch": 2,
            "tokens": 16,
            "threads": 2,
            "isa": "avx2",
            "timings": [{"name": n, "about": "", "seconds": timing, "rounds": 5} for n in names],
            "absent": {},
        },
        "memory": [
            {"name": n, "imports_bytes": 1, "loaded_bytes": 2**20, "peak_bytes": 2**21}
            for n in names
        ],
        "absent": {},
        "version": 1,
    }
    return decoded(Evidence, content)


def make(folder: Path, content: dict[str, Any], *, whole: bool = True) -> Bundle:
    """A bundle of stubs: all that a page is made from."""
    files = ["model_index.json", "transformer/config.json", "transformer/model.onnx"]
    for name in [*files, "vae_decoder/model.onnx"] if whole else files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    write_manifest(folder, decoded(Manifest, {**content, "files": {}}))
    return Bundle.open(folder)


class Page(HTMLParser):
    """Reads a page strictly: every tag closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element opens."""
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that holds nothing."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """An element closes."""
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        """All words of the page."""
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\u00a0", " ")

    def values(self, attribute: str) -> Iterator[str]:
        """Every value of an attribute."""
        return (str(found[attribute]) for _, found in self.elements if attribute in found)


def check_well_formed(text: str) -> Page:
    """The page, if a strict reader, a screen reader and a machine without network can use it."""
    page = Page(text)
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1, ids.most_common(2)
    for attribute in ("aria-labelledby", "aria-describedby"):
        assert set(page.values(attribute)) <= set(ids)
    links = {link.removeprefix("#") for link in page.values("href") if link.startswith("#")}
    assert links <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    for tag, found in page.elements:
        if tag == "img":
            assert found["alt"]
            assert str(found["src"]).startswith("data:image/png;base64,")
        if tag == "svg":
            assert found["role"] == "img"
            assert found["aria-label"]
        if tag == "th":
            assert found["scope"] in ("row", "col")
        if found.get("role") == "region":
            assert found["tabindex"] == "0"
            assert found["aria-label"]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") >= 4
    assert [tag for tag in tags if tag == "h1"] == ["h1"]
    assert "://" not in text, "a page names no address"
    assert not any(colour in text for colour in COLOURS.values()), "a stand-in was left"
    return page


@pytest.fixture(scope="session")
def cases() -> SimpleNamespace:
    """Makers of bundles and evidence, and checks of pages."""
    return SimpleNamespace(
        HOSTILE=HOSTILE,
        Page=Page,
        check=check_well_formed,
        evidence=evidence,
        make=make,
        manifest=manifest,
    )


@pytest.fixture
def stub_bundle(tmp_path: Path) -> Bundle:
    """Nothing but a manifest and stubs: all that a page is made from."""
    return make(tmp_path / "bundle", manifest())
