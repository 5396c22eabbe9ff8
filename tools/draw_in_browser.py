"""Generate an image on the page of ``fp4dit-onnx serve``, in headless Chromium.

python tools/draw_in_browser.py BUNDLE PROMPT PICTURE.png
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.serve.serving import Server, check_drawable

__all__ = ["draw"]

LIMIT_MS = 300_000
ENDED = """() => {
    const text = document.querySelector("#status").textContent;
    return text === "Ready." || text.startsWith("Generated in ")
        || !document.querySelector("#error").hidden;
}"""


def draw(folder: Path, prompt: str, picture: Path) -> None:
    """Generate an image with seed 0 and the bundle's settings.

    Raises:
        UsageError: there is no Chromium, or the page shows an error.
    """
    from playwright.sync_api import sync_playwright

    bundle = Bundle.open(folder)
    check_drawable(bundle)
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        raise UsageError("Chromium is not installed: install Debian's package chromium")
    server = Server(bundle, "127.0.0.1", 0)
    with server.in_background(), sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.goto(server.url)
        page.wait_for_function(ENDED)
        page.fill("#prompt", prompt)
        page.click("#draw")
        page.wait_for_function(ENDED)
        if page.is_visible("#error"):
            raise UsageError(f"the page says: {page.inner_text('#error')}")
        data = page.evaluate("document.querySelector('#picture').toDataURL('image/png')")
        chromium.close()
    picture.write_bytes(base64.b64decode(data.partition(",")[2]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(arguments)
    try:
        draw(given.bundle, given.prompt, given.picture)
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
