"""An image of the embedded pipeline on an NVIDIA GPU: what `make gpu-demo` does.

    python tools/gpu_demo.py [FOLDER]    # demo-out/gpu.png

onnxruntime-gpu goes into an environment of its own, build/gpu-venv: it overwrites onnxruntime.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fp4dit_onnx.system.nvidia import Trouble, nvidia_driver

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "build" / "gpu-venv"
BITS = "w4a6"


def commands(folder: Path) -> list[Sequence[str | Path]]:
    """What makes the image, in order; the first two once."""
    here = (sys.executable, "-P")
    there = ENVIRONMENT / "bin"
    bundle, picture = folder / "gpu-bundle", folder / "gpu.png"
    export = ("export", "--bits", BITS, "--method", "tuned", "--preset", "fast", "--no-report")
    made = [] if bundle.is_dir() else [(*here, "-m", "fp4dit_onnx", *export, "-o", bundle)]
    return [
        (*here, ROOT / "tools" / "build_gpu.py"),
        (sys.executable, "-m", "venv", ENVIRONMENT),
        (there / "pip", "install", "--quiet", f"{ROOT}[gpu]"),
        *made,
        (there / "fp4dit-onnx", "doctor"),
        (
            *(there / "fp4dit-onnx", "generate", bundle, "--prompt", "red apple"),
            *("--device", "cuda", "--overwrite", "-o", picture),
        ),
    ]


def main(arguments: Sequence[str]) -> int:
    """Make the image, where there is a GPU; nothing is installed where there is none."""
    driver = nvidia_driver()
    if isinstance(driver, Trouble):
        print(f"error: {driver}", file=sys.stderr)
        return 2
    print(driver, flush=True)
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    for words in commands(Path(arguments[0] if arguments else "demo-out")):
        text = [str(word) for word in words]
        print(f"$ {shlex.join(text)}", flush=True)
        if code := subprocess.run(text, env=environment, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
