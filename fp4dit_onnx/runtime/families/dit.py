"""DiT: pictures of a class, which a prompt names or numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.files import BUNDLE, checked
from fp4dit_onnx.runtime.families.family import Encode, Family, Feed, Request

__all__ = ["DIT"]

_NUMBER = re.compile(r"[0-9]{1,9}")
CLASSES = 1000
"""Where the transformer's config does not say; the class after the last one is none at all."""


@dataclass(frozen=True)
class _Index:
    """What model_index.json says of classes: names, with commas, by number."""

    id2label: Mapping[str, str] | None = None


def _labels(request: Request) -> dict[str, int]:
    """Class numbers by name; a class of several names, such as "tench, Tinca tinca", has each."""
    names = checked(_Index, request.model_index, "model_index.json", BUNDLE).id2label or {}
    wrong = [number for number in names if not _NUMBER.fullmatch(number)]
    if wrong:
        raise BundleError(f"model_index.json: id2label.{wrong[0][:20]} is no number of a class")
    return {
        name.strip(): int(number) for number, text in names.items() for name in text.split(",")
    }


def _classes(request: Request) -> int:
    return int(request.transformer_config.get("num_embeds_ada_norm") or CLASSES)


def _class_of(prompt: str, labels: dict[str, int], classes: int) -> int:
    """The class that `prompt` names or numbers."""
    name = prompt.strip()
    if name in labels:
        return labels[name]
    if _NUMBER.fullmatch(name) and int(name) < classes:
        return int(name)
    near = difflib.get_close_matches(name, labels, 3, 0.5)
    hint = f", such as {' or '.join(map(repr, near))}" if near else ""
    expected = f"a number from 0 to {classes - 1}"
    expected += f" or a name of id2label in model_index.json{hint}" if labels else ""
    raise UsageError(f"no class {prompt!r}: expected {expected}")


def _class_labels(request: Request) -> list[int]:
    labels, classes = _labels(request), _classes(request)
    return [_class_of(prompt, labels, classes) for prompt in request.prompts]


def _check(request: Request) -> None:
    if request.negative_prompt:
        raise UsageError(
            f"negative prompt {request.negative_prompt!r}: this model draws classes and leads "
            "away from none; leave it out"
        )
    _class_labels(request)


def _conditions(request: Request, encode: Encode) -> Feed:
    labels = _class_labels(request)
    if request.guided:
        labels += [_classes(request)] * len(labels)
    return {"class_labels": np.array(labels, np.int64)}


DIT = Family(
    pipelines=("DiTPipeline",),
    conditions=_conditions,
    encoders=(),
    timestep=np.int64,
    negative_first=False,
    examples=("0", "1", "2", "3"),
    check=_check,
)
