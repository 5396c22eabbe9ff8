"""The models that a bundle needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.names import VAE_DECODER
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families import Family, family_of_pipeline

__all__ = ["family_in"]


def family_in(folder: Path, model_index: Mapping[str, Any]) -> Family:
    """The family of the bundle in `folder`.

    Raises:
        UsageError: it is not supported, or the bundle lacks a part besides the transformer.
    """
    name = str(model_index.get("_class_name"))
    family = family_of_pipeline(name, folder / "model_index.json")
    parts = (*family.encoders_of(model_index), VAE_DECODER)
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise UsageError(
            f"{folder} holds no {' and no '.join(missing)}, which generating images needs: run its "
            "transformer inside the diffusers pipeline with fp4dit_onnx.load_transformer, or export "
            "the whole pipeline"
        )
    return family
