"""What results depend on: two machines that agree in this compute the same."""

from __future__ import annotations

import importlib.metadata

__all__ = ["version", "versions"]


def versions() -> dict[str, str]:
    """Versions of the packages that decide the bytes of a calibration."""
    return {name: importlib.metadata.version(name) for name in ("fp4dit-onnx", "torch")}


def version(distribution: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
