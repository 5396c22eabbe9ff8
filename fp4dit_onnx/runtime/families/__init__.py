"""What differs between the pipelines of diffusers, as data and a function or two for each.

Adding a family is one file with a `Family` and one line in `FAMILIES`.
"""

from fp4dit_onnx.runtime.families.family import (
    Encoded,
    Family,
    Request,
    Text,
    has_component,
    tokenizer_of,
)
from fp4dit_onnx.runtime.families.table import FAMILIES, family_of_pipeline

__all__ = [
    "FAMILIES",
    "Encoded",
    "Family",
    "Request",
    "Text",
    "family_of_pipeline",
    "has_component",
    "tokenizer_of",
]
