"""The table of families."""

from pathlib import Path

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.families.dit import DIT
from fp4dit_onnx.runtime.families.family import Family
from fp4dit_onnx.runtime.families.flux import FLUX
from fp4dit_onnx.runtime.families.hunyuan import HUNYUAN_DIT
from fp4dit_onnx.runtime.families.pixart import PIXART
from fp4dit_onnx.runtime.families.sd3 import SD3

__all__ = ["FAMILIES", "family_of_pipeline"]

FAMILIES = (PIXART, HUNYUAN_DIT, DIT, SD3, FLUX)


def family_of_pipeline(pipeline_class: str, source: Path) -> Family:
    """The family of a pipeline.

    Args:
        pipeline_class: diffusers' class, or Optimum's ``ORT`` form of it.
        source: where it stands, for the message.

    Raises:
        UsageError: no family has it.
    """
    for family in FAMILIES:
        if pipeline_class.removeprefix("ORT") in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise UsageError(
        f"{source} names the pipeline {pipeline_class}: expected one of {known}; the transformer "
        "alone runs inside a diffusers pipeline with fp4dit_onnx.load_transformer"
    )
