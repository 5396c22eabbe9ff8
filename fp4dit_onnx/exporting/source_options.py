"""Options of an export that say where the model lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fp4dit_onnx.exporting.options import INPUT, Option

__all__ = ["SourceOptions"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Each field's option says what it is."""

    config: Annotated[
        str | None,
        Option(
            "Configuration of a transformer in one file: a pipeline folder, whose other parts are "
            "used too, or the name of an official model, such as flux-dev; by default the official "
            "model that the file's tensors fit.",
            INPUT,
            unit="DIR|NAME",
        ),
    ] = None
    text_encoder: Annotated[
        Path | None,
        Option(
            "Folder with text encoders and tokenizers for a transformer in one file: a pipeline's, or "
            "one of text_encoder.",
            INPUT,
            unit="DIR",
        ),
    ] = None
    vae: Annotated[
        Path | None,
        Option(
            "Folder with the VAE for a transformer in one file: a pipeline's, or one of vae.",
            INPUT,
            unit="DIR",
        ),
    ] = None
