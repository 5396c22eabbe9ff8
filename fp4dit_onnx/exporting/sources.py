"""The pipeline folder that an export reads, whatever it is given."""

from __future__ import annotations

from dataclasses import fields, replace

from fp4dit_onnx.checkpoint.assembling import assembled
from fp4dit_onnx.checkpoint.single_file import is_single_file
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.exporting.source_options import SourceOptions

__all__ = ["with_folder"]

PARTS = tuple(field.name for field in fields(SourceOptions))


def with_folder(request: ExportRequest) -> ExportRequest:
    """The request with a pipeline folder for its model, where that is one file.

    Raises:
        UsageError: parts are given for a model that has its own; see `assembled`.
    """
    parts = {name: getattr(request, name) for name in PARTS}
    if request.model is not None and is_single_file(request.model):
        folder = assembled(request.model, **parts)
        return replace(request, model=folder, config=None, text_encoder=None, vae=None)
    for name, given in parts.items():
        if given is not None:
            raise UsageError(
                f"{name} {given}: expected with a transformer in one file; a pipeline folder has its "
                f"own: leave out --{name.replace('_', '-')}"
            )
    return request
