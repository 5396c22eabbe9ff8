"""A layer's vector of factors in the scale and shift of adaLN: the pass, and who reads it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from pass_bench import PassBench, normal, op_types

from fp4dit_onnx.bundle.calls import take_apart
from fp4dit_onnx.bundle.probe import load_model, read_state
from fp4dit_onnx.passes.fold_factor import FoldFactor
from fp4dit_onnx.passes.match import NORM
from fp4dit_onnx.passes.pipeline import run_passes
from fp4dit_onnx.report.histograms import quantizer_input
from fp4dit_onnx.spec.diagonal import Diagonal

FACTOR = "l.input.factor"
GRAPH = """g (float[2, 3, 8] x, float[2, 1, 8] gain, float[2, 1, 8] shift, float[8] w, float[8] b)
    => (float[2, 3, 8] z{more}) {{
    unit = LayerNormalization <axis = -1, epsilon = 1e-6> (x, {own})
    {body}
    m = Mul (y, "{factor}")
    z = Neg (m) }}"""
ADALN = "s = Mul (unit, gain)  y = Add (s, shift)"


def graph(body: str = ADALN, own: str = "w", more: str = "", factor: str = FACTOR) -> str:
    return GRAPH.format(body=body, own=own, more=more, factor=factor)


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        (graph(), [NORM, "Mul", "Mul", "Mul", "Add", "Neg"]),
        (graph("s = Mul (gain, unit)  y = Add (shift, s)"), [*["Mul"] * 3, NORM, "Add", "Neg"]),
        (graph("y = Mul (unit, w)"), [NORM, "Mul", "Mul", "Neg"]),
        (graph("y = LayerNormalization (x, w, b)"), [NORM, "Mul", "Mul", "Neg"]),
    ],
)
def test_a_factor_goes_into_what_is_smaller(
    bench: PassBench, text: str, operators: list[str]
) -> None:
    shapes = {"x": (2, 3, 8), "gain": (2, 1, 8), "shift": (2, 1, 8), "w": (8,), "b": (8,)}
    values = {name: normal(*shape) for name, shape in shapes.items()}
    factor = np.abs(normal(8)) + np.float32(0.5)
    model = bench.parse(text, {FACTOR: factor})
    # Three roundings of a product and two of the other term, of magnitudes that are no larger. Of a
    # unit vector of 8 none is larger than the root of 8.
    largest = {name: np.abs(value).max() for name, value in values.items()}
    gain, shift = max(largest["gain"], largest["w"]), max(largest["shift"], largest["b"])
    bound = 3 * np.finfo(np.float32).eps * (8**0.5 * gain + shift) * factor.max()
    result, report = bench.rewrite(model, FoldFactor(), values, bound=bound)
    assert report.rewritten == 1
    assert sorted(op_types(result)) == sorted(operators)
    # What has as many rows as x is no longer multiplied by the factor.
    made = {name: node for node in result.graph.node for name in node.output}
    assert FACTOR not in made[made["z"].input[0]].input


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (graph(more=", float[2, 3, 8] y"), "others read what it multiplies"),
        (graph(more=", float[2, 3, 8] s"), "others read what it multiplies"),
        (graph("s = Mul (unit, x)  y = Add (s, shift)"), None),
        (graph("y = Add (unit, x)"), None),
        (graph("y = Gelu (unit)"), None),
        (graph(factor="l.factor"), None),
    ],
)
def test_what_is_left_alone(bench: PassBench, text: str, reason: str | None) -> None:
    model = bench.parse(text, {"l.factor" if "l.factor" in text else FACTOR: normal(8)})
    _, (report,) = run_passes(model, [FoldFactor()])
    assert report.rewritten == 0
    assert [skip.reason for skip in report.skipped] == ([reason] if reason else [])


def test_a_bundle_s_state_has_the_factors_wherever_they_are(
    tmp_path: Path, one_torch_thread: None
) -> None:
    from fp4dit_onnx.exporting.export import ExportRequest, export

    pytest.importorskip("torch")
    request = ExportRequest(
        tmp_path / "bundle",
        method="smoothquant",
        preset="fast",
        components="transformer",
        calibration_prompts=2,
        steps=2,
        samples=16,
        report=False,
    )
    manifest = export(request).manifest
    model = load_model(tmp_path / "bundle" / "transformer" / "model.onnx")
    folded = {report.name: report.rewritten for report in manifest.passes}["fold_factor"]
    assert folded == 2 * 8 + 1  # two norms in each block, and the last linear's
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    apart = onnx.GraphProto()
    apart.CopyFrom(model.graph)
    take_apart(apart)
    nodes = {
        name: quantizer_input(apart, f"transformer_blocks.0.attn1.{name}")
        for name in ["to_q", "to_out.0"]
    }
    assert [given[1] for given in nodes.values() if given] == [0, 1]
    found = read_state(model).layers
    assert len(found) == manifest.totals.layers
    for layer in found.values():
        (one,) = layer.spec.input_ops
        assert isinstance(one, Diagonal)
        np.testing.assert_array_equal(one.tensors["factor"], tensors[f"{one.owner}.input.factor"])
