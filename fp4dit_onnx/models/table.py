"""The table of families."""

from fp4dit_onnx.models.pixart import PIXART_ALPHA, PIXART_SIGMA

__all__ = ["FAMILIES"]

FAMILIES = (PIXART_ALPHA, PIXART_SIGMA)
