"""From a torch transformer, weights and all, to one float ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from fp4dit_onnx.families import Family
from fp4dit_onnx.tracing.trace import trace

__all__ = ["export_float"]


def export_float(network: Any, family: Family, config: Mapping[str, Any]) -> onnx.ModelProto:
    """Trace `network` (eval mode, float32) into ONNX as a whole, weights included, up to 2 GiB.

    Returns:
        A model whose initializers are named like the torch parameters, and whose nodes are named
        after the module that they come from.

    Raises:
        Fp4DitError: torch cannot trace the network, or not convert what it traced.
    """
    return trace(network, replace(family.interface(config), blocks={}), config).shell
