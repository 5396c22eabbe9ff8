"""Diffusion-transformer families: what the tool must know of each, as data.

Adding a family is one file with a `Family` and one line in `FAMILIES`. No module here imports torch.
"""

from fp4dit_onnx.models.family import Family, InputSpec, family_of
from fp4dit_onnx.models.table import FAMILIES

__all__ = ["FAMILIES", "Family", "InputSpec", "family_of"]
