"""Float models with their products in int8, as ONNX Runtime's own tool makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from fp4dit_onnx.benchmark.backend import Absent, package
from fp4dit_onnx.benchmark.sessions import make_session
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.silence import quiet

__all__ = ["fold_constants", "quantized"]

QUANTIZED = ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
EXTERNAL_DATA = "session.optimized_model_external_initializers_file_name"
"""A file for the weights of the folded model, which may have more than the 2 GiB of one file."""


def quantized(source: Path, target: Path) -> Path:
    """Write `quantize_dynamic` of the float model `source` to `target`, whose folder is made.

    Raises:
        Absent: there is no product to quantize.
    """
    quantization = package("onnxruntime.quantization")
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent) as folder:
        folded = Path(folder, "folded.onnx")
        fold_constants(source, folded)
        with quiet():
            quantization.quantize_dynamic(
                folded,
                target,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                use_external_data_format=True,
            )
    graph = onnx.load(target, load_external_data=False).graph
    if not any(node.op_type in QUANTIZED for node in graph.node):
        raise Absent("quantize_dynamic found no product to quantize")
    return target


def fold_constants(source: Path, folded: Path) -> None:
    """Write `source` with the transposes of its weights carried out, as exporters leave them.

    quantize_dynamic takes products with a constant only, which a transposed weight is not before.
    """
    ort = package("onnxruntime")

    def configure(options: Any) -> None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.add_session_config_entry(EXTERNAL_DATA, f"{folded.name}.data")

    make_session(source, 1, configure=configure)
