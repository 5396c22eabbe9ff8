"""Which prompts a bundle is evaluated on."""

from __future__ import annotations

from pathlib import Path

from fp4dit_onnx.families.table import find_family
from fp4dit_onnx.files import CHECKPOINT, read_json
from fp4dit_onnx.prompts import demo_prompts, general_prompts, read_prompts

__all__ = ["evaluation_prompts"]


def evaluation_prompts(file: Path | None, model: Path | None, count: int) -> list[str]:
    """The first `count` of a file, else the demo's where `model` is None, else of its family's."""
    if file is not None:
        return read_prompts(file)[:count]
    if model is None:
        return demo_prompts("evaluation")[:count]
    index = read_json(model / "model_index.json", "the list of components", CHECKPOINT)
    family = find_family(str(index.get("_class_name")))
    return list(family.prompts if family else general_prompts())[:count]
