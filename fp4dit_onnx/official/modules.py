"""Modules of official configurations, without weights."""

from __future__ import annotations

from typing import Any

from fp4dit_onnx.errors import MissingExtraError
from fp4dit_onnx.official.parts import Part
from fp4dit_onnx.system.silence import quiet

__all__ = ["meta_model"]


def meta_model(part: Part, *, twin: bool) -> Any:
    """The torch module of a component, on the meta device: shapes without values.

    Args:
        part: with weights, of a pipeline of `models.MODELS`.
        twin: the small one.

    Raises:
        MissingExtraError: torch, diffusers or transformers is not installed.
    """
    values = {**part.config, **(part.twin if twin else {})}
    try:
        with quiet():
            import torch

            if part.library == "diffusers":
                import diffusers

                with torch.device("meta"):
                    return getattr(diffusers, part.class_name)(**values)
            import transformers

            cls = getattr(transformers, part.class_name)
            with torch.device("meta"):
                return cls(cls.config_class(**values))
    except ImportError as cause:
        raise MissingExtraError(cause.name or "diffusers", "export") from cause
