"""Models of one operator of ours, run by what knows its body alone, against its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import ops
from fp4dit_onnx.numbers.compare import same_bits, within
from fp4dit_onnx.runtime.library import library_path

Array = npt.NDArray[Any]
Run = Callable[[onnx.ModelProto, Mapping[str, Array]], list[Array]]


def _element(dtype: npt.DTypeLike) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def one_operator(op: str, attributes: Mapping[str, Any], *inputs: Array) -> onnx.ModelProto:
    """A model of one node: inputs of these types and shapes, outputs typed alone."""
    body, results = ops.function(op), ops.OPERATORS[op].results
    graph = helper.make_graph(
        [
            helper.make_node(
                op, list(body.input), list(body.output), domain=ops.DOMAIN, **attributes
            )
        ],
        op,
        [
            helper.make_tensor_value_info(name, _element(value.dtype), value.shape)
            for name, value in zip(body.input, inputs, strict=True)
        ],
        [
            helper.make_tensor_value_info(name, _element(dtype), None)
            for name, dtype in zip(body.output, results, strict=True)
        ],
    )
    imports = [helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = helper.make_model(graph, ir_version=ops.IR_VERSION, opset_imports=imports)
    ops.attach_functions(model)
    return model


def run_ort(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """ONNX Runtime without the library."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feed)))


def run_library(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """ONNX Runtime with the library."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feed)))


def run_reference(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """ONNX's own evaluator, which is numpy: rows with NaN make it warn."""
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, dict(feed)))


def agrees(run: Run, op: str, attributes: Mapping[str, Any], *inputs: Array) -> list[Array]:
    """The reference's results, which are the library's bit for bit, the body's to the record's bound."""
    record, model = ops.OPERATORS[op], one_operator(op, attributes, *inputs)
    with np.errstate(all="ignore"):
        wanted = record.reference(attributes, inputs)
    found = run(model, dict(zip(ops.function(op).input, inputs, strict=True)))
    bound = None
    if record.bound is not None and run is not run_library:
        bound = record.bound(attributes, inputs)
    for reference, own in zip(wanted, found, strict=True):
        outcome = same_bits(reference, own) if bound is None else within(reference, own, bound)
        assert outcome.ok, outcome.detail
        if bound is not None and own.shape[-1] > 1:
            assert not within(reference, np.roll(own, 1, axis=-1), bound).ok
    return list(wanted)
