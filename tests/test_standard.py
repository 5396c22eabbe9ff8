"""The target ``standard``: weights exactly the bundle's, in types that ONNX defines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from linear_models import FORMS, N, linear_model, own
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.numbers.formats import FORMATS, format_by_name
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.targets import convert, target_by_name
from fp4dit_onnx.targets.standard import HEADROOM, standard
from fp4dit_onnx.targets.weights import stored_weight, weight_type

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def standardized(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standard") / "bundle"
    return convert(demo_bundle, folder, target_by_name("standard")).bundle


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_weight_types_hold_every_value(name: str) -> None:
    fmt = format_by_name(name)
    if name in ("e3m4", "e5m2"):
        with pytest.raises(UsageError, match=f"weights of {name}: expected a format"):
            weight_type(fmt)
        return
    kind = weight_type(fmt)
    values = np.nan_to_num(fmt.grid, nan=0.0).astype(np.float32) / kind.step(fmt)
    assert np.array_equal(values.astype(kind.dtype).astype(np.float32), values)
    expected = {
        "e2m1": "FLOAT4E2M1",
        "e1m2": "INT4",
        "int4": "INT4",
        "int6": "INT8",
        "int8": "INT8",
    }
    assert kind.name == expected.get(name, "FLOAT8E4M3FN")


@pytest.mark.parametrize("k", [6, 7])
@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0", "int8"])
def test_stored_bytes_are_those_of_onnx(name: str, k: int) -> None:
    """Of ONNX's own writer; a row of odd length ends within a byte."""
    fmt = format_by_name(name)
    kind = weight_type(fmt)
    codes = np.random.default_rng(0).integers(0, 2**fmt.bits - 1, (5, k), np.uint8)
    codes[codes == 2 ** (fmt.bits - 1)] = 0  # an integer zero has one sign, and -128 is not a code
    values = numerics.decode(codes, fmt) / kind.step(fmt)
    expected = onnx.numpy_helper.from_array(values.astype(kind.dtype)).raw_data
    packed, scale = numerics.pack(codes, fmt.storage_bits), np.ones((5, 2), np.float16)
    assert stored_weight(packed, scale, k, fmt, 4).tobytes() == expected


def test_no_scale_is_zero() -> None:
    """TensorRT takes none; the group's weights are zeros whatever its codes."""
    scale = np.full((N, 3), 0.125, np.float16)
    scale[1, 2] = 0
    model, weight, _ = linear_model("e2m1", scale=scale)
    codes = next(t for t in model.graph.initializer if t.name == "l.weight.codes")
    stored = onnx.numpy_helper.to_array(codes).copy()
    stored[1, 8:10] = 0x25
    codes.CopyFrom(onnx.numpy_helper.from_array(stored, codes.name))
    made = standard(model, {})
    scales = next(t for t in made.graph.initializer if t.name == "l.weight_scale")
    assert (onnx.numpy_helper.to_array(scales) > 0).all()
    x = np.eye(20, dtype=np.float32)
    bias = ReferenceEvaluator(made).run(None, {"x": 0 * x})[0]
    assert np.abs(ReferenceEvaluator(made).run(None, {"x": x})[0] - bias - weight.T).max() < 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0", "int4", "int8"])
def test_a_linear_is_the_exact_one_in_the_reference(name: str, form: str) -> None:
    """With activations in float: y = x W^T + bias for exactly the bundle's W."""
    model, weight, bias = linear_model(name, form=form)
    made = standard(model, {})
    onnx.checker.check_model(made, full_check=True)
    assert "QuantizeLinear" not in {node.op_type for node in made.graph.node}
    shape, x = weight.shape, np.random.default_rng(2).standard_normal((3, 20)).astype(np.float32)
    made.graph.output.append(
        onnx.helper.make_tensor_value_info("l/weight", onnx.TensorProto.FLOAT, shape)
    )
    y, dequantized = ReferenceEvaluator(made).run(None, {"x": x})
    assert np.array_equal(dequantized, weight)
    products = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    bound = (shape[1] + 1) * np.finfo(np.float32).eps * (products + np.abs(bias))
    exact = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    assert (np.abs(y - exact) <= bound).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["e2m3", "e4m3"])
def test_activations_pass_float8_with_a_constant_scale(activation: str, form: str) -> None:
    model, weight, bias = linear_model("e2m1", activation, form)
    made = standard(model, {"x": 4.0})
    x = np.random.default_rng(3).uniform(-4, 4, (5, 20)).astype(np.float32)
    y = ReferenceEvaluator(made).run(None, {"x": x})[0]
    scale = np.float32(HEADROOM * 4.0 / 448.0)
    fmt = format_by_name("e4m3")
    grid = numerics.round_to_grid((x / scale) * np.float32(fmt.unit), fmt) / fmt.unit
    expected = (grid * scale) @ weight.T + bias
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    other = ReferenceEvaluator(standard(model, {"x": 1.0})).run(None, {"x": x})[0]
    assert np.abs(other - expected).max() > 0.1  # what is larger than the range is cut off


def test_one_pair_where_layers_quantize_a_value_differently() -> None:
    """Two of our quantizers of one value, e2m3 and e4m3, are one of e4m3."""
    model, _, _ = linear_model("e2m1")
    act = format_by_name("e4m3")
    model.graph.node.extend(
        [
            own(ops.quantize_op(act), "x", "q2 s2", "m/Quantize", **ops.quantize_attributes(act)),
            own(ops.DEQUANTIZE, "q2 s2", "x2", **ops.dequantize_attributes(act, 20)),
            own("Identity", "x2", "z"),
        ]
    )
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["rows", 20])
    )
    made = standard(model, {"x": 4.0})
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node].count("QuantizeLinear") == 1
    x = np.random.default_rng(4).uniform(-4, 4, (2, 20)).astype(np.float32)
    _, z = ReferenceEvaluator(made).run(None, {"x": x})
    assert 0 < np.abs(z - x).max() <= 4 / 16


def test_an_unknown_operator_is_named() -> None:
    model, _, _ = linear_model("e2m1")
    model.graph.node[1].op_type = "FpNew"
    with pytest.raises(UsageError, match="node l is of type FpNew, which has no standard form"):
        standard(model, {})


def test_the_standard_bundle_in_the_reference(
    standardized: Path, demo_bundle: Path, demo_feed: dict[str, Array]
) -> None:
    """Checked, and as far from the bundle as e4m3 and e2m3 activations are: 32 to 33 dB here."""
    path = standardized / "transformer" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert {onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.FLOAT8E4M3FN} <= kinds
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23)}
    found = ReferenceEvaluator(model).run(None, dict(demo_feed))[0]
    inner = session(demo_bundle / "transformer" / "model.onnx", library=False, threads=1)
    assert 25 < sqnr_db(inner.run(None, demo_feed)[0], found) < 50


def test_nothing_of_the_search_for_ranges_stays(standardized: Path) -> None:
    left = {path.name for path in (standardized / "transformer").iterdir()}
    assert left == {"config.json", "model.onnx", "model.onnx.data"}


def test_float_activations_have_no_ranges(drawable: Callable[..., Path], tmp_path: Path) -> None:
    found = convert(drawable("w4a16"), tmp_path / "standard", target_by_name("standard"))
    facts = found.manifest.converted["transformer"]
    assert (facts.activations, facts.ranges) == ("float", {})


def test_ranges_are_in_the_manifest(standardized: Path) -> None:
    facts = Bundle.open(standardized).manifest.converted["transformer"]
    assert facts.activations.startswith("e4m3, ranges of")
    assert all(0 < value < 1e4 for value in facts.ranges.values())
    assert len(facts.ranges) == 55


def test_a_runtime_without_the_types_is_told(standardized: Path) -> None:
    with pytest.raises(BundleError, match="it has no kernel for DequantizeLinear of these types"):
        Pipeline(standardized, library=False)
