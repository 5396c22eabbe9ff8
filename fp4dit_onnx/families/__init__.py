"""Families of diffusion transformers: a record each, and the parts that pipelines share, as data.

Adding a family is one file with a `Family` and one line in `table.FAMILIES`. No module here imports
torch, and none imports what samples, traces or calibrates: those ask the record.
"""

from fp4dit_onnx.families.family import Family
from fp4dit_onnx.families.interface import DYNAMIC, InputSpec, Interface
from fp4dit_onnx.families.table import FAMILIES, family_of, family_of_pipeline

__all__ = [
    "DYNAMIC",
    "FAMILIES",
    "Family",
    "InputSpec",
    "Interface",
    "family_of",
    "family_of_pipeline",
]
