"""Generate an image on the page of ``fp4dit-onnx serve``, in headless Chromium.

    python tools/draw_in_browser.py BUNDLE PROMPT PICTURE.png [--profile IMAGES] [--query threads=1]

``--profile`` generates the image several times and prints, of loading and of each image, the CPU
seconds of the browser's processes (Linux), and the seconds of each part.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from endings import ends_in_a_line

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.serve.serving import Server, check_drawable

__all__ = ["draw"]

LIMIT_MS = 300_000
MEASURED = """() => {
    const rows = performance.getEntriesByType("measure").map((e) => [e.name, e.duration / 1000]);
    performance.clearMeasures();
    return rows;
}"""
ENDED = """() => {
    const text = document.querySelector("#status").textContent;
    return text === "Ready." || text.startsWith("Generated in ")
        || !document.querySelector("#error").hidden;
}"""


def cpu_seconds(root: int) -> float:
    """Of a process and of those below it that run, on Linux."""
    found = {root}
    rows: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            words = path.read_text().rpartition(")")[2].split()
            rows[int(path.parent.name)] = int(words[1]), int(words[11]) + int(words[12])
    while more := {pid for pid, (parent, _) in rows.items() if parent in found} - found:
        found |= more
    return sum(rows[pid][1] for pid in found if pid in rows) / os.sysconf("SC_CLK_TCK")


def print_parts(what: str, seconds: float, rows: Sequence[tuple[str, float]]) -> None:
    """What the page's worker measured."""
    parts: dict[str, list[float]] = {}
    for name, duration in rows:
        parts.setdefault(name, []).append(duration)
    listed = [
        f"{name} {sum(times):.2f}" + (f" ({len(times)} times)" if len(times) > 1 else "")
        for name, times in parts.items()
    ]
    print(f"{what}: {seconds:.2f} CPU seconds; in seconds {', '.join(listed)}")


def draw(folder: Path, prompt: str, picture: Path, *, profiled: int = 0, query: str = "") -> None:
    """Generate an image with seed 0 and the bundle's settings.

    Args:
        folder: of a bundle.
        prompt: of the image.
        picture: the file to write.
        profiled: images whose times are printed; 0 for one image, without them.
        query: of the page's address.

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
        before = cpu_seconds(os.getpid()) if profiled else 0
        page.goto(f"{server.url}?{query}")
        for number in range(1 + max(profiled, 1)):
            page.wait_for_function(ENDED)
            if page.is_visible("#error"):
                raise UsageError(f"the page says: {page.inner_text('#error')}")
            if profiled:
                seconds = cpu_seconds(os.getpid())
                what = f"image {number}" if number else "loading"
                print_parts(what, seconds - before, page.workers[0].evaluate(MEASURED))
                before = seconds
            if number < max(profiled, 1):
                page.fill("#prompt", prompt)
                page.click("#draw")
        data = page.evaluate("document.querySelector('#picture').toDataURL('image/png')")
        chromium.close()
    picture.write_bytes(base64.b64decode(data.partition(",")[2]))


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--profile", type=int, default=0, metavar="IMAGES")
    parser.add_argument("--query", default="", help="such as threads=1&device=wasm")
    given = parser.parse_args(arguments)
    draw(
        given.bundle,
        given.prompt,
        given.picture,
        profiled=given.profile,
        query=given.query,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
