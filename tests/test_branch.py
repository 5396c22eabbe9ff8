"""Branches of low rank beside layers: in the graph, in files, in the simulation, and as a stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")

import torch

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.probe import read_state
from fp4dit_onnx.calibration.applying import Alternatives, quantize_layer
from fp4dit_onnx.calibration.branching import branched, leading, split
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.layer_inputs import LayerInputs, Second
from fp4dit_onnx.calibration.moments import HalfWeights, Rows
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.branch import Branch
from fp4dit_onnx.calibration.stages.gptq import Gptq
from fp4dit_onnx.calibration.stages.smooth import Smooth
from fp4dit_onnx.calibration.transforming import target_weight, transformed_moments
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.layers import layer_size
from fp4dit_onnx.exporting.plan import plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.passes.fuse_linear import FuseLinear
from fp4dit_onnx.passes.fuse_transform import FuseTransform
from fp4dit_onnx.passes.insert_branch import InsertBranch
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pack_weights import PackWeights
from fp4dit_onnx.passes.pipeline import _renamed, run_passes
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.low_rank import LowRank
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState, load_state, save_state
from fp4dit_onnx.spec.vector import Vector

Array = npt.NDArray[Any]
K, N, RANK = 20, 12, 3
BALANCED = Diagonal("fc", Vector(np.linspace(0.3, 3, K, dtype=np.float32)))
PLAIN = LayerSpec.of("e2m1", "int6", 8)
SPECS = {
    "plain": PLAIN,
    "turned": replace(PLAIN, input_ops=(BALANCED, Hadamard(8))),
    "weight": LayerSpec.of("e2m1", None, 8),
}
EVERY_SPEC = pytest.mark.parametrize("name", SPECS)


def layer(spec: LayerSpec) -> QuantizedLayer:
    """Random, with a branch."""
    random = np.random.default_rng(0)
    down, up = (random.standard_normal(s).astype(np.float16) for s in ((K, RANK), (RANK, N)))
    weight = torch.from_numpy(random.standard_normal((N, K)).astype(np.float32))
    made = quantize_layer("fc", weight, spec)
    return replace(made, spec=replace(spec, branch=LowRank.of(down, up)))


def expected(x: Array, made: QuantizedLayer, bias: Array) -> Array:
    """The layer in numpy."""
    spec, own = made.spec, x
    assert spec.branch is not None
    for one in spec.input_ops:
        x = one(x)
    if spec.input is not None:
        q, scale = numerics.quantize(x, FORMATS[spec.input.format])
        x = numerics.dequantize(q, scale, K)
    down, up = (spec.branch.tensors[role].astype(np.float64) for role in ("down", "up"))
    return np.asarray(x @ made.weight().T + bias + own @ down @ up).astype(np.float32)


def passes(state: Any) -> list[Any]:
    return [
        InsertBranch(state),
        InsertQdq(state),
        PackWeights(state),
        FuseTransform(Hadamard),
        FuseLinear(),
        NameTensors(frozenset({"fc.bias"}), frozenset({"fc"})),
    ]


@EVERY_SPEC
def test_the_graph_and_the_simulation_compute_it(bench: Any, agree: Any, name: str) -> None:
    model, parameters = bench.one_layer()
    made, x = layer(SPECS[name]), bench.normal(2, 3, K)
    wanted = expected(x, made, parameters["fc.bias"])
    fused, reports = run_passes(model, passes(QuantizedState({"fc": made})))
    assert reports[0].rewritten == 1
    onnx.checker.check_model(fused, full_check=True)
    (y,) = bench.run(fused, {"x": x}).values()
    agree(y, wanted, 1e-5)
    simulated = SimulatedLinear(made, torch.from_numpy(parameters["fc.bias"]))
    agree(simulated(torch.from_numpy(x)).numpy(), wanted, 1e-5)
    kinds = [n.op_type for n in fused.graph.node]
    assert kinds.count("MatMul") == 2
    assert kinds.count(ops.LINEAR) == 1
    halves = {t.name for t in fused.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert {"fc.branch.down", "fc.branch.up"} <= halves
    found = read_state(fused).layers["fc"]
    assert (found.spec.branch, found.spec.input_ops) == (made.spec.branch, made.spec.input_ops)
    _, again = run_passes(fused, passes(QuantizedState({"fc": made})))
    assert {report.name: report.rewritten for report in again if report.rewritten} == {}
    laid, _ = run_passes(model, passes(QuantizedState({"fc": made}).layout))
    assert [n.SerializeToString(deterministic=True) for n in laid.graph.node] == [
        n.SerializeToString(deterministic=True) for n in fused.graph.node
    ]


def test_what_reads_one_tensor_shares_a(bench: Any, agree: Any, tmp_path: Path) -> None:
    """In states, in bytes and in the graph, which computes the product with A once."""
    one = layer(PLAIN)
    assert one.spec.branch is not None
    half = replace(one.spec.branch, up=Vector(one.spec.branch.tensors["up"] / np.float16(2)))
    other = replace(one, name="m.0.b", spec=replace(one.spec, branch=half))
    state = QuantizedState({"m.0.a": replace(one, name="m.0.a"), "m.0.b": other})
    a, b = state.layers.values()
    assert a.spec.branch is not None
    assert b.spec.branch is not None
    assert (a.spec.branch.shared, b.spec.branch.shared) == ("", "m.0.a")
    assert a.nbytes - b.nbytes == 2 * RANK * K
    assert set(b.tensors) == {"m.0.b.branch.up"}
    assert layer_size(N, K, a.spec).bytes - layer_size(N, K, b.spec).bytes == 2 * RANK * K
    save_state(state, tmp_path / "state.safetensors")
    assert load_state(tmp_path / "state.safetensors").layers["m.0.b"].spec == b.spec
    apart = QuantizedState({"m.0.a": a, "m.1.b": replace(b, name="m.1.b")}).layers["m.1.b"]
    assert apart.spec.branch is not None
    assert apart.spec.branch.shared == "", "of another block"
    of_both = QuantizedState(
        {f"m.{i}.{n}": replace(one, name=f"m.{i}.{n}") for i in (0, 1) for n in ("a", "b")}
    ).layout
    assert _renamed(of_both, "m.1", "m.0") == _renamed(of_both, "m.0", "m.0"), "are of one kind"

    parameters = bench.layer_parameters("m.0.a") | bench.layer_parameters("m.0.b")
    linears = "".join(
        bench.linear(name, "x", y, True) for name, y in (("m.0.a", "y"), ("m.0.b", "z"))
    )
    text = f"g (float[B, S, {K}] x) => (float[B, S, 12] y, float[B, S, 12] z) {{ {linears} }}"
    kept = [*passes(state)[:-1], NameTensors(frozenset(parameters), frozenset(state.layers))]
    fused, _ = run_passes(bench.parse(text, parameters), kept)
    x = bench.normal(2, 3, K)
    found = bench.run(fused, {"x": x})
    for made, y in ((a, "y"), (b, "z")):
        agree(found[y], expected(x, made, parameters[f"{made.name}.bias"]), 1e-5)
    assert [n.op_type for n in fused.graph.node].count("MatMul") == 3
    names = {t.name for t in fused.graph.initializer if ".branch." in t.name}
    assert names == {"m.0.a.branch.down", "m.0.a.branch.up", "m.0.b.branch.up"}
    again = read_state(fused).layers
    assert again["m.0.b"].spec.branch == b.spec.branch
    assert again["m.0.a"].spec.branch == a.spec.branch


def test_linears_of_one_tensor_are_decomposed_together() -> None:
    """Against numpy's SVD of their weights below each other; a layer of other bits has none."""
    draft, alternatives = problem(PLAIN)
    second = replace(draft, name="second", weight=draft.weight.flip(0) * 0.7)
    wide = replace(draft, name="wide", spec=LayerSpec.of("int8", "int8", 8))
    turned = replace(problem(SPECS["turned"])[0], name="turned")
    drafts = {one.name: one for one in (draft, second, wide, turned)}
    once = Branch(rank=2, share=1.0, rounds=1)
    made = once.apply(drafts, alternatives.evidence)
    assert made["wide"] is wide
    weights = torch.cat([draft.weight, second.weight]).numpy().astype(np.float64)
    values = np.linalg.svd(weights, compute_uv=False)
    left = sum(float((made[name].weight.double() ** 2).sum()) for name in ("fc", "second"))
    assert left == pytest.approx(float((values[2:] ** 2).sum()), rel=1e-3)
    a, b = (made[name].spec.branch for name in ("fc", "second"))
    assert a is not None
    assert b is not None
    assert a.down == b.down
    assert a.up != b.up
    apart = made["turned"]
    assert apart.spec.branch is not None
    assert apart.spec.branch.down != a.down, "of other transforms"
    assert torch.allclose(target_weight(draft.weight, apart.spec), apart.weight, atol=1e-5)
    again = once.apply(made, alternatives.evidence)
    assert again == made, "a branch that is there stays"


def test_files_keep_it(tmp_path: Path) -> None:
    made = layer(SPECS["turned"])
    save_state(QuantizedState({"fc": made}), tmp_path / "state.safetensors")
    found = load_state(tmp_path / "state.safetensors").layers["fc"]
    assert found.spec == made.spec
    assert found.nbytes == made.nbytes
    plain = replace(made, spec=replace(made.spec, branch=None))
    assert made.nbytes - plain.nbytes == 2 * RANK * (K + N)


def test_branches_that_do_not_fit() -> None:
    down, up = np.zeros((K, RANK), np.float16), np.zeros((RANK, N), np.float16)
    with pytest.raises(
        UsageError, match=r"rank 3: down float32 \[20, 3\]: expected float16 \[K, R\]"
    ):
        LowRank.of(down.astype(np.float32), up)
    with pytest.raises(
        UsageError, match=r"rank 3: up float16 \[12, 3\]: expected float16 \[R, N\]"
    ):
        LowRank.of(down, up.T)
    with pytest.raises(UsageError, match="down has numbers beyond float16's"):
        LowRank.of(down + np.float16(np.inf), up)
    made = layer(PLAIN)
    short = replace(made.spec, branch=LowRank.of(down[1:], up))
    with pytest.raises(UsageError, match=r"layer fc: its branch .* does not fit"):
        replace(made, spec=short)


# --- the stage ---------------------------------------------------------------------------------


def problem(spec: LayerSpec, outlier: float = 1.0) -> tuple[Draft, Alternatives]:
    """A weight with a few strong directions, and inputs, the first of which may be larger."""
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(N, 2, generator=generator) @ torch.randn(2, K, generator=generator)
    weight = strong + 0.3 * torch.randn(N, K, generator=generator)
    x = torch.randn(200, K, generator=generator)
    x[:, 0] *= outlier
    moments = transformed_moments((x.T @ x / len(x)).double(), spec.input_ops)
    rows = Rows(x[:, None], torch.ones(len(x)), HalfWeights(1.0, 0.0))
    inputs = LayerInputs(
        reader="fc",
        second=Second(moments),
        rows=lambda: rows,
        peaks=lambda: x.abs().reshape(10, 20, K).amax(dim=1),
        weight=weight,
        bias=None,
    )
    draft = Draft("fc", target_weight(weight, spec), spec)
    return draft, Alternatives((Branch(rank=2, share=1.0), Absmax(), Gptq()), lambda _: inputs)


@EVERY_SPEC
def test_a_split_weight_is_the_weight(name: str) -> None:
    """Against numpy's SVD: of all branches of its rank it leaves the least, up to float16."""
    draft, _ = problem(SPECS[name])
    made = split([draft], [draft.weight], 2)["fc"]
    assert made.spec.branch is not None
    values = np.linalg.svd(draft.weight.numpy().astype(np.float64), compute_uv=False)
    left = float((made.weight.double() ** 2).sum())
    assert left == pytest.approx(float((values[2:] ** 2).sum()), rel=1e-3)
    whole = problem(PLAIN)[0].weight
    assert torch.allclose(target_weight(whole, made.spec), made.weight, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16)])
def test_leading_factors_are_those_of_the_largest_singular_values(shape: tuple[int, int]) -> None:
    """The nearest product of their rank, against numpy's SVD, and of alike size; zeros have zeros."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    left, right = leading(matrix, 5)
    assert (left.shape, right.shape) == ((shape[0], 5), (shape[1], 5))
    values = np.linalg.svd(matrix.numpy().astype(np.float64), compute_uv=False)
    rest = (matrix.double() - left.double() @ right.double().T).square().sum()
    assert float(rest) == pytest.approx(float((values[5:] ** 2).sum()), rel=1e-5)
    sizes = [factor.square().sum(dim=0).flip(0) for factor in (left, right)]
    for size in sizes:
        assert size.numpy() == pytest.approx(values[:5], rel=1e-4)
    for factor in leading(torch.zeros(shape), 5):
        assert not factor.any()


@EVERY_SPEC
def test_it_lowers_the_error_and_iterating_does(name: str) -> None:
    draft, alternatives = problem(SPECS[name])
    given, evidence = alternatives.inputs(draft), alternatives.evidence
    one, many = (branched([draft], evidence, 2, rounds)["fc"] for rounds in (1, 20))
    errors = [given.error(alternatives.tried(each)) for each in (draft, one, many)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < errors[1]
    found = alternatives.chosen(draft)
    assert given.error(found) < errors[1]
    assert found.spec.branch is not None
    assert found.spec.branch.rank == 2
    assert set(alternatives.made) == {("fc", found.spec)}, "what was tried is not kept"


def test_smoothing_is_searched_with_the_branch_in_place() -> None:
    """An input of large magnitude is divided by more than the others; without one nothing has to be."""
    draft, alternatives = problem(PLAIN, 40.0)
    given = alternatives.inputs(draft)
    stage = Smooth(rank=2, share=1.0)
    made = stage.apply({"fc": draft}, alternatives.evidence)["fc"]
    (one,) = made.spec.input_ops
    factor = one.tensors["factor"]
    assert factor[0] < 0.3 * np.median(factor)
    before, after = (
        given.error(alternatives.tried(split([d], [d.weight], 2)["fc"])) for d in (draft, made)
    )
    assert after < 0.5 * before
    kept = replace(draft, spec=replace(draft.spec, input=None))
    assert stage.apply({"fc": kept}, alternatives.evidence) == {"fc": kept}
    with pytest.raises(UsageError, match=r"smooth\.steps"):
        Smooth(steps=0)


def test_a_plan_counts_it(tmp_path: Path) -> None:
    rows = {
        method: {r.name: r for r in plan(ExportRequest(tmp_path / "b", method=method)).layers}
        for method in ("gptq", "svdquant")
    }
    name = "transformer_blocks.0.attn1.to_q"
    row = rows["svdquant"][name]
    assert row.branch == 19
    assert row.bytes == 192 * (96 + 24) + 2 * 19 * (192 + 192)
    assert rows["gptq"][name].branch is None
    assert rows["svdquant"]["proj_out"].branch is None


def test_narrow_layers_and_wide_weights() -> None:
    draft, alternatives = problem(PLAIN)
    narrow = Branch(rank=32, share=0.1).apply({"fc": draft}, alternatives.evidence)["fc"]
    assert narrow.spec.branch is not None
    assert narrow.spec.branch.rank == 1
    wide = replace(draft, spec=LayerSpec.of("int8", "int8", 8))
    assert Branch().apply({"fc": wide}, alternatives.evidence)["fc"] is wide
    with pytest.raises(UsageError, match=r"branch\.share"):
        Branch(share=0.0)
