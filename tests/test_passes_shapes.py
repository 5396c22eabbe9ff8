"""Mending what torch.onnx emits: transposes of attention's keys, and targets of reshapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

from pass_bench import constants, normal, only_reason, op_types

from fp4dit_onnx.passes.constant_reshape import ConstantReshape
from fp4dit_onnx.passes.mend_key_transpose import MendKeyTranspose

Array = npt.NDArray[Any]


def without_inferred_symbols(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its output sizes unknown again where shape inference called them ``unk__0``."""
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                dim.Clear()
    return model


_KEYS = """g (float[B, 2, 3, 4] x) => (float[{result}] y) {{
    [flatten] flat = Reshape (x, to_three)
    [swap] swapped = Transpose <perm = {perm}> (flat)
    [restore] y = {last}
}}"""
_TO_FOUR = np.array([-1, 2, 4, 3])


def test_key_transpose_becomes_one_transpose(bench: Any) -> None:
    text = _KEYS.format(perm="[0, 2, 1]", result="B, 2, 4, 3", last="Reshape (swapped, to_four)")
    model = bench.parse(text, {"to_three": np.array([-1, 3, 4]), "to_four": _TO_FOUR})
    result, report = bench.rewrite(model, MendKeyTranspose(), {"x": normal(5, 2, 3, 4)})
    (node,) = result.graph.node
    assert (node.op_type, node.name) == ("Transpose", "swap")
    assert list(node.attribute[0].ints) == [0, 1, 3, 2]
    assert (report.rewritten, report.skipped) == (1, ())


@pytest.mark.parametrize(
    ("to_four", "result", "last", "reason"),
    [
        (_TO_FOUR, "N, 4, 3", "Neg (swapped)", "not between two reshapes"),
        ([-1, 24], "B, 24", "Reshape (swapped, to_four)", "are not both of rank 4"),
        ([-1, 2, 3, 4], "B, 2, 3, 4", "Reshape (swapped, to_four)", "expected ['B', 2, 4, 3]"),
    ],
)
def test_key_transpose_that_stays(
    bench: Any, to_four: list[int], result: str, last: str, reason: str
) -> None:
    text = _KEYS.format(perm="[0, 2, 1]", result=result, last=last)
    values = {"to_three": np.array([-1, 3, 4]), "to_four": np.array(to_four)}
    feed = {"x": normal(5, 2, 3, 4)}
    _, report = bench.rewrite(bench.parse(text, values), MendKeyTranspose(), feed)
    assert reason in only_reason(report, "swap")


@pytest.mark.parametrize(
    ("middle", "shape"),
    [([2, 6, 4], "[2, 6, 4]"), ([4, 4, 3], "[4, 4, 3]"), ([1, 12, 4], "[1, 12, 4]")],
)
def test_key_transpose_of_other_rows_stays(bench: Any, middle: list[int], shape: str) -> None:
    """What is swapped must be the last two axes of x."""
    text = """g (float[2, 2, 3, 4] x) => (float[2, 2, 4, 3] y) {
        [flatten] flat = Reshape (x, middle)
        [swap] swapped = Transpose <perm = [0, 2, 1]> (flat)
        [restore] y = Reshape (swapped, to_four)
    }"""
    values = {"middle": np.array(middle), "to_four": np.array([2, 2, 4, 3])}
    feed = {"x": normal(2, 2, 3, 4)}
    _, report = bench.rewrite(bench.parse(text, values), MendKeyTranspose(), feed)
    assert only_reason(report, "swap") == f"swaps the last axes of {shape}, expected [*, 3, 4]"


def test_key_transpose_between_unknown_sizes_stays(bench: Any) -> None:
    """Two unknown sizes are not the same size."""
    text = """g (float[?, ?, 3, 4] x, int64[4] t) => (float[?, ?, 4, 3] y) {
        [flatten] flat = Reshape (x, to_three)
        [swap] swapped = Transpose <perm = [0, 2, 1]> (flat)
        [restore] y = Reshape (swapped, t)
    }"""
    model = without_inferred_symbols(bench.parse(text, {"to_three": np.array([-1, 3, 4])}))
    feed = {"x": normal(2, 6, 3, 4), "t": np.array([3, 4, 4, 3])}
    _, report = bench.rewrite(model, MendKeyTranspose(), feed)
    assert "expected [None, None, 4, 3]" in only_reason(report, "swap")


@pytest.mark.parametrize(("name", "reader"), [("swapped", ""), ("z", "[neg] z = Neg (swapped)")])
def test_key_transpose_whose_middle_others_need_stays(bench: Any, name: str, reader: str) -> None:
    """A graph output, or what another node reads."""
    text = f"""g (float[B, 2, 3, 4] x) => (float[B, 2, 4, 3] y, float[N, 4, 3] {name}) {{
        [flatten] flat = Reshape (x, to_three)
        [swap] swapped = Transpose <perm = [0, 2, 1]> (flat)
        [restore] y = Reshape (swapped, to_four)
        {reader}
    }}"""
    model = bench.parse(text, {"to_three": np.array([-1, 3, 4]), "to_four": _TO_FOUR})
    _, report = bench.rewrite(model, MendKeyTranspose(), {"x": normal(5, 2, 3, 4)})
    assert only_reason(report, "swap") == "not between two reshapes"


def test_key_transpose_beside_another_reader_of_the_rows(bench: Any) -> None:
    """The first reshape stays for it, and no two nodes have one name."""
    text = """g (float[B, 2, 3, 4] x) => (float[B, 2, 4, 3] y, float[N, 3, 4] z) {
        [flatten] flat = Reshape (x, to_three)
        [swap] swapped = Transpose <perm = [0, 2, 1]> (flat)
        [restore] y = Reshape (swapped, to_four)
        [neg] z = Neg (flat)
    }"""
    model = bench.parse(text, {"to_three": np.array([-1, 3, 4]), "to_four": _TO_FOUR})
    result, report = bench.rewrite(model, MendKeyTranspose(), {"x": normal(5, 2, 3, 4)})
    assert sorted(node.name for node in result.graph.node) == ["flatten", "neg", "swap"]
    assert report.rewritten == 1


@pytest.mark.parametrize("before", ["", "[neg] a = Neg (x)"])
def test_key_transpose_of_no_reshape_stays(bench: Any, before: str) -> None:
    """Neither of a graph input nor of the result of another operator."""
    text = f"""g (float[4, 3, 2] x) => (float[2, 2, 2, 3] y) <int64[4] sizes = {{2, 2, 2, 3}}> {{
        {before}
        [swap] swapped = Transpose <perm = [0, 2, 1]> ({"a" if before else "x"})
        [restore] y = Reshape (swapped, sizes)
    }}"""
    _, report = bench.rewrite(text, MendKeyTranspose(), {"x": normal(4, 3, 2)})
    assert only_reason(report, "swap") == "not between two reshapes"


def test_other_transposes_are_no_candidates(bench: Any) -> None:
    text = _KEYS.format(perm="[2, 0, 1]", result="B, 2, 4, 3", last="Reshape (swapped, to_four)")
    model = bench.parse(text, {"to_three": np.array([-1, 3, 4]), "to_four": _TO_FOUR})
    _, report = bench.rewrite(model, MendKeyTranspose(), {"x": normal(5, 2, 3, 4)})
    assert (report.rewritten, report.skipped) == (0, ())


_RESHAPE = """g (float[{x}] x) => (float[{y}] y) {{
    [sizes] sizes = Shape (x)
    [batch] batch = Gather (sizes, axes)
    [target] target = Concat <axis = 0> (batch, rest)
    [reshape] y = Reshape (x, target)
}}"""


@pytest.mark.parametrize(
    ("x", "y", "axes", "rest", "target"),
    [
        ("B, S, 6", "B, S, 2, 3", [0, 1], [2, 3], [0, 0, 2, 3]),
        ("B, 4, 6", "B, 24", [0], [24], [0, 24]),
        ("B, 4, 6", "N, 6", [], [-1, 6], [-1, 6]),
        ("B, S, 2, 3", "B, S, 6", [0, 1], [6], [0, 0, 6]),
    ],
)
def test_reshape_gets_a_constant_target(
    bench: Any, x: str, y: str, axes: list[int], rest: list[int], target: list[int]
) -> None:
    values = {"axes": np.array(axes, np.int64), "rest": np.array(rest)}
    model = bench.parse(_RESHAPE.format(x=x, y=y), values)
    sizes = [{"B": 5, "S": 4}.get(d) or int(d) for d in x.split(", ")]
    result, report = bench.rewrite(model, ConstantReshape(), {"x": normal(*sizes)})
    assert op_types(result) == ["Reshape"]
    assert constants(result) == {"reshape.shape": target}
    assert (report.rewritten, report.skipped) == (1, ())


def test_reshape_that_swaps_dynamic_sizes_stays(bench: Any) -> None:
    values = {"axes": np.array([1, 0]), "rest": np.array([6])}
    model = bench.parse(_RESHAPE.format(x="B, S, 6", y="S, B, 6"), values)
    _, report = bench.rewrite(model, ConstantReshape(), {"x": normal(5, 4, 6)})
    reason = only_reason(report, "reshape")
    assert reason == "from ['B', 'S', 6] to ['S', 'B', 6]: more than one size left open"


def test_reshape_infers_an_unknown_size(bench: Any) -> None:
    """Two unknown sizes on one axis are not the same size."""
    text = "g (float[?, 6] x, int64[2] t) => (float[?, 3] y) { [reshape] y = Reshape (x, t) }"
    feed = {"x": normal(5, 6), "t": np.array([10, 3])}
    model = without_inferred_symbols(bench.parse(text))
    result, _ = bench.rewrite(model, ConstantReshape(), feed)
    assert constants(result) == {"reshape.shape": [-1, 3]}


def test_unnamed_reshapes_get_targets_of_their_own(bench: Any) -> None:
    text = """g (float[6] x, int64[2] t, int64[1] u) => (float[3, 2] y, float[6] z) {
        y = Reshape (x, t)
        z = Reshape (y, u)
    }"""
    feed = {"x": normal(6), "t": np.array([3, 2]), "u": np.array([6])}
    model, _ = bench.rewrite(text, ConstantReshape(), feed)
    assert constants(model) == {"Reshape.shape": [3, 2], "Reshape.shape_2": [6]}


def test_reshape_to_an_empty_tensor_stays(bench: Any) -> None:
    """A target of 0 would mean a copied size."""
    values = {"axes": np.array([0]), "rest": np.array([3])}
    model = bench.parse(_RESHAPE.format(x="0, 2", y="0, 3"), values)
    _, report = bench.rewrite(model, ConstantReshape(), {"x": np.zeros((0, 2), np.float32)})
    assert only_reason(report, "reshape").startswith("from [0, 2] to [0, 3]")


def test_reshape_of_unknown_rank_stays(bench: Any) -> None:
    text = """g (float[2, 6] x, int64[N] t) => (float[A, B] y) {
        [inner] a = Reshape (x, t)
        [outer] y = Reshape (a, t)
    }"""
    feed = {"x": normal(2, 6), "t": np.array([3, 4])}
    _, report = bench.rewrite(text, ConstantReshape(), feed)
    assert report.rewritten == 0
    assert {s.name for s in report.skipped} == {"inner", "outer"}
    assert "from [2, 6] to None: " in next(s.reason for s in report.skipped if s.name == "inner")


def test_reshape_with_a_constant_target_is_no_candidate(bench: Any) -> None:
    text = """g (float[2, 6] x) => (float[3, 4] y) <int64[2] t = {3, 4}> { y = Reshape (x, t) }"""
    model, report = bench.rewrite(text, ConstantReshape(), {"x": normal(2, 6)})
    assert constants(model) == {"t": [3, 4]}
    assert (report.rewritten, report.skipped) == (0, ())
