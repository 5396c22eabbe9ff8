"""What a bundle's graphs may be made of, for runtimes that differ in what they know.

Adding a target is one file with a `Target` and one line in `TARGETS`.
"""

from fp4dit_onnx.targets.conversion import Conversion, convert, convert_in_place, rewritable
from fp4dit_onnx.targets.table import TARGETS, target_by_name
from fp4dit_onnx.targets.target import DEFAULT_TARGET, Target

__all__ = [
    "DEFAULT_TARGET",
    "TARGETS",
    "Conversion",
    "Target",
    "convert",
    "convert_in_place",
    "rewritable",
    "target_by_name",
]
