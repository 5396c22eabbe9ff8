"""A bundle of a pipeline of diffusers that is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.call import export
from fp4dit_onnx.system.outputs import scratch_folder

if TYPE_CHECKING:
    from fp4dit_onnx.exporting.export import ExportResult

__all__ = ["quantize"]


def quantize(pipe: Any, output: Path | str, **options: Any) -> ExportResult:
    """Quantize a pipeline of diffusers and write it as a bundle.

    Its weights are written to a temporary folder first, as safetensors in their own types, because an
    export reads tensor by tensor; the environment's ``TMPDIR`` says where.

    Args:
        pipe: with all its parts; a LoRA is to be fused before. It stays as it is.
        output: folder of the bundle.
        options: those of `export` beside its model.

    Raises:
        UsageError: no pipeline with a transformer that has weights; or see `export`.
    """
    transformer = getattr(pipe, "transformer", None)
    if transformer is None or not hasattr(pipe, "save_pretrained"):
        raise UsageError(
            f"quantize was given a {type(pipe).__name__}: expected a pipeline of diffusers that has a "
            "transformer; fp4dit_onnx.export takes the path of one"
        )
    if next(iter(transformer.parameters()), None) is None:
        raise UsageError(
            "the pipeline's transformer has no weights, as one of load_transformer has none: give the "
            "pipeline with its float transformer"
        )
    from fp4dit_onnx.system.silence import quiet

    known = Path(str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)).name
    with scratch_folder() as place:
        folder = Path(place) / known
        with quiet():
            pipe.save_pretrained(folder, safe_serialization=True)
        return export(folder, output, **options)
