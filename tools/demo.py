"""Export the embedded pipeline by two recipes and compare their images: what `make demo` does.

    python tools/demo.py [FOLDER]    # demo-out/demo.png, demo-out/fp4dit, demo-out/tuned

All commands run in one process: packages are loaded and networks traced once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from fp4dit_onnx import cli

RECIPES = ("fp4dit", "tuned")
"""Methods, and names of their bundles."""
PROMPTS = 8


def run(*arguments: str) -> None:
    """Run a command of fp4dit-onnx; ends this program where it fails."""
    print(f"$ fp4dit-onnx {shlex.join(arguments)}", flush=True)
    try:
        cli.main(arguments)
    except SystemExit as done:
        if done.code:
            raise


def main() -> None:
    """Make both bundles and the image."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out")
    bundles = {method: str(folder / method) for method in RECIPES}
    common = ("--bits", "w4a6", "--preset", "fast", "--no-report", "--overwrite")
    for method in RECIPES:
        run("export", "--method", method, *common, "--output", bundles[method])
    grid = str(folder / "demo.png")
    run("evaluate", *bundles.values(), "--count", str(PROMPTS), "--grid", grid)


if __name__ == "__main__":
    main()
