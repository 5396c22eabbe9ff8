"""The table of families."""

from fp4dit_onnx.models.auraflow import AURAFLOW
from fp4dit_onnx.models.dit import DIT
from fp4dit_onnx.models.flux import FLUX
from fp4dit_onnx.models.hunyuan import HUNYUAN_DIT
from fp4dit_onnx.models.pixart import PIXART_ALPHA, PIXART_SIGMA
from fp4dit_onnx.models.sana import SANA
from fp4dit_onnx.models.sd3 import SD3

__all__ = ["FAMILIES"]

FAMILIES = (PIXART_ALPHA, PIXART_SIGMA, HUNYUAN_DIT, DIT, FLUX, SD3, AURAFLOW, SANA)
