"""Other people's simplifiers leave a bundle's graph, bodies included, as it computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from fp4dit_onnx import ops
from fp4dit_onnx.runtime.library import library_path

ort = pytest.importorskip("onnxruntime")

Array = npt.NDArray[Any]


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    return gs.export_onnx(gs.import_onnx(model).fold_constants().cleanup().toposort())


def slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    result, same = onnxsim.simplify(model)
    assert same
    return result


TOOLS = {"onnx_graphsurgeon": folded, "onnxslim": slimmed, "onnxsim": simplified}


@pytest.fixture(params=TOOLS)
def rewritten(request: pytest.FixtureRequest, demo_bundle: Path) -> tuple[Any, Any]:
    """A bundle's transformer, and what a tool makes of it."""
    pytest.importorskip(request.param)
    model = onnx.load(demo_bundle / "transformer" / "model.onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' deprecations
        return model, TOOLS[request.param](copy)


def results(model: onnx.ModelProto, feed: dict[str, Array]) -> Iterator[Array]:
    """Without the library and with it."""
    for library in (False, True):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if library:
            options.register_custom_ops_library(str(library_path()))
        yield ort.InferenceSession(model.SerializeToString(), options).run(None, feed)[0]


def test_it_computes_the_same_with_the_library_and_without(
    rewritten: tuple[Any, Any], demo_feed: dict[str, Array], agree: Callable[..., None]
) -> None:
    model, other = rewritten
    assert {f.name for f in other.functions} == {f.name for f in model.functions}
    for found, wanted in zip(results(other, demo_feed), results(model, demo_feed), strict=True):
        agree(found, wanted, 1e-6)


@pytest.mark.parametrize("op", ops.OPERATORS)
def test_constants_of_bodies_are_typed(op: str) -> None:
    """But those that repeat an attribute of the node, which have no other form.

    graphsurgeon, which onnxslim contains, folds ``value_float`` to float64.
    """
    for node in ops.function(op).node:
        if node.op_type == "Constant" and not node.attribute[0].ref_attr_name:
            assert node.attribute[0].name == "value", node.output[0]
            assert onnx.numpy_helper.to_array(node.attribute[0].t).dtype in (np.float32, np.int64)
