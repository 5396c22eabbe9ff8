"""Layers with rotations, group scales of activations, candidates and multipliers, through the passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.probe import read_state
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.hadamard import hadamard
from fp4dit_onnx.numbers.scale_formats import MULTIPLIED
from fp4dit_onnx.passes.fuse_linear import FuseLinear
from fp4dit_onnx.passes.fuse_transform import FuseTransform
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.pack_weights import PackWeights
from fp4dit_onnx.passes.pipeline import run_passes
from fp4dit_onnx.spec.affine import Affine
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import Layout, QuantizedLayer, QuantizedState, load_state, save_state
from fp4dit_onnx.spec.vector import Vector
from fp4dit_onnx.targets.standard import standard

Array = npt.NDArray[Any]
K, N = 20, 12
FUSED = (FuseTransform(Hadamard), FuseLinear())

TURNED = (Hadamard(8),)
BALANCED = Diagonal("fc", Vector(np.linspace(0.3, 3, K, dtype=np.float32)))
MIXED = Affine("fc", Vector(np.eye(K, dtype=np.float32) + 0.02 * np.tri(K, dtype=np.float32)))
SPECS = {
    "T6": LayerSpec.of("e2m1", "e2m3", 8, MULTIPLIED, input_ops=TURNED),
    "T6g": LayerSpec.of("e1m2", "int6", 8, MULTIPLIED, activation_group_size=16, input_ops=TURNED),
    "T4": LayerSpec.of("e1m2", "e2m1", 8, MULTIPLIED, 4),
    "groups": LayerSpec.of("e2m1", "int6", 8, activation_group_size=4),
    "constant": LayerSpec.of("e2m1", "int8", 8, MULTIPLIED, largest=0.7),
    "constant, turned": LayerSpec.of("e2m1", "e3m4", 8, input_ops=TURNED, largest=3),
    "float": LayerSpec.of("e2m1", None, 8, input_ops=(Hadamard(4),)),
    "wide": LayerSpec.of("e2m1", "e3m4", 8, input_ops=(Hadamard(4),)),
    "balanced": LayerSpec.of("e2m1", "int6", 8, input_ops=(BALANCED,)),
    "both": LayerSpec.of("e2m1", "int6", 8, input_ops=(BALANCED, *TURNED)),
    "weight": LayerSpec.of("e2m1", None, 8, input_ops=(BALANCED,)),
    "mixed": LayerSpec.of("e2m1", "int6", 8, input_ops=(MIXED, *TURNED)),
}
NODES = {
    "T6": [ops.HADAMARD_QUANTIZE, ops.LINEAR_INTEGER],
    "T6g": [ops.HADAMARD_QUANTIZE, ops.LINEAR_INTEGER],
    "T4": ["FpQuantize", ops.LINEAR_INTEGER],
    "groups": ["FpQuantize", ops.LINEAR],
    "constant": ["FpQuantizeStatic", ops.LINEAR_INTEGER],
    "constant, turned": [ops.HADAMARD, "FpQuantizeStaticInt16", ops.LINEAR],
    "float": [ops.HADAMARD, ops.LINEAR],
    "wide": [ops.HADAMARD, "FpQuantizeInt16", ops.LINEAR],
    "balanced": ["Mul", "FpQuantize", ops.LINEAR],
    "both": ["Mul", ops.HADAMARD_QUANTIZE, ops.LINEAR],
    "weight": ["Mul", ops.LINEAR],
    "mixed": ["MatMul", ops.HADAMARD_QUANTIZE, ops.LINEAR],
}
EVERY_SPEC = pytest.mark.parametrize("name", SPECS)


def layer(spec: LayerSpec, name: str = "fc") -> QuantizedLayer:
    """Random codes and scales of a linear [N, K]."""
    random, fmt = np.random.default_rng(0), spec.weight_format
    scale = spec.scale_format.rounded(
        random.uniform(0.01, 0.1, (N, numerics.group_count(K, spec.group_size))).astype(
            np.float32
        ),
        fmt,
    )
    weight = random.standard_normal((N, K)).astype(np.float32) * np.float32(0.3)
    q = numerics.quantize_groups(weight, scale, fmt, spec.group_size)
    codes = numerics.pack(q, fmt.storage_bits)
    return QuantizedLayer(name, spec, K, {"codes": codes, **spec.scale_format.split(scale, fmt)})


def expected(x: Array, made: QuantizedLayer, bias: Array) -> Array:
    """The layer in numpy."""
    spec = made.spec
    for one in spec.input_ops:
        x = one(x)
    if spec.input is not None:
        fmt, size = FORMATS[spec.input.format], spec.input.group_size or K
        if spec.largest is None:
            q, scale = numerics.quantize(x, fmt, size, spec.input.candidates)
        else:
            q, scale = numerics.quantize_static(x, fmt, spec.largest)
        x = numerics.dequantize(q, scale, size)
    return np.asarray(x @ made.weight().T + bias)


@EVERY_SPEC
def test_both_forms_compute_the_layer(bench: Any, agree: Any, name: str) -> None:
    model, parameters = bench.one_layer()
    made, x = layer(SPECS[name]), bench.normal(2, 3, K)
    state = QuantizedState({"fc": made})
    wanted = expected(x, made, parameters["fc.bias"])
    shown, reports = run_passes(model, [InsertQdq(state), PackWeights(state)])
    assert [report.rewritten for report in reports] == [1, 1]
    fused, _ = run_passes(shown, FUSED)
    for result in (shown, fused):
        onnx.checker.check_model(result, full_check=True)
        (y,) = bench.run(result, {"x": x}).values()
        agree(y, wanted, 1e-5)
    assert [n.op_type for n in fused.graph.node] == NODES[name]
    _, reports = run_passes(fused, [InsertQdq(state), PackWeights(state), *FUSED])
    assert not any(report.rewritten for report in reports)


@EVERY_SPEC
def test_the_fused_graph_carries_the_state(bench: Any, name: str) -> None:
    model, _ = bench.one_layer()
    made = layer(SPECS[name])
    state = QuantizedState({"fc": made})
    fused, _ = run_passes(model, [InsertQdq(state), PackWeights(state), *FUSED])
    found = read_state(fused).layers["fc"]
    assert (found.spec.input, found.spec.input_ops) == (made.spec.input, made.spec.input_ops)
    assert set(found.parts) == set(made.parts)
    assert all(np.array_equal(found.parts[role], part) for role, part in made.parts.items())


@EVERY_SPEC
def test_a_layout_makes_the_same_graph_without_values(bench: Any, name: str) -> None:
    model, _ = bench.one_layer()
    state = QuantizedState({"fc": layer(SPECS[name])})
    layout: Layout = state.layout
    graphs = []
    for held in (state, layout):
        made, _ = run_passes(model, [InsertQdq(held), PackWeights(held), *FUSED])
        graphs.append([n.SerializeToString(deterministic=True) for n in made.graph.node])
        names = {t.name for t in made.graph.initializer}
        tensors = {t for one in SPECS[name].input_ops for t in one.tensors}
        assert {f"fc.input.{role}" for role in tensors} < names
        assert {f"fc.weight.{role}" for role in state.layers["fc"].parts} < names
    assert graphs[0] == graphs[1]


@EVERY_SPEC
def test_a_state_file_keeps_the_specification(tmp_path: Path, name: str) -> None:
    made = layer(SPECS[name])
    save_state(QuantizedState({"fc": made}), tmp_path / "state.safetensors")
    assert load_state(tmp_path / "state.safetensors").layers["fc"].spec == made.spec


def test_linears_in_the_same_way_share_the_rotation(bench: Any) -> None:
    """And of those in other formats each quantizes the one rotated tensor."""
    linears = bench.linear("a", "x", "y"), bench.linear("b", "x", "z")
    text = f"g (float[B, {K}] x) => (float[B, {N}] y, float[B, {N}] z) {{ {''.join(linears)} }}"
    model = bench.parse(text, bench.layer_parameters("a", "b"))
    other = LayerSpec.of("e2m1", "int6", 8, MULTIPLIED, input_ops=TURNED)
    state = QuantizedState({"a": layer(SPECS["T6"], "a"), "b": layer(other, "b")})
    fused, reports = run_passes(model, [InsertQdq(state), PackWeights(state), *FUSED])
    found = [n.op_type for n in fused.graph.node]
    assert found.count(ops.HADAMARD) == 1
    assert found.count("FpQuantize") == 2
    assert (
        reports[2].skipped[0].reason == "read by FpQuantize, FpQuantize, expected one FpQuantize"
    )


@pytest.mark.parametrize("held", ["state", "layout"])
def test_linears_of_one_vector_share_its_product(bench: Any, agree: Any, held: str) -> None:
    """Named after the first of them; what reads the same tensor with a vector of its own does not."""
    linears = [bench.linear(name, "x", name.upper()) for name in "abc"]
    outputs = ", ".join(f"float[B, {N}] {name}" for name in "ABC")
    text = f"g (float[B, {K}] x) => ({outputs}) {{ {''.join(linears)} }}"
    model, x = bench.parse(text, parameters := bench.layer_parameters(*"abc")), bench.normal(3, K)
    of = {"a": "a", "b": "a", "c": "c"}
    specs = {
        n: replace(SPECS["both"], input_ops=(BALANCED.named_after(o),)) for n, o in of.items()
    }
    state = QuantizedState({name: layer(spec, name) for name, spec in specs.items()})
    given = state if held == "state" else state.layout
    made, _ = run_passes(model, [InsertQdq(given), PackWeights(given), *FUSED])
    products = [n for n in made.graph.node if n.op_type == "Mul"]
    assert [n.input[1] for n in products] == ["a.input.factor", "c.input.factor"]
    if held == "layout":
        return
    found = ReferenceEvaluator(made).run(None, {"x": x})
    for name, y in zip("abc", found, strict=True):
        agree(y, expected(x, state.layers[name], parameters[f"{name}.bias"]), 1e-5)
    assert {n: one.spec for n, one in read_state(made).layers.items()} == specs


def test_a_float_linear_beside_a_rotated_one_reads_what_it_read(bench: Any, agree: Any) -> None:
    linears = bench.linear("a", "x", "y"), bench.linear("b", "x", "z")
    text = f"g (float[B, {K}] x) => (float[B, {N}] y, float[B, {N}] z) {{ {''.join(linears)} }}"
    model, x = bench.parse(text, bench.layer_parameters("a", "b")), bench.normal(3, 2, K)
    state = QuantizedState({"a": layer(SPECS["T6"], "a")})
    fused, _ = run_passes(model, [InsertQdq(state), PackWeights(state), *FUSED])
    assert ops.HADAMARD_QUANTIZE in [n.op_type for n in fused.graph.node]
    wanted, found = (ReferenceEvaluator(m).run(["z"], {"x": x})[0] for m in (model, fused))
    agree(found, wanted, 1e-6)


def test_multipliers_with_float_activations_stay_dequantized(bench: Any) -> None:
    model, _ = bench.one_layer()
    state = QuantizedState({"fc": layer(LayerSpec.of("e2m1", None, 8, MULTIPLIED))})
    made, reports = run_passes(model, [InsertQdq(state), PackWeights(state), FuseLinear()])
    (skip,) = reports[2].skipped
    assert skip.reason == "its scales are multipliers of int8 products, its input is float"
    assert ops.SCALE in [n.op_type for n in made.graph.node]


@pytest.mark.parametrize("fuse", [True, False])
def test_standard_types_hold_the_layer(bench: Any, agree: Any, fuse: bool) -> None:
    """Exactly its weight, of which the rotated input stays in float."""
    model, parameters = bench.one_layer()
    made, x = layer(SPECS["T6"]), bench.normal(3, 2, K)
    state = QuantizedState({"fc": made})
    passes = [InsertQdq(state), PackWeights(state), *(FUSED if fuse else ())]
    result = standard(run_passes(model, passes)[0], {})
    assert {n.domain for n in result.graph.node} == {""}
    found = ReferenceEvaluator(result).run(None, {"x": x})[0]
    agree(found, hadamard(x, 8) @ made.weight().T + parameters["fc.bias"], 1e-5)
