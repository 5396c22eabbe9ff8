"""The page in headless Chromium: on a phone, in the dark, by keyboard, without network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.report.writing import add_report, comparison_html, report_html

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1200, "height": 900}


@pytest.fixture
def pages(cases: SimpleNamespace, stub_bundle: Bundle, tmp_path: Path) -> dict[str, Path]:
    """A report, a report of what was hardly measured, and a comparison."""
    add_report(stub_bundle, cases.evidence())
    bare = cases.make(tmp_path / "bare", cases.manifest(measured=False))
    texts = {
        "report": report_html(stub_bundle),
        "bare": report_html(bare),
        "comparison": comparison_html(stub_bundle, bare),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.html").write_text(text)
    return {name: tmp_path / f"{name}.html" for name in texts}


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a file; fails if the page asks for anything else, or complains."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, size: dict[str, int], scheme: str = "light", **more: Any) -> Any:
        context = browser.new_context(viewport=size, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        own = path.as_uri()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url == own or request.url.startswith("data:")
                else complaints.append(request.url)
            ),
        )
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def test_a_phone_never_scrolls_sideways(pages: dict[str, Path], opened: Any) -> None:
    for path in pages.values():
        page = opened(path, PHONE)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], path.name
        sides = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.clientWidth)")
        assert all(100 < side <= PHONE["width"] for side in sides)


def test_tables_that_are_cut_say_so(pages: dict[str, Path], opened: Any) -> None:
    """On a phone the hint is in view and the first column stays; on a desktop there is neither."""
    page = opened(pages["report"], PHONE)
    scores = page.get_by_role("region", name="Against the float model's images")
    caption = scores.locator("caption")
    hint = "getComputedStyle(e, '::after').content"
    assert "Scroll sideways" in caption.evaluate(f"e => {hint}")
    scores.evaluate("e => e.scrollLeft = e.scrollWidth")
    head, last = (
        scores.locator(f"tbody tr >> nth=0 >> {cell}") for cell in ("th", "td >> nth=-1")
    )
    assert head.bounding_box()["x"] >= 0
    box = last.bounding_box()
    assert box["x"] + box["width"] <= PHONE["width"]
    wide = opened(pages["report"], DESKTOP)
    caption = wide.get_by_role("region", name="Against the float model's images")
    assert caption.locator("caption").evaluate(f"e => {hint}") == "none"


def test_the_width_of_a_desktop_is_used(pages: dict[str, Path], opened: Any) -> None:
    page = opened(pages["report"], {"width": 1680, "height": 900})
    assert page.locator("main").bounding_box()["width"] > 1600
    table = page.locator(".tall table").bounding_box()
    assert table["width"] > 1500


def test_dark_mode_turns_text_and_plots(pages: dict[str, Path], opened: Any) -> None:
    def colours(scheme: str) -> list[str]:
        page = opened(pages["report"], DESKTOP, scheme)
        return list(
            page.evaluate(
                """() => [
                    getComputedStyle(document.body).backgroundColor,
                    getComputedStyle(document.querySelector('svg text')).fill,
                    getComputedStyle(document.querySelector('[id^=heat] path')).fill,
                ]"""
            )
        )

    light, dark = colours("light"), colours("dark")
    assert light[0] == "rgb(252, 252, 251)"
    assert all(a != b for a, b in zip(light, dark, strict=True)), (light, dark)
    assert not any(colour in ("", "none") for colour in (*light, *dark))


def test_every_scrolling_region_is_reached_by_keyboard(
    pages: dict[str, Path], opened: Any
) -> None:
    page = opened(pages["report"], PHONE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    scrolling = page.evaluate(
        """[...document.querySelectorAll('*')].filter(e =>
            ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
            && e.scrollWidth > e.clientWidth).map(e => e.getAttribute('aria-label'))"""
    )
    assert len(scrolling) >= 2
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert set(scrolling) <= reached


def test_the_layer_table_sorts_and_says_so(pages: dict[str, Path], opened: Any) -> None:
    page = opened(pages["report"], DESKTOP)
    column = (
        "[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[8].innerText)"
    )
    before = page.evaluate(column)
    button = page.get_by_role("button", name="output SQNR, dB")
    button.click()
    rising = [float(text) for text in page.evaluate(column)]
    assert rising == sorted(rising)
    button.press("Enter")
    assert [float(text) for text in page.evaluate(column)] == sorted(rising, reverse=True)
    assert page.locator("th[aria-sort=descending]").count() == 1
    assert sorted(map(float, before)) == rising


def test_everything_is_there_without_scripts(pages: dict[str, Path], opened: Any) -> None:
    page = opened(pages["report"], DESKTOP, java_script_enabled=False)
    assert page.locator("table.sortable tbody tr").count() == 10
    assert page.locator("button").count() == 0
    assert page.get_by_role("img").count() >= 10
    assert page.get_by_role("heading", name="Error per layer").is_visible()
