#!/usr/bin/env python3
"""Take the images of pages that stand in docs/, of one bundle, with headless Chromium.

    python tools/screenshots.py BUNDLE [NAME ...]

Each is a PNG of at most 256 colours in docs/. It needs Chromium, Playwright, and fonts that have
the signs of Netron's page (on Debian fonts-wqy-zenhei).
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from fp4dit_onnx.bundle.bundle import REPORT, Bundle
from fp4dit_onnx.serve.serving import Server
from fp4dit_onnx.serve.viewing import netron_server, onnx_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
LAYER = "transformer_blocks.0.ff.net.0.proj"


def open_in_netron(page: Page, url: str, layer: str) -> None:
    """Open Netron's page and select the node called `layer`: its properties show."""
    page.goto(url)
    page.wait_for_selector("g.graph-node", timeout=60_000)
    page.wait_for_selector("#sidebar-target-button:visible")
    page.wait_for_timeout(500)  # the page listens to keys a little later
    page.keyboard.press("Control+f")
    page.fill(".sidebar-find-search input", layer)
    exact = re.compile(f"^{re.escape(layer)}$")
    found = page.locator(".sidebar-find-content li").filter(has_text=exact).first
    found.click()
    page.wait_for_timeout(500)  # the graph moves to the node, and a double click opens it
    found.dblclick()
    page.get_by_text("Node Properties").wait_for()


def netron(page: Page, bundle: Path) -> bytes:
    """A quantized feed-forward layer, its inputs, formats and errors beside it."""
    page.set_viewport_size({"width": 1360, "height": 840})
    with netron_server(onnx_file(bundle, "transformer"), "127.0.0.1", 0).in_background() as server:
        open_in_netron(page, server.url, LAYER)
        page.wait_for_timeout(1000)  # the graph glides there
        return page.screenshot()


def browser(page: Page, bundle: Path) -> bytes:
    """The page of ``fp4dit-onnx serve`` after its first image."""
    page.set_viewport_size({"width": 1040, "height": 760})
    with Server(Bundle.open(bundle), "127.0.0.1", 0).in_background() as server:
        page.goto(server.url)
        page.locator("#draw:enabled").click(timeout=120_000)
        page.locator("#result:visible").wait_for(timeout=120_000)
        return page.screenshot(full_page=True)


def report(page: Page, bundle: Path) -> bytes:
    """The first part of the bundle's report."""
    page.set_viewport_size({"width": 1200, "height": 1440})
    page.goto((bundle / REPORT).resolve().as_uri())
    return page.screenshot()


SCREENSHOTS: dict[str, Callable[[Page, Path], bytes]] = {
    "browser": browser,
    "netron": netron,
    "report": report,
}


def main() -> int:
    """Take the images asked for, by default all."""
    parser = argparse.ArgumentParser(description="take the images of pages in docs/")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("names", nargs="*", choices=[[], *SCREENSHOTS], help="by default all")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("error: no Chromium: install Debian's package chromium", file=sys.stderr)
        return 2
    with sync_playwright() as driver:
        chrome = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in arguments.names or SCREENSHOTS:
            page = chrome.new_page()
            picture = Image.open(BytesIO(SCREENSHOTS[name](page, arguments.bundle)))
            path = DOCS / f"{name}.png"
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                path, optimize=True
            )
            print(f"{path} written, {path.stat().st_size:,} bytes")
            page.close()
        chrome.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
