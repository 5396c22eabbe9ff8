"""Diffusion-transformer families: what the tool must know of each, as data.

Adding a family is one file with a `Family` and one line in `FAMILIES`. No module here imports torch.
"""

from fp4dit_onnx.models.family import DYNAMIC, Family, InputSpec, Interface, family_of
from fp4dit_onnx.models.table import FAMILIES
from fp4dit_onnx.models.text import TEXT_ENCODERS, TextEncoder
from fp4dit_onnx.models.vae import older_vae_name

__all__ = [
    "DYNAMIC",
    "FAMILIES",
    "TEXT_ENCODERS",
    "Family",
    "InputSpec",
    "Interface",
    "TextEncoder",
    "family_of",
    "older_vae_name",
]
