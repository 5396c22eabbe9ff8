"""The pass that quantizes q, k and v of attention, alone and in the pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx
import pytest
from pass_bench import through

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.probe import read_state
from fp4dit_onnx.errors import BundleError, Fp4DitError
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.passes.fold_constants import FoldConstants
from fp4dit_onnx.passes.fuse_attention import FuseAttention
from fp4dit_onnx.passes.pipeline import quantize_passes, run_passes
from fp4dit_onnx.passes.quantize_attention import QuantizeAttention
from fp4dit_onnx.report.inspection import inspect_model
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.spec.state import QuantizedState

Array = npt.NDArray[Any]
K = 20
HEADS, DIM = 3, 4
LAYERS = tuple(f"m.to_{part}" for part in ATTENTION_PARTS)
FORMATS = [("e2m3", "FpQuantize"), ("e3m4", "FpQuantizeInt16"), ("e4m3", "FpQuantizeFloat")]
INPUT = f"float[B, S, {K}] x"
PARTS = ", ".join(f"float[B, S, {HEADS}, {DIM}] {part}_heads" for part in ATTENTION_PARTS)
OUTPUT = f"float[B, S, {HEADS * DIM}] y"
# torch.onnx's order of operators, without the scales of q and k
PRODUCTS = """
    q_rows = Transpose <perm = [0, 2, 1, 3]> (q_heads)
    k_rows = Transpose <perm = [0, 2, 1, 3]> (k_heads)
    v_rows = Transpose <perm = [0, 2, 1, 3]> (v_heads)
    k_swapped = Transpose <perm = [0, 1, 3, 2]> (k_rows)
    scores = MatMul (q_rows, k_swapped)
    ["m/Softmax"] probabilities = Softmax <axis = -1> (scores)
    mixed = MatMul (probabilities, v_rows)
    tokens = Transpose <perm = [0, 2, 1, 3]> (mixed)
    all_heads = Constant <value_ints = [0, 0, -1]> ()
    y = Reshape (tokens, all_heads)
"""


def projections(bench: Any, bias: bool = True) -> str:
    """Text of q, k and v of the attention ``m``, each [B, S, H, D]."""
    parts = [
        f"""{bench.linear(f"m.to_{part}", "x", part, bias)}
            ["m/Reshape_{part}"] {part}_heads = Reshape ({part}, heads)"""
        for part in ATTENTION_PARTS
    ]
    return f"heads = Constant <value_ints = [0, 0, {HEADS}, {DIM}]> () " + " ".join(parts)


def attention(bench: Any, bias: bool = True) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A graph of the attention ``m`` alone, and its parameters."""
    parameters = bench.layer_parameters(*LAYERS, n=HEADS * DIM)
    text = f"g ({INPUT}) => ({OUTPUT}) {{ {projections(bench, bias)} {PRODUCTS} }}"
    return bench.parse(text, parameters), parameters


def state_of(fmt: str, name: str = "m") -> QuantizedState:
    return QuantizedState({}, attention={name: fmt})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("fmt", "op"), FORMATS)
def test_a_pair_on_each_of_q_k_and_v(bench: Any, fmt: str, op: str, bias: bool) -> None:
    """The result is, bit for bit, the products of the dequantized heads."""
    model, parameters = attention(bench, bias)
    x = bench.normal(2, 5, K)
    before = f"g ({INPUT}) => ({PARTS}) {{ {projections(bench, bias)} }}"
    heads = bench.run(bench.parse(before, parameters), {"x": x})
    after = bench.parse(f"g ({PARTS}) => ({OUTPUT}) {{ {PRODUCTS} }}")
    expected = bench.run(after, {name: through(value, fmt) for name, value in heads.items()})
    result, report = bench.rewrite(
        model, QuantizeAttention(state_of(fmt)), {"x": x}, expected=expected
    )
    own = [node for node in result.graph.node if node.domain == ops.DOMAIN]
    assert sorted((node.op_type, node.name) for node in own) == sorted(
        (kind, f"m.{part}/{name}")
        for part in ATTENTION_PARTS
        for kind, name in ((op, "Quantize"), (ops.DEQUANTIZE, "Dequantize"))
    )
    outputs = {name for node in own for name in node.output}
    assert outputs == {f"m.{p}.{t}" for p in ATTENTION_PARTS for t in ("q", "scale", "value")}
    assert {f.name for f in result.functions} == {op, ops.DEQUANTIZE}
    assert (report.rewritten, report.skipped) == (3, ())


def test_without_attention_in_the_state_nothing_changes(bench: Any) -> None:
    model, _ = attention(bench)
    result, report = bench.rewrite(
        model, QuantizeAttention(QuantizedState({})), {"x": bench.normal(2, 5, K)}
    )
    assert (report.rewritten, report.skipped) == (0, ())
    assert len(result.graph.node) == len(model.graph.node)


def test_a_second_run_says_why_it_does_nothing(bench: Any) -> None:
    step = QuantizeAttention(state_of("e2m3"))
    model, _ = run_passes(attention(bench)[0], [step])
    _, (report,) = run_passes(model, [step])
    reasons = {skip.name: skip.reason for skip in report.skipped}
    assert reasons == dict.fromkeys(("m.q", "m.k", "m.v"), "already quantized")


def test_an_attention_that_the_graph_has_not(bench: Any) -> None:
    step = QuantizeAttention(state_of("e2m3", "other"))
    with pytest.raises(
        Fp4DitError, match=r"attention other .* is not in the graph: found no Softmax"
    ):
        run_passes(attention(bench)[0], [step])


JOINT = """
    q_norm = LayerNormalization <axis = -1> (q_heads, q_gain)
    q_image = Transpose <perm = [0, 2, 1, 3]> (q_norm)
    q_text = Transpose <perm = [0, 2, 1, 3]> (text)
    q_rows = Concat <axis = 2> (q_text, q_image)
    k_image = Transpose <perm = [0, 2, 1, 3]> (k_heads)
    k_rows = Concat <axis = 2> (q_text, k_image)
    k_swapped = Transpose <perm = [0, 1, 3, 2]> (k_rows)
    v_both = Concat <axis = 1> (text, v_heads)
    v_rows = Transpose <perm = [0, 2, 1, 3]> (v_both)
    half = Constant <value = float[1] {0.5}> ()
    k_scaled = Mul (k_swapped, half)
    scores = MatMul (q_rows, k_scaled)
    ["m/Softmax"] probabilities = Softmax <axis = -1> (scores)
    mixed = MatMul (probabilities, v_rows)
    y = Transpose <perm = [0, 2, 1, 3]> (mixed)
"""


def test_what_is_multiplied_is_quantized(bench: Any) -> None:
    """Queries after their norm, text and image joined, heads first or tokens first."""
    text = f"float[B, T, {HEADS}, {DIM}] text"
    out = f"float[B, S, {HEADS}, {DIM}] y"
    parameters = {"q_gain": bench.normal(DIM)}
    model = bench.parse(f"g ({PARTS}, {text}) => ({out}) {{ {JOINT} }}", parameters)
    given = {f"{part}_heads": bench.normal(2, 5, HEADS, DIM) for part in ATTENTION_PARTS}
    given["text"] = 1000 * bench.normal(2, 3, HEADS, DIM)
    shapes = {"q_rows": "B, H, U, D", "k_rows": "B, H, U, D", "v_both": "B, U, H, D"}
    outputs = ", ".join(f"float[{shape}] {name}" for name, shape in shapes.items())
    half, _, rest = JOINT.partition("half =")
    joined = bench.run(
        bench.parse(f"g ({PARTS}, {text}) => ({outputs}) {{ {half} }}", parameters), given
    )
    sizes = {"q_rows": f"B, {HEADS}, U, {DIM}", "k_rows": f"B, {HEADS}, U, {DIM}"}
    sizes["v_both"] = f"B, U, {HEADS}, {DIM}"
    inputs = ", ".join(f"float[{shape}] {name}" for name, shape in sizes.items())
    swapped = "k_swapped = Transpose <perm = [0, 1, 3, 2]> (k_rows)"
    v_rows = "v_rows = Transpose <perm = [0, 2, 1, 3]> (v_both)"
    after = bench.parse(f"g ({inputs}) => ({out}) {{ {swapped} {v_rows} half = {rest} }}")
    expected = bench.run(after, {name: through(x, "e2m3") for name, x in joined.items()})
    fold = FoldConstants(frozenset(parameters))
    result, _ = run_passes(model, [fold, QuantizeAttention(state_of("e2m3"))])
    found = bench.run(result, given)["y"]
    assert sqnr_db(expected["y"], found) > 100
    assert sqnr_db(bench.run(model, given)["y"], found) < 60
    fused, (report,) = run_passes(result, [FuseAttention()])
    assert (report.rewritten, report.skipped) == (1, ())
    assert sqnr_db(expected["y"], bench.run(fused, given)["y"]) > 75
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count(ops.ATTENTION) == 1
    assert not {"MatMul", "Softmax", "Mul"} & set(kinds)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "k_rows = Transpose <perm = [0, 2, 1, 3]>",
            "k_rows = Transpose <perm = [1, 2, 0, 3]>",
            r"attention's m\.k: .* with its axes as \[1, 2, 0, 3\], expected batch, heads",
        ),
        (
            "MatMul (probabilities, v_rows)",
            "Mul (probabilities, v_rows)",
            "attention m: m/Softmax is not between two products",
        ),
    ],
    ids=["another transpose", "not multiplied"],
)
def test_an_attention_of_another_form_is_an_error(
    bench: Any, old: str, new: str, message: str
) -> None:
    """Left alone it would compute something else than the simulation."""
    parameters = bench.layer_parameters(*LAYERS, n=HEADS * DIM)
    body = f"{projections(bench)} {PRODUCTS}"
    assert body.count(old) == 1
    loose = f"g ({INPUT}) => (float[B, S, Y] y) {{ {body.replace(old, new)} }}"
    with pytest.raises(Fp4DitError, match=message):
        run_passes(bench.parse(loose, parameters), [QuantizeAttention(state_of("e2m3"))])


@pytest.mark.parametrize("form", ["fused", "qdq"])
def test_in_the_pipeline(bench: Any, form: str, tmp_path: Any) -> None:
    """Fusing leaves the quantizers, naming keeps their names, and reading finds the attention."""
    model, parameters = attention(bench)
    layers = bench.state_of(parameters, **dict.fromkeys(LAYERS, "e2m1/e2m3"))
    state = replace(layers, attention={"m": "e2m3"})
    passes = quantize_passes(state, frozenset(parameters), form)
    result, reports = run_passes(model, passes)
    assert {r.name: r.rewritten for r in reports}["quantize_attention"] == 3
    names = {node.name for node in result.graph.node}
    tensors = {name for node in result.graph.node for name in node.output}
    for part in ATTENTION_PARTS:
        assert f"m.{part}/Quantize" in names
        assert {f"m.{part}.q", f"m.{part}.scale"} <= tensors
        assert (f"m.{part}/Dequantize" in names) == (form == "qdq")
    kinds = [n.op_type for n in result.graph.node]
    assert kinds.count(ops.LINEAR) == (3 if form == "fused" else 0)
    assert kinds.count(ops.ATTENTION) == (1 if form == "fused" else 0)
    assert read_state(result).attention == {"m": "e2m3"}
    _, again = run_passes(result, passes)
    assert [report.rewritten for report in again] == [0] * len(reports)
    onnx.save(result, tmp_path / "model.onnx")
    assert inspect_model(tmp_path / "model.onnx")["attention"] == {"m": "e2m3"}


def test_an_attention_quantized_in_part_is_refused(bench: Any) -> None:
    model, _ = run_passes(attention(bench)[0], [QuantizeAttention(state_of("e2m3"))])
    quantizer = next(node for node in model.graph.node if node.name == "m.k/Quantize")
    next(a for a in quantizer.attribute if a.name == "format").s = b"int6"
    with pytest.raises(
        BundleError, match=r"attention m: found .*k in int6.*, expected q, k, v in"
    ):
        read_state(model)
    quantizer.name = "k"
    with pytest.raises(BundleError, match="attention m: found q in e2m3, v in e2m3, expected"):
        read_state(model)
