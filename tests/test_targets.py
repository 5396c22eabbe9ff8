"""Bundles for other runtimes: bodies inlined, and standard types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import numerics, ops
from fp4dit_onnx.bundle import Bundle
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.export import ExportRequest, plan
from fp4dit_onnx.formats import FORMATS, format_by_name
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.targets import capability, convert, target_by_name
from fp4dit_onnx.targets.capability import capabilities
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.targets.standard import standard, weight_type
from fp4dit_onnx.verify import verify

Array = npt.NDArray[Any]
SIZES = {"batch": 2, "text": 5, "height": 8, "width": 8}
N, K, GROUP = 6, 20, 8


def feed_of(model: onnx.ModelProto) -> dict[str, Array]:
    """Inputs of the demo's transformer."""
    rng, feed = np.random.default_rng(0), {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value or SIZES[d.dim_param] for d in dims]
        feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    feed["timestep"] = np.full(2, 500, np.float32)
    feed["encoder_attention_mask"] = np.ones((2, 5), np.int64)
    return feed


def run(path: Path, feed: Mapping[str, Array]) -> Array:
    found: Array = session(path, library=False, threads=1).run(None, dict(feed))[0]
    return found


def linear_model(weight_format: str) -> tuple[onnx.ModelProto, Array, Array]:
    """A quantized linear; its weights as float32 [N, K] and the bias [N]."""
    act, fmt = format_by_name("e2m3"), format_by_name(weight_format)
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((N, K)).astype(np.float32)
    scale = np.full((N, -(-K // GROUP)), 0.0625, np.float16)
    scale *= 1 + np.arange(N, dtype=np.float16)[:, None] % 3
    codes = numerics.quantize_groups(weight, scale.astype(np.float32), fmt, GROUP)
    q = numerics.decode(codes, fmt)
    packed = numerics.pack(codes, fmt.storage_bits)
    bias = rng.standard_normal(N).astype(np.float32)
    constants = {
        "l.weight.codes": packed,
        "l.weight.scale": scale,
        "l.bias": bias,
    }
    nodes = [
        onnx.helper.make_node(
            ops.quantize_op(act),
            ["x"],
            ["l.input.q", "l.input.scale"],
            "l.input/Quantize",
            domain=ops.DOMAIN,
            **ops.quantize_attributes(act),
        ),
        onnx.helper.make_node(
            ops.LINEAR,
            ["l.input.q", "l.input.scale", *constants],
            ["y"],
            "l",
            domain=ops.DOMAIN,
            **ops.linear_attributes(act, fmt, K, GROUP),
        ),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [value("x", onnx.TensorProto.FLOAT, ["rows", K])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", N])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", ops.OPSET)]
    opsets.append(onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION))
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ops.IR_VERSION)
    ops.attach_functions(model)
    return model, numerics.dequantize(q, scale.astype(np.float32), GROUP), bias


@pytest.fixture(scope="module")
def inlined(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inline") / "bundle"
    return convert(demo_bundle, folder, target_by_name("inline")).bundle


@pytest.fixture(scope="module")
def standardized(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standard") / "bundle"
    return convert(demo_bundle, folder, target_by_name("standard")).bundle


def test_inlined_has_standard_operators_only(inlined: Path) -> None:
    model = onnx.load(inlined / "transformer" / "model.onnx", load_external_data=False)
    assert not model.functions
    assert [(o.domain, o.version) for o in model.opset_import] == [("", ops.OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "transformer_blocks.3.ff.net.0.proj/y" in names
    onnx.checker.check_model(inlined / "transformer" / "model.onnx", full_check=True)


def test_inlined_computes_the_same_bits(inlined: Path, demo_bundle: Path) -> None:
    path = demo_bundle / "transformer" / "model.onnx"
    feed = feed_of(onnx.load(path, load_external_data=False))
    expected = run(path, feed)
    assert np.array_equal(run(inlined / "transformer" / "model.onnx", feed), expected)
    feed["timestep"] = feed["timestep"] + 1  # the comparison sees a difference
    assert not np.array_equal(run(inlined / "transformer" / "model.onnx", feed), expected)


def test_notes_stay_with_the_layer(inlined: Path) -> None:
    model = onnx.load(inlined / "transformer" / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name == "transformer_blocks.0.attn1.to_q/y")
    assert "weight SQNR" in {entry.key for entry in node.metadata_props}


def test_an_inlined_bundle_draws(inlined: Path) -> None:
    manifest = Bundle.open(inlined).manifest
    assert manifest["target"] == "inline"
    Bundle.open(inlined).check_files(deep=True)
    picture = Pipeline(inlined, library=False).generate(["tiger face"], steps=2)[0]
    assert picture.size == (64, 64)


def test_constants_are_shared(demo_bundle: Path) -> None:
    path = demo_bundle / "transformer" / "model.onnx"
    model = inline(onnx.load(path, load_external_data=False))
    assert "Constant" not in {node.op_type for node in model.graph.node}
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(set(names)) == len(names)
    limits = [t for t in model.graph.initializer if t.name.startswith("limit")]
    assert len(limits) == 1  # every quantizer of the demo is e2m3


def test_a_model_is_not_changed_by_inlining(demo_bundle: Path) -> None:
    model = onnx.load(demo_bundle / "transformer" / "model.onnx", load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    inline(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_weight_types_hold_every_value(name: str) -> None:
    fmt = format_by_name(name)
    values = (np.nan_to_num(fmt.grid, nan=0.0) / fmt.unit).astype(np.float32)
    if name in ("e3m4", "e5m2"):
        with pytest.raises(UsageError, match=f"weights of {name}: expected a format"):
            weight_type(fmt)
        return
    dtype = np.dtype(weight_type(fmt))
    assert np.array_equal(values.astype(dtype).astype(np.float32), values)
    assert (dtype.name == "float4_e2m1fn") == (name == "e2m1")


@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0", "int4", "int8"])
def test_a_standard_linear_is_the_exact_one_in_the_reference(name: str) -> None:
    """With activations in float: y = x W^T + bias for exactly the bundle's W."""
    model, weight, bias = linear_model(name)
    made = standard(model, {})
    onnx.checker.check_model(made, full_check=True)
    made.graph.output.append(
        onnx.helper.make_tensor_value_info("l/weight", onnx.TensorProto.FLOAT, [N, K])
    )
    x = np.random.default_rng(2).standard_normal((3, K)).astype(np.float32)
    y, dequantized = ReferenceEvaluator(made).run(None, {"x": x})
    assert np.array_equal(dequantized, weight)
    products = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    bound = (K + 1) * np.finfo(np.float32).eps * (products + np.abs(bias))
    exact = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    assert (np.abs(y - exact) <= bound).all()


def test_activations_pass_float8_with_a_constant_scale() -> None:
    model, weight, bias = linear_model("e2m1")
    made = standard(model, {"x": 4.0})
    x = np.random.default_rng(3).uniform(-4, 4, (5, K)).astype(np.float32)
    y = ReferenceEvaluator(made).run(None, {"x": x})[0]
    scale = np.float32(4.0 / 448.0)
    fmt = format_by_name("e4m3")
    grid = numerics.round_to_grid((x / scale) * np.float32(fmt.unit), fmt) / fmt.unit
    expected = (grid * scale) @ weight.T + bias
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    other = ReferenceEvaluator(standard(model, {"x": 2.0})).run(None, {"x": x})[0]
    assert np.abs(other - expected).max() > 0.1  # what is larger than the range is cut off


def test_the_standard_bundle_in_the_reference(standardized: Path, demo_bundle: Path) -> None:
    """Checked, and near the float model as e4m3 activations are: within 3 dB of e2m3's distance."""
    path = standardized / "transformer" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert {onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.FLOAT8E4M3FN} <= kinds
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23)}
    feed = feed_of(model)
    found = ReferenceEvaluator(model).run(None, dict(feed))[0]
    expected = run(demo_bundle / "transformer" / "model.onnx", feed)
    noise = ((found - expected) ** 2).sum() / (expected**2).sum()
    assert 15 < -10 * np.log10(noise) < 60


def test_ranges_are_in_the_manifest(standardized: Path) -> None:
    facts = Bundle.open(standardized).manifest["converted"]["transformer"]
    assert facts["activations"].startswith("e4m3, ranges of")
    assert all(0 < value < 1e4 for value in facts["ranges"].values())
    assert len(facts["ranges"]) == 55


def test_a_runtime_without_the_types_is_told(standardized: Path) -> None:
    with pytest.raises(BundleError, match="it has no kernel for DequantizeLinear of these types"):
        Pipeline(standardized, library=False)


def test_refusals(inlined: Path, demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for the target inline already"):
        convert(inlined, tmp_path / "again", target_by_name("standard"))
    with pytest.raises(UsageError, match="target 'tensorrt': expected one of inline, standard"):
        target_by_name("tensorrt")
    with pytest.raises(BundleError, match="is for the target inline: expected a bundle of our"):
        verify(inlined)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        convert(demo_bundle, taken, target_by_name("inline"))
    altered = shutil.copytree(demo_bundle, tmp_path / "altered")
    data = altered / "transformer" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="has sha256"):
        convert(altered, tmp_path / "never", target_by_name("inline"))
    assert not (tmp_path / "never").exists()


def test_an_export_is_refused_before_it_begins(tmp_path: Path) -> None:
    request = ExportRequest(tmp_path / "b", method="fp-rtn", target="standard", form="qdq")
    with pytest.raises(UsageError, match="expected a bundle of the form fused"):
        plan(request)
    request = ExportRequest(
        tmp_path / "b", bits="w8a8", method="fp-rtn", target="standard", weight_format="e3m4"
    )
    with pytest.raises(UsageError, match="weights of e3m4"):
        plan(request)
    with pytest.raises(UsageError, match="target 'onnx'"):
        plan(ExportRequest(tmp_path / "b", method="fp-rtn", target="onnx"))


def test_export_inlines_by_itself(tmp_path: Path) -> None:
    from fp4dit_onnx.export import export

    request = ExportRequest(
        tmp_path / "bundle",
        method="fp-rtn",
        components="transformer",
        measure=False,
        target="inline",
    )
    export(request)
    manifest = json.loads((tmp_path / "bundle" / "quantization.json").read_text())
    assert manifest["target"] == "inline"
    Bundle.open(tmp_path / "bundle").check_files(deep=True)
    model = onnx.load(tmp_path / "bundle/transformer/model.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}


def test_capabilities_tell_targets_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = linear_model("e2m1")
    found = capabilities(model)["onnxruntime"]
    assert (found["fp4dit"], found["inline"]) == ("", "")
    assert "DequantizeLinear" in found["standard"]

    def refuse(model: bytes) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(capability, "RUNTIMES", {"onnxruntime": refuse, "no_such_module": refuse})
    assert capabilities(model) == {
        "onnxruntime": dict.fromkeys(("fp4dit", "inline", "standard"), "first line")
    }
