"""Names of devices and precisions of calibration; no torch here."""

from __future__ import annotations

import re

from fp4dit_onnx.errors import UsageError

__all__ = ["AUTO", "CPU", "DEVICES", "PRECISIONS", "checked_device", "checked_precision"]

AUTO = "auto"
CPU = "cpu"
DEVICES = (CPU, "cuda", "mps", "xpu")
"""Types of devices; accelerators may have a number behind, as in ``cuda:1``."""
PRECISIONS = ("float32", "bfloat16")
"""Types in which the float network may be computed, torch's names, the default first."""
_NUMBERED = re.compile(r"(cuda|xpu):\d{1,3}", re.ASCII)


def checked_device(device: str) -> str:
    """`device` if it is the name of one.

    Raises:
        UsageError: it is not.
    """
    if device not in (AUTO, *DEVICES) and not _NUMBERED.fullmatch(device):
        raise UsageError(
            f"unknown device {device!r}: expected {AUTO}, {', '.join(DEVICES)}, or one of several by "
            "its number, such as cuda:1"
        )
    return device


def checked_precision(precision: str) -> str:
    """`precision` if it is one of `PRECISIONS`.

    Raises:
        UsageError: it is not.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: expected {' or '.join(PRECISIONS)}")
    return precision
