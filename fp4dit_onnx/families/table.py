"""The table of families, and look-ups in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.families.auraflow import AURAFLOW
from fp4dit_onnx.families.config import Config, count_of
from fp4dit_onnx.families.dit import DIT
from fp4dit_onnx.families.family import Family
from fp4dit_onnx.families.flux import FLUX
from fp4dit_onnx.families.flux2 import FLUX2_KLEIN
from fp4dit_onnx.families.hunyuan import HUNYUAN_DIT
from fp4dit_onnx.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from fp4dit_onnx.families.sana import SANA
from fp4dit_onnx.families.sd3 import SD3
from fp4dit_onnx.families.z_image import Z_IMAGE

__all__ = [
    "FAMILIES",
    "current_class",
    "family_of",
    "family_of_pipeline",
    "find_family",
    "largest_side",
    "renamed_classes",
]

FAMILIES: list[Family] = [
    PIXART_ALPHA,
    PIXART_SIGMA,
    HUNYUAN_DIT,
    DIT,
    FLUX,
    SD3,
    AURAFLOW,
    SANA,
    Z_IMAGE,
    FLUX2_KLEIN,
]


def find_family(pipeline_class: str) -> Family | None:
    """The family of a pipeline of diffusers, None where no record has it."""
    return next((family for family in FAMILIES if pipeline_class in family.pipelines), None)


def family_of(pipeline_class: str, transformer_class: str) -> Family:
    """The family of a pipeline.

    Raises:
        CheckpointError: the pipeline or its transformer is of no known family.
    """
    found = find_family(pipeline_class)
    if found is not None and found.transformer == transformer_class:
        return found
    known = ", ".join(p for family in FAMILIES for p in family.pipelines)
    raise CheckpointError(
        f"no known model family: found pipeline {pipeline_class} with transformer "
        f"{transformer_class}, expected one of {known}"
    )


def family_of_pipeline(pipeline_class: str, source: Path) -> Family:
    """The family of a pipeline that images are generated with.

    Args:
        pipeline_class: diffusers' class, or Optimum's ``ORT`` form of it.
        source: where it stands, for the message.

    Raises:
        UsageError: no family has it, or not all of its inputs are known.
    """
    found = find_family(pipeline_class.removeprefix("ORT"))
    if found is not None and found.generates:
        return found
    known = ", ".join(p for family in FAMILIES if family.generates for p in family.pipelines)
    raise UsageError(
        f"{source} names the pipeline {pipeline_class}: expected one of {known}; the transformer "
        "alone runs inside a diffusers pipeline with fp4dit_onnx.load_transformer"
    )


def renamed_classes(class_name: str) -> Mapping[str, str]:
    """What an older transformer class of diffusers is called today, by its config's ``norm_type``."""
    older = [(f.older, f.transformer) for f in FAMILIES]
    return {pair[1]: new for pair, new in older if pair is not None and pair[0] == class_name}


def current_class(class_name: str, config: Config) -> str:
    """What diffusers calls `class_name` today; the class itself where it was not renamed.

    Args:
        class_name: as model_index.json or config.json has it.
        config: the component's; its ``norm_type`` tells which class an older one became.
    """
    renamed, norm_type = renamed_classes(class_name), config.get("norm_type")
    if renamed and norm_type is None:
        own = str(config.get("_class_name"))
        return own if own in renamed.values() else class_name
    return renamed.get(norm_type, class_name) if isinstance(norm_type, str) else class_name


def largest_side(config: Config) -> int | None:
    """Latents along a side that the stored positions of a transformer reach; None for any number.

    Args:
        config: the transformer's config.json.

    Raises:
        UsageError: a size in it is not a whole number from 1.
    """
    own = config.get("_class_name")
    family = next((family for family in FAMILIES if family.transformer == own), None)
    grid = None if family is None else family.largest_grid(config)
    return None if grid is None else grid * count_of(config, "patch_size", 2)
