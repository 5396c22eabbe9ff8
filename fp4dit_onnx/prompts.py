"""Prompts to calibrate and evaluate with."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import GIVEN, read_text

__all__ = ["demo_prompts", "general_prompts", "read_prompts"]


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, in order.

    Raises:
        UsageError: no such file, not UTF-8, or without a line; see `files.read_text`.
    """
    text = read_text(path, "a file of prompts", GIVEN)
    lines = re.split(r"\r\n?|\n", text)  # not at what else Unicode has for lines, as in a prompt
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path} is empty: expected one prompt a line")
    return prompts


def _packaged(*parts: str) -> list[str]:
    path = importlib.resources.files("fp4dit_onnx").joinpath(*parts)
    with importlib.resources.as_file(path) as file:
        return read_prompts(file)


def demo_prompts(purpose: str) -> list[str]:
    """Prompts of the embedded demo pipeline for ``calibration`` or ``evaluation``."""
    return _packaged("demo", "prompts", f"{purpose}.txt")


def general_prompts() -> list[str]:
    """Prompts to calibrate and evaluate with where the user gives none."""
    return _packaged("prompts", "general.txt")
