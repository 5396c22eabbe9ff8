"""Export the embedded pipeline by two recipes and compare their images: what `make demo` does.

    python tools/demo.py [FOLDER]    # demo-out/demo.png, demo-out/fp4dit, demo-out/tuned

The exports run side by side, each on its share of the cores: two processes of one thread take less
time than one of two.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fp4dit_onnx.system.resources import usable_cores

RECIPES = ("fp4dit", "tuned")
"""Methods, and names of their bundles."""
PROMPTS = 8
PROGRAM = [sys.executable, "-P", "-m", "fp4dit_onnx"]


def start(name: str, arguments: Sequence[str], threads: int) -> subprocess.Popen[str]:
    """Begin a command of fp4dit-onnx, whose lines are printed behind its name."""
    print(f"$ fp4dit-onnx {shlex.join(arguments)}", flush=True)
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )

    def show() -> None:
        for line in process.stdout or ():
            print(f"{name}: {line}", end="", flush=True)

    threading.Thread(target=show).start()
    return process


def main() -> None:
    """Make both bundles and the image."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out")
    bundles = [str(folder / method) for method in RECIPES]
    share = max(1, usable_cores() // len(RECIPES))
    common = ("--bits", "w4a6", "--preset", "fast", "--no-report", "--overwrite")
    exports = [
        start(method, ("export", "--method", method, *common, "--output", bundle), share)
        for method, bundle in zip(RECIPES, bundles, strict=True)
    ]
    codes = [process.wait() for process in exports]
    if any(codes):
        sys.exit("an export failed: see its lines above")
    grid = ("--count", str(PROMPTS), "--grid", str(folder / "demo.png"))
    os.execv(sys.executable, [*PROGRAM, "evaluate", *bundles, *grid])


if __name__ == "__main__":
    main()
