"""The passes that mend what torch.onnx emits, each on graphs in ONNX's text form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnx_graphsurgeon")

from pass_bench import normal, only_reason, op_types

from fp4dit_onnx.passes.base import PassReport
from fp4dit_onnx.passes.constant_reshape import ConstantReshape
from fp4dit_onnx.passes.drop_identity import DropIdentity
from fp4dit_onnx.passes.mend_key_transpose import MendKeyTranspose
from fp4dit_onnx.passes.mend_split import MendSplit
from fp4dit_onnx.passes.mend_squeeze import MendSqueeze
from fp4dit_onnx.passes.pipeline import run_passes

Array = npt.NDArray[Any]


@pytest.mark.parametrize("axes", ["{1}", "{-2}", "{1, 2}", "{-1, 1}"])
def test_squeeze_of_known_larger_axes_goes(bench: Any, axes: str) -> None:
    """The model is invalid before: what torch means by it is that nothing happens."""
    count = axes.count(",") + 1
    text = f"""g (float[B, 64, 3] x) => (float[B, 64, 3] y) <int64[{count}] axes = {axes}> {{
        [squeeze] z = Squeeze (x, axes)
        [neg] y = Neg (z)
    }}"""
    x = normal(2, 64, 3)
    model, report = bench.rewrite(text, MendSqueeze(), {"x": x}, expected={"y": -x})
    assert op_types(model) == ["Neg"]
    assert (report.rewritten, report.skipped) == (1, ())


def test_squeeze_axes_may_come_from_a_constant_node(bench: Any) -> None:
    text = """g (float[2, 64] x) => (float[2, 64] y) {
        axes = Constant <value = int64[1] {1}> ()
        z = Squeeze (x, axes)
        y = Neg (z)
    }"""
    x = normal(2, 64)
    model, _ = bench.rewrite(text, MendSqueeze(), {"x": x}, expected={"y": -x})
    assert op_types(model) == ["Neg"]


@pytest.mark.parametrize(
    ("shape", "axes", "reason"),
    [
        ((2, 1), [1], "axes [1] of sizes [1] may be squeezed"),
        ((1, 3), [0], "axes [0] of sizes ['B'] may be squeezed"),
        ((1, 1), [0, 1], "axes [0, 1] of sizes ['B', 1] may be squeezed"),
    ],
)
def test_squeeze_that_may_squeeze_stays(
    bench: Any, shape: tuple[int, int], axes: list[int], reason: str
) -> None:
    text = f"""g (float[B, {shape[1]}] x) => (float[N] y) {{
        [squeeze] z = Squeeze (x, axes)
        [flat] y = Reshape (z, last)
    }}"""
    model = bench.parse(text, {"axes": np.array(axes), "last": np.array([-1])})
    _, report = bench.rewrite(model, MendSqueeze(), {"x": normal(*shape)})
    assert only_reason(report, "squeeze") == reason


def test_squeeze_of_an_open_axis_that_torch_kept_goes(bench: Any) -> None:
    """Its result has the rank of x where torch recorded it; the model is invalid before."""
    text = """g (float[B, N, 3] x) => (float[B, N, 3] y) <int64[1] axes = {1}, float[B, N, 3] z> {
        [squeeze] z = Squeeze (x, axes)
        [neg] y = Neg (z)
    }"""
    x = normal(2, 5, 3)
    model, report = bench.rewrite(bench.bare(text), MendSqueeze(), {"x": x}, expected={"y": -x})
    assert op_types(model) == ["Neg"]
    assert (report.rewritten, report.skipped) == (1, ())


def test_squeeze_of_axes_known_only_at_run_time_stays(bench: Any) -> None:
    text = """g (float[2, 1] x, int64[1] axes) => (float[N] y) {
        [squeeze] z = Squeeze (x, axes)
        [flat] y = Reshape (z, last)
    }"""
    model = bench.parse(text, {"last": np.array([-1])})
    feed = {"x": normal(2, 1), "axes": np.array([1])}
    _, report = bench.rewrite(model, MendSqueeze(), feed)
    assert only_reason(report, "squeeze") == "axes None of sizes [] may be squeezed"


def test_squeeze_that_makes_a_graph_output_becomes_an_identity(bench: Any) -> None:
    """The output keeps its name, and the other readers of the squeezed tensor read x."""
    text = """g (float[2, 64] x) => (float[2, 64] y, float[2, 64] z) <int64[1] axes = {1}> {
        [squeeze] y = Squeeze (x, axes)
        [neg] z = Neg (y)
    }"""
    x = normal(2, 64)
    model, report = bench.rewrite(text, MendSqueeze(), {"x": x}, expected={"y": x, "z": -x})
    found = {n.op_type: (n.name, list(n.input), list(n.output)) for n in model.graph.node}
    assert found == {
        "Identity": ("squeeze", ["x"], ["y"]),
        "Neg": ("neg", ["x"], ["z"]),
    }
    assert (report.rewritten, report.skipped) == (1, ())


def test_squeeze_without_axes_is_no_candidate(bench: Any) -> None:
    text = "g (float[1, 3] x) => (float[3] y) { z = Squeeze (x)  y = Neg (z) }"
    _, report = bench.rewrite(text, MendSqueeze(), {"x": normal(1, 3)})
    assert (report.rewritten, report.skipped) == (0, ())


@pytest.mark.parametrize("axis", [1, -1])
def test_split_sequence_becomes_one_split(bench: Any, axis: int) -> None:
    """Readers in any order, an index from the end, and a part that nobody reads."""
    text = f"""g (float[B, 6] x) => (float[B, 2] y) {{
        [split] parts = SplitToSequence <axis = {axis}> (x, size)
        [last] c = SequenceAt (parts, minus_one)
        [first] a = SequenceAt (parts, zero)
        [sub] y = Sub (c, a)
    }}"""
    scalars = {"size": np.array(2), "zero": np.array(0), "minus_one": np.array(-1)}
    model, report = bench.rewrite(bench.parse(text, scalars), MendSplit(), {"x": normal(3, 6)})
    assert op_types(model) == ["Split", "Sub"]
    assert list(model.graph.node[0].output) == ["a", "split.1", "c"]
    assert not model.graph.initializer
    assert (report.rewritten, report.skipped) == (1, ())


def test_split_whose_parts_are_graph_outputs(bench: Any) -> None:
    text = """g (float[4, 3] x) => (float[2, 3] a, float[2, 3] b) {
        parts = SplitToSequence (x, size)
        a = SequenceAt (parts, zero)
        b = SequenceAt (parts, one)
    }"""
    scalars = {"size": np.array(2), "zero": np.array(0), "one": np.array(1)}
    model, _ = bench.rewrite(bench.parse(text, scalars), MendSplit(), {"x": normal(4, 3)})
    assert list(model.graph.node[0].output) == ["a", "b"]


def test_a_part_read_twice_is_one_output_of_the_split(bench: Any) -> None:
    """Also where both readers make graph outputs."""
    text = """g (float[2, 6] x) => (float[2, 2] y, float[2, 2] a, float[2, 2] b) {
        ["split.1"] other = Neg (x)
        [split] parts = SplitToSequence <axis = 1> (other, two)
        [first] a = SequenceAt (parts, two)
        [second] b = SequenceAt (parts, minus_one)
        [third] c = SequenceAt (parts, two)
        [sub] y = Sub (c, a)
    }"""
    scalars = {"two": np.array(2), "minus_one": np.array(-1)}
    model, report = bench.rewrite(bench.parse(text, scalars), MendSplit(), {"x": normal(2, 6)})
    assert sorted(op_types(model)) == ["Identity", "Neg", "Split", "Sub"]
    assert report.rewritten == 1


def test_parts_that_nobody_reads_get_names_of_their_own(bench: Any) -> None:
    """Two unnamed splits, and a tensor that has the name already."""
    text = """g (float[2, 6] x) => (float[2, 2] y) {
        "SplitToSequence.1" = Neg (x)
        parts = SplitToSequence <axis = 1> (x, two)
        others = SplitToSequence <axis = 1> ("SplitToSequence.1", two)
        a = SequenceAt (parts, zero)
        b = SequenceAt (others, zero)
        y = Sub (a, b)
    }"""
    scalars = {"two": np.array(2), "zero": np.array(0)}
    model, report = bench.rewrite(bench.parse(text, scalars), MendSplit(), {"x": normal(2, 6)})
    assert sorted(op_types(model)) == ["Neg", "Split", "Split", "Sub"]
    assert report.rewritten == 2


@pytest.mark.parametrize("index", [3, -4])
def test_split_with_an_index_out_of_range_stays(bench: Any, index: int) -> None:
    """Such a model fails at run time, before and after."""
    text = """g (float[2, 6] x) => (float[2, 2] y) {
        [split] parts = SplitToSequence <axis = 1> (x, two)
        [at] y = SequenceAt (parts, index)
    }"""
    model = bench.parse(text, {"two": np.array(2), "index": np.array(index)})
    result, (report,) = run_passes(model, [MendSplit()])
    assert op_types(result) == ["SplitToSequence", "SequenceAt"]
    assert only_reason(report, "split") == f"part {index} of 3 is read"


def test_split_whose_sequence_is_a_graph_output_stays(bench: Any) -> None:
    text = """g (float[2, 6] x) => (seq(float[2, 2]) parts, float[2, 2] y) {
        [split] parts = SplitToSequence <axis = 1> (x, two)
        [at] y = SequenceAt (parts, zero)
    }"""
    model = bench.parse(text, {"two": np.array(2), "zero": np.array(0)})
    result, (report,) = run_passes(model, [MendSplit()])
    assert op_types(result) == ["SplitToSequence", "SequenceAt"]
    assert only_reason(report, "split") == "its sequence is a graph output"


_ONE_PART = """g (float[2, {extent}] x, int64 i) => (float[M, N] y) {{
    [split] parts = SplitToSequence <axis = 1> ({inputs})
    [at] y = SequenceAt (parts, {index})
}}"""


@pytest.mark.parametrize(
    ("extent", "inputs", "index", "reason"),
    [
        ("6", "x", "one", "axis 1 of size 6 is not cut into equal parts by None"),
        ("6", "x, i", "one", "axis 1 of size 6 is not cut into equal parts by None"),
        ("6", "x, sizes", "one", "axis 1 of size 6 is not cut into equal parts by [2, 4]"),
        ("6", "x, four", "one", "axis 1 of size 6 is not cut into equal parts by [4]"),
        ("K", "x, two", "one", "axis 1 of size K is not cut into equal parts by [2]"),
        ("6", "x, two", "i", "read by SequenceAt, expected SequenceAt of a constant index"),
    ],
)
def test_split_that_stays(bench: Any, extent: str, inputs: str, index: str, reason: str) -> None:
    text = _ONE_PART.format(extent=extent, inputs=inputs, index=index)
    values = {
        "one": np.array(1),
        "two": np.array(2),
        "four": np.array(4),
        "sizes": np.array([2, 4]),
    }
    feed = {"x": normal(2, 6), "i": np.array(1)}
    _, report = bench.rewrite(bench.parse(text, values), MendSplit(), feed)
    assert only_reason(report, "split") == reason


def test_split_with_another_reader_stays(bench: Any) -> None:
    text = """g (float[2, 6] x) => (int64 n, float[2, 2] y) {
        [split] parts = SplitToSequence <axis = 1> (x, two)
        [length] n = SequenceLength (parts)
        [at] y = SequenceAt (parts, zero)
    }"""
    model = bench.parse(text, {"two": np.array(2), "zero": np.array(0)})
    _, report = bench.rewrite(model, MendSplit(), {"x": normal(2, 6)})
    assert "SequenceLength" in only_reason(report, "split")


def test_identities_go_except_those_that_name_an_output(bench: Any) -> None:
    text = """g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
        [out] y = Identity (x)
        [first] a = Identity (w)
        [second] b = Identity (a)
        [add] z = Add (b, x)
    }"""
    model, report = bench.rewrite(text, DropIdentity(), {"x": normal(2)})
    assert [node.name for node in model.graph.node] == ["out", "add"]
    assert list(model.graph.node[1].input) == ["w", "x"]
    assert report.rewritten == 2
    assert [(s.name, s.reason) for s in report.skipped] == [("out", "it names a graph output")]


@pytest.mark.parametrize(
    "make", [MendSqueeze, MendSplit, DropIdentity, MendKeyTranspose, ConstantReshape]
)
def test_nothing_to_do(bench: Any, make: Callable[[], Any]) -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { [neg] y = Neg (x) }"
    model, report = bench.rewrite(text, make(), {"x": normal(2, 3)})
    assert op_types(model) == ["Neg"]
    assert report == PassReport(make().name, 0)
