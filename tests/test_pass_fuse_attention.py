"""The pass that makes FpAttention of an attention whose q, k and v are quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.probe import attributes
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.passes.base import Skip
from fp4dit_onnx.passes.fuse_attention import NO_BIAS, FuseAttention
from fp4dit_onnx.passes.pipeline import run_passes

Array = npt.NDArray[Any]
B, S, L, H, D = 2, 5, 7, 3, 4
SCALE = 0.5


def pair(part: str, fmt: str) -> str:
    f = format_by_name(fmt)
    return f"""
        ["m.{part}/Quantize"] {part}q, {part}s = com.fp4dit.{ops.quantize_op(f)}
            <format = "{fmt}", mantissa_bits = {f.mantissa_bits}, max = {f.max_integer},
            group_size = 2147483647, candidates = [{f.max_integer}]> ({part})
        ["m.{part}/Dequantize"] {part}d = com.fp4dit.FpDequantize
            <format = "{fmt}", group_size = {D}> ({part}q, {part}s)
    """


BODY = """
    root = Constant <value_float = 0.70710678> ()
    q_rows = Transpose <perm = [0, 2, 1, 3]> (qd)
    q_scaled = Mul (q_rows, root)
    k_rows = Transpose <perm = [0, 2, 1, 3]> (kd)
    k_swapped = Transpose <perm = [0, 1, 3, 2]> (k_rows)
    k_scaled = Mul (k_swapped, root)
    v_rows = Transpose <perm = [0, 2, 1, 3]> (vd)
    products = MatMul (q_scaled, k_scaled)
    {masked}
    ["m/Softmax"] probabilities = Softmax <axis = -1> (scores)
    mixed = MatMul (probabilities, v_rows)
    y = Transpose <perm = [0, 2, 1, 3]> (mixed)
"""


def attention(
    bench: Any,
    formats: str | tuple[str, str, str] = "e2m3",
    mask: str = "products, bias",
    body: str = BODY,
) -> onnx.ModelProto:
    """An attention with pairs on q, k and v; `mask` has the inputs of the addition, in order."""
    fmts = (formats,) * 3 if isinstance(formats, str) else formats
    add = f"scores = Add ({mask})" if mask else "scores = Identity (products)"
    text = body.format(masked=add)
    if not mask:
        text = text.replace("scores = Identity (products)", "").replace("(scores)", "(products)")
    pairs = "".join(pair(part, fmt) for part, fmt in zip("qkv", fmts, strict=True))
    inputs = f"float[{B}, S, {H}, {D}] q, float[{B}, L, {H}, {D}] k, float[{B}, L, {H}, {D}] v"
    inputs += f", float[{B}, 1, 1, L] bias" if mask else ""
    return bench.parse(f"g ({inputs}) => (float[{B}, S, {H}, {D}] y) {{ {pairs} {text} }}")


def feed(bench: Any, mask: bool = True) -> dict[str, Array]:
    given = {
        "q": bench.normal(B, S, H, D),
        "k": bench.normal(B, L, H, D),
        "v": bench.normal(B, L, H, D),
    }
    if mask:
        given["bias"] = np.where(np.arange(L) % 3 == 1, -10000, 0).astype(np.float32)
        given["bias"] = np.broadcast_to(given["bias"], (B, 1, 1, L)).copy()
    return given


def fused(bench: Any, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Any]:
    from fp4dit_onnx.passes.fold_constants import FoldConstants

    result, (_, report) = run_passes(model, [FoldConstants(frozenset()), FuseAttention()])
    return result, report


@pytest.mark.parametrize("fmt", ["e2m3", "e3m4", "e2m1"])
@pytest.mark.parametrize("mask", ["products, bias", "bias, products", ""])
def test_one_node_of_the_same_value(bench: Any, fmt: str, mask: str) -> None:
    model = attention(bench, fmt, mask)
    given = feed(bench, bool(mask))
    result, report = fused(bench, model)
    assert (report.rewritten, report.skipped) == (1, ())
    kinds = sorted(n.op_type for n in result.graph.node)
    assert kinds == sorted([ops.ATTENTION, *[ops.quantize_op(format_by_name(fmt))] * 3])
    node = next(n for n in result.graph.node if n.op_type == ops.ATTENTION)
    assert node.name == "m"
    assert list(node.input) == ["qq", "qs", "kq", "ks", "vq", "vs", "bias" if mask else NO_BIAS]
    assert attributes(node)["attention_scale"] == pytest.approx(SCALE)
    assert attributes(node)["format"] == fmt
    before, after = (bench.run(m, given)["y"] for m in (model, result))
    assert sqnr_db(before, after) > 75
    assert sqnr_db(before, bench.run(result, {**given, "q": -given["q"]})["y"]) < 20


def test_what_is_left_alone(bench: Any) -> None:
    """Each place is named with its reason, and the graph is as before."""
    cases = [
        (attention(bench, "e4m3"), "m", "the integers of e4m3 are wider than 16 bits"),
        (attention(bench, ("e2m3", "e2m3", "e2m1")), "m", "different formats: e2m1, e2m3"),
        (
            attention(bench, body=BODY.replace("axis = -1", "axis = 2")),
            "m",
            "softmax is over axis 2",
        ),
        (
            attention(
                bench,
                body=BODY.replace(
                    "v_rows = Transpose", "v_float = Neg (vd) v_rows = Transpose"
                ).replace("> (vd)", "> (v_float)"),
            ),
            "m/Softmax",
            "not all quantized",
        ),
        (
            attention(
                bench,
                body=BODY.replace(
                    "mixed = MatMul", "v_twice = Mul (v_rows, root) mixed = MatMul"
                ).replace("(probabilities, v_rows)", "(probabilities, v_twice)"),
            ),
            "m",
            "its operands are transposed",
        ),
    ]
    for model, name, words in cases:
        result, report = fused(bench, model)
        assert report.rewritten == 0
        (skip,) = report.skipped
        assert isinstance(skip, Skip)
        assert skip.name == name
        assert words in skip.reason
        assert all(n.op_type != ops.ATTENTION for n in result.graph.node)


def test_a_mask_for_each_query_is_left_alone(bench: Any) -> None:
    model = attention(bench)
    for given in model.graph.input:
        if given.name == "bias":
            given.type.tensor_type.shape.dim[2].dim_value = S
    _, report = fused(bench, model)
    (skip,) = report.skipped
    assert "not one value per key" in skip.reason
