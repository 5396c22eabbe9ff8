"""Diffusion transformers in 4-bit floating point: from diffusers to ONNX Runtime.

    import fp4dit_onnx
    fp4dit_onnx.export(output="bundle", bits="w4a6")           # needs the extra [export]
    fp4dit_onnx.Pipeline("bundle").generate(["a red apple"])   # needs ONNX Runtime only
    pipe.transformer = fp4dit_onnx.load_transformer("bundle")  # in any pipeline of diffusers

What `__all__` lists is imported on first use, so that running a bundle never imports torch.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fp4dit_onnx.errors import (
    BundleError,
    CheckpointError,
    Fp4DitError,
    MissingExtraError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from fp4dit_onnx.bundle import Bundle
    from fp4dit_onnx.drop_in import load_transformer
    from fp4dit_onnx.export import ExportResult
    from fp4dit_onnx.library import library_path
    from fp4dit_onnx.progress import Reporter
    from fp4dit_onnx.runtime.pipeline import Pipeline
    from fp4dit_onnx.runtime.session import session

    __version__: str

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Fp4DitError",
    "MissingExtraError",
    "Pipeline",
    "UsageError",
    "VerificationError",
    "__version__",
    "export",
    "library_path",
    "load_transformer",
    "session",
]

_HOMES = {
    "Bundle": "fp4dit_onnx.bundle",
    "Pipeline": "fp4dit_onnx.runtime.pipeline",
    "library_path": "fp4dit_onnx.library",
    "load_transformer": "fp4dit_onnx.drop_in",
    "session": "fp4dit_onnx.runtime.session",
}
"""Where each name that is imported on first use lives."""


def export(
    model: Path | str | None = None,
    output: Path | str | None = None,
    *,
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportResult:
    """Quantize a diffusers pipeline and write it as a bundle, as ``fp4dit-onnx export`` does.

    Args:
        model: pipeline folder; None is the embedded demo pipeline.
        output: the bundle's folder.
        reporter: told about progress.
        **options: further fields of `fp4dit_onnx.export.ExportRequest`, such as ``bits="w4a6"``.

    Returns:
        The bundle's folder, its manifest and the seconds it took.

    Raises:
        UsageError: no output, an unknown option, or a request that cannot be carried out.
    """
    from dataclasses import fields

    from fp4dit_onnx.export import ExportRequest
    from fp4dit_onnx.export import export as carry_out

    known = {field.name for field in fields(ExportRequest)} - {"model", "output"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(
            f"unknown option {unknown[0]!r}: expected one of {', '.join(sorted(known))}"
        )
    if output is None:
        raise UsageError("no output: expected the folder to write the bundle to; give output=DIR")
    source = None if model is None else Path(model)
    return carry_out(ExportRequest(output=Path(output), model=source, **options), reporter)


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


class _Package(ModuleType):
    """Keeps ``fp4dit_onnx.export`` the function when the submodule of that name is imported.

    The import system binds every submodule to its package; `from fp4dit_onnx.export import ...`
    finds it without that.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
