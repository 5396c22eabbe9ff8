"""Diffusion transformers in 4-bit floating point: from diffusers to ONNX Runtime.

    import fp4dit_onnx
    fp4dit_onnx.export(output="bundle", bits="w4a6")           # needs the extra [export]
    fp4dit_onnx.Pipeline("bundle").generate(["a red apple"])   # needs ONNX Runtime only
    pipe.transformer = fp4dit_onnx.load_transformer("bundle")  # in any pipeline of diffusers

What `__all__` lists is imported on first use, so that running a bundle never imports torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from fp4dit_onnx.errors import (
    BundleError,
    CheckpointError,
    Fp4DitError,
    MissingExtraError,
    OutOfMemoryError,
    UsageError,
    VerificationError,
)
from fp4dit_onnx.exporting.call import export

# ONNX Runtime from 1.32 on else writes an id into the home folder when it is imported, and sends events.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from fp4dit_onnx.bundle.bundle import Bundle
    from fp4dit_onnx.drop_in import load_transformer
    from fp4dit_onnx.exporting.in_memory import quantize
    from fp4dit_onnx.runtime.library import library_path
    from fp4dit_onnx.runtime.pipeline import Pipeline
    from fp4dit_onnx.runtime.session import session

    __version__: str

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Fp4DitError",
    "MissingExtraError",
    "OutOfMemoryError",
    "Pipeline",
    "UsageError",
    "VerificationError",
    "__version__",
    "export",
    "library_path",
    "load_transformer",
    "quantize",
    "session",
]

_HOMES = {
    "Bundle": "fp4dit_onnx.bundle.bundle",
    "Pipeline": "fp4dit_onnx.runtime.pipeline",
    "library_path": "fp4dit_onnx.runtime.library",
    "load_transformer": "fp4dit_onnx.drop_in",
    "quantize": "fp4dit_onnx.exporting.in_memory",
    "session": "fp4dit_onnx.runtime.session",
}
"""Where each name that is imported on first use lives."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fp4dit-onnx")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
