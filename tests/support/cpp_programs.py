"""The programs of the C++ example: built by CMake, and run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import emulation
import nlohmann_json

__all__ = ["built", "refusal", "run"]

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp"


def built(folder: Path, *options: str, targets: Sequence[str] = ("text_to_image",)) -> Path:
    """Builds the C++ example in `folder` by CMake with these options, and gives the folder back."""
    common = ["-DFP4DIT_WERROR=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1"]
    common += [f"-DNLOHMANN_JSON_INCLUDE={nlohmann_json.get_include()}"]
    emulation.call(["cmake", *options, "-S", SOURCE, "-B", folder, *common])
    emulation.call(["cmake", "--build", folder, "--parallel", "2", "--target", *targets])
    return folder


def run(program: Path, *arguments: object, text: str = "") -> subprocess.CompletedProcess[bytes]:
    """Runs a program; the runtime keeps what it allocated once to the end of the process."""
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, env=env, input=text.encode(), capture_output=True, check=False, timeout=300
    )


def refusal(programs: Path, *arguments: object) -> str:
    """The line that a refused request ends with."""
    result = run(programs / "text_to_image", *arguments)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 2, result.stderr.decode()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: "), lines
    return lines[0]
