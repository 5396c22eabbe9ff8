"""The profiler tool: what it makes of ONNX Runtime's events, and of memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from command_line import Run
from manifests import EMPTY

from fp4dit_onnx.bundle.bundle import REQUIRED_FILES, write_manifest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.ops import (
    DOMAIN,
    IR_VERSION,
    LINEAR,
    OPSET,
    VERSION,
    attach_functions,
    linear_attributes,
)
from fp4dit_onnx.spec.spec import LayerSpec

pytest.importorskip("onnxruntime")

import profile_bundle as tool

# A linear, an attention's products, and what comes between: x [batch, text, 8].
FLOAT_MODEL = f"""
<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>
g (float[batch, text, 8] x, int64[batch, text] mask, float[batch] timestep)
  => (float[batch, text, text] y)
{{
    ["fc"] h = MatMul (x, w)
    ["turn"] k = Transpose <perm = [0, 2, 1]> (h)
    ["scores"] s = MatMul (h, k)
    ["weights"] p = Softmax <axis = -1> (s)
    last = Constant <value_ints = [1]> ()
    m = Cast <to = 1> (mask)
    row = Unsqueeze (m, last)
    y = Mul (p, row)
}}
"""


def float_model(path: Path) -> Path:
    model = onnx.parser.parse_model(FLOAT_MODEL)
    weight = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=64)
    return path


@pytest.fixture
def quantized_bundle(tmp_path: Path) -> Path:
    """A bundle whose transformer is one weight-only FpLinear, K = 128, N = 64."""
    folder = tmp_path / "bundle"
    for name in (*REQUIRED_FILES, "vae_decoder/model.onnx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"sample_size": 8}')
    fmt = LayerSpec.of("e2m1", None, 128).weight_format
    constants: dict[str, npt.NDArray[Any]] = {
        "one": np.ones(1, np.float32),
        "codes": np.full((64, 64), 0x21, np.uint8),
        "scale": np.ones((64, 1), np.float16),
        "bias": np.zeros(64, np.float32),
    }
    node = onnx.helper.make_node(
        LINEAR,
        ["x", *constants],
        ["y"],
        "fc",
        domain=DOMAIN,
        **linear_attributes(None, fmt, 128, 128),
    )
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", floats, ["batch", "text", 128])],
        [onnx.helper.make_tensor_value_info("y", floats, ["batch", "text", 64])],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    attach_functions(model)
    onnx.save(model, folder / "transformer" / "model.onnx")
    float_model(folder / "text_encoder" / "model.onnx")
    write_manifest(folder, EMPTY)
    return folder


def run_event(start: int, length: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": length, "args": {}}


def node_event(name: str, start: int, length: int, **args: Any) -> dict[str, Any]:
    """An event as ONNX Runtime writes it: shapes by element type."""
    shapes = {
        f"{side}_type_shape": [{"float": list(shape)} for shape in args.pop(side, [])]
        for side in ("input", "output")
    }
    given = {"op_name": "Add", "node_index": "1", **shapes, **args}
    return {"cat": "Node", "name": name, "ts": start, "dur": length, "args": given}


def test_nodes_are_medians_over_the_last_runs() -> None:
    def linear(at: int, length: int) -> dict[str, Any]:
        shapes = {"input": [(2, 3, 8), (2, 3, 1)], "output": [(2, 3, 5)]}
        return node_event("fc_kernel_time", at, length, op_name="FpLinear", **shapes)

    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 90, "args": {}},
        linear(110, 9000),  # while warming up
        run_event(100, 50),
        *(linear(210, 40), node_event("fc_fence_before", 205, 7), run_event(200, 90)),
        *(node_event("step_kernel_time", 261, 5), node_event("step_kernel_time", 270, 6)),
        *(linear(310, 20), run_event(300, 90)),
        *(linear(410, 30), run_event(400, 90), node_event("step_kernel_time", 420, 2)),
        node_event("late_kernel_time", 999, 5),
    ]
    fc, step = tool.nodes_of(events, 3)
    assert (fc.name, fc.op, fc.ms) == ("fc", "FpLinear", 0.03)
    assert (fc.inputs, fc.outputs) == (((2, 3, 8), (2, 3, 1)), ((2, 3, 5),))
    assert (step.name, step.ms) == ("step", 0.002)  # 11, 0 and 2 microseconds
    assert fc.gops == pytest.approx(2 * 6 * 5 * 8 / 30e-6 / 1e9)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "group", "operations"),
    [
        ("FpLinear", [(2, 4, 8), (2, 4, 1)], [(2, 4, 3)], "linears", 2 * 8 * 3 * 8),
        ("MatMul", [(2, 4, 8)], [(2, 4, 3)], "linears", 2 * 8 * 3 * 8),  # prepacked
        ("MatMul", [(2, 4, 8), (8, 3)], [(2, 4, 3)], "linears", 2 * 8 * 3 * 8),
        ("Gemm", [(4, 8), (3,)], [(4, 3)], "linears", 2 * 4 * 3 * 8),
        ("FusedMatMul", [(2, 5, 4, 8), (2, 5, 8, 7)], [(2, 5, 4, 7)], "attention", 2 * 280 * 8),
        # q [2, 4, 5, 8], k and v [2, 7, 5, 8]: two products of 2 * 5 heads
        (
            "FpAttention",
            [(2, 4, 5, 8), (2, 4, 5, 1), (2, 7, 5, 8)],
            [(2, 4, 5, 8)],
            "attention",
            2 * 2 * (2 * 5) * 4 * 7 * 8,
        ),
        ("Softmax", [(2, 4)], [(2, 4)], "attention", None),
        ("FpQuantizeInt16", [(2, 4)], [(2, 4), (2, 1)], "quantizers", None),
        ("SkipLayerNormalization", [(2, 4)], [(2, 4)], "normalization", None),
        ("QuickGelu", [(2, 4)], [(2, 4)], "element-wise", None),
        ("Transpose", [(2, 4)], [(4, 2)], "layout", None),
        ("Conv", [(1, 4, 8, 8)], [(1, 8, 4, 4)], "the rest", None),
        ("MatMul", [], [], "linears", None),
    ],
)
def test_groups_and_rates(
    op: str,
    inputs: list[tuple[int, ...]],
    outputs: list[tuple[int, ...]],
    group: str,
    operations: float | None,
) -> None:
    node = tool.Node("n", op, 2.0, tuple(inputs), tuple(outputs))
    assert node.group == group
    assert node.gops == (None if operations is None else pytest.approx(operations / 2e-3 / 1e9))
    assert tool.Node("n", op, 0.0, tuple(inputs), tuple(outputs)).gops is None


def test_totals_add_up() -> None:
    nodes = [
        tool.Node(str(i), op, ms, (), ())
        for i, (op, ms) in enumerate([("Add", 1.0), ("Mul", 6.0), ("Add", 3.0)])
    ]
    assert tool.totals(nodes, lambda node: node.op) == [
        {"name": "Mul", "ms": 6.0, "share": 0.6, "count": 1, "mean_ms": 6.0},
        {"name": "Add", "ms": 4.0, "share": 0.4, "count": 2, "mean_ms": 2.0},
    ]
    assert tool.totals([], lambda node: node.op) == []


def test_the_same_nodes_of_several_blocks_are_one_row() -> None:
    def node(name: str, ms: float, rows: int = 4) -> dict[str, Any]:
        made: dict[str, Any] = tool.Node(
            name, "FpLinear", ms, ((rows, 8),), ((rows, 3),)
        ).to_json()
        return made

    given = [node("blocks.0.ff.net.2", 1.0), node("blocks.17.ff.net.2", 3.0)]
    given += [node("blocks.0.ff.net.2", 2.0, rows=5), node("blocks.0.ff.net.0", 5.0)]
    rows = tool.alike(given)
    assert [(row["name"], row["ms"], row["count"]) for row in rows] == [
        ("blocks.0.ff.net.0", 5.0, 1),
        ("blocks.*.ff.net.2", 4.0, 2),
        ("blocks.0.ff.net.2", 2.0, 1),
    ]
    rate = rows[1]["gop"] / rows[1]["ms"]
    assert rate == pytest.approx(2 * (2 * 4 * 3 * 8) / 4e-3 / 1e9)  # both nodes' work in 4 ms


def declared(name: str, shape: list[Any], element: str = "tensor(float)") -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=shape, type=element)


def test_inputs_are_random_and_masks_hide_nothing() -> None:
    inputs = [
        declared("x", ["batch", 3, "text"]),
        declared("mask", ["batch", "text"], "tensor(int64)"),
        declared("timestep", ["batch"], "tensor(float16)"),
        declared("style", ["batch"], "tensor(int64)"),
    ]
    feed = tool.feed_of(inputs, {"batch": 2, "text": 500})
    assert feed["x"].shape == (2, 3, 500)
    assert feed["x"].dtype == np.float32
    assert feed["x"].std() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(feed["mask"], np.ones((2, 500), np.int64))
    np.testing.assert_array_equal(feed["timestep"], np.array([500, 500], np.float16))
    np.testing.assert_array_equal(feed["style"], np.zeros(2, np.int64))
    with pytest.raises(
        UsageError, match=r"input x: axis height has no known size.*--dim height=SIZE"
    ):
        tool.feed_of([declared("x", ["height"])], {"batch": 2})
    with pytest.raises(UsageError, match="input s is a tensor"):
        tool.feed_of([declared("s", [1], "tensor(string)")], {})


def test_a_bundle_from_end_to_end(
    quantized_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main([str(quantized_bundle), "--tokens", "9", "--runs", "3", "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    (node,) = found["nodes"]
    assert (node["name"], node["op"], node["group"]) == ("fc", "FpLinear", "linears")
    assert node["inputs"][0] == [2, 9, 128]
    assert node["gops"] == pytest.approx(2 * 2 * 9 * 64 * 128 / node["ms"] / 1e6)
    assert found["groups"][0]["share"] == 1
    assert found["nodes_ms"] == node["ms"]
    for kind in ("plain", "profiled"):
        assert len(found[kind]["ms"]) == 3
        assert min(found[kind]["ms"]) <= found[kind]["median_ms"] <= max(found[kind]["ms"])
        assert found[kind]["cores"] > 0
    transformer = quantized_bundle / "transformer" / "model.onnx"
    assert found["target"]["nbytes"] == transformer.stat().st_size
    memory = found["memory"]
    if memory is not None:
        peaks = [memory["stages"][stage]["peak"] for stage in ("start", "imports", "load", "run")]
        assert peaks == sorted(peaks)
        for stage in memory["stages"].values():
            assert stage["rss"] == stage["anonymous"] + stage["file"]
            assert stage["pss"] <= stage["rss"] <= 1.05 * stage["peak"]
        load = memory["stages"]["load"]["rss"]
        assert load == pytest.approx(
            memory["times_model"] * found["target"]["nbytes"] + memory["before_bytes"]
        )
        assert memory["within"] == (load <= 1.2 * found["target"]["nbytes"] + 100e6)
        assert memory["load_seconds"] > 0


def test_other_models_are_printed_as_tables(
    quantized_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.modules["session_memory"], "ROLLUP", Path("/nowhere"))
    path = quantized_bundle / "text_encoder" / "model.onnx"
    options = ["--batch", "3", "--tokens", "70", "--runs", "2", "--top", "2"]
    for given in ([str(path)], [str(quantized_bundle), "--model", "text_encoder"]):
        tool.main([*given, *options])
        out = capsys.readouterr().out
        assert "batch 3, text 70; " in out
        assert "no operators of ours" in out
        assert "3x70x512" in out
        for word in ("attention", "linears", "layout", "element-wise", "Softmax", "scores"):
            assert word in out
        assert out.count("3x70x70") <= 4  # two nodes
        assert "sum of nodes" in out
        assert "no /proc/self/smaps_rollup" in out


def test_a_transformer_is_run_at_its_own_size(quantized_bundle: Path) -> None:
    def sizes(*options: str) -> dict[str, int]:
        given = tool._arguments([str(quantized_bundle), "--tokens", "9", *options])
        found: dict[str, int] = tool.target_of(given).sizes
        return found

    path = quantized_bundle / "transformer" / "model.onnx"
    model = onnx.load(path)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(
            "z", onnx.TensorProto.FLOAT, ["batch", "height", "width"]
        )
    )
    onnx.save(model, path)
    write_manifest(quantized_bundle, EMPTY)
    assert sizes() == {"batch": 2, "text": 9, "height": 8, "width": 8}
    assert sizes("--dim", "width=12") == {"batch": 2, "text": 9, "height": 8, "width": 12}


def test_bytes_are_those_of_all_files(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx")

    def target(*options: str) -> Any:
        return tool.target_of(tool._arguments([str(path), *options]))

    assert target().nbytes == path.stat().st_size + (tmp_path / "w.data").stat().st_size
    assert target("--dim", "text=7").sizes == {"batch": 2, "text": 7}
    assert target().isa is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "unet"], "model unet: expected transformer, text_encoder"),
        (["--model", "nowhere.onnx"], "nowhere.onnx: no readable ONNX model"),
        (["--isa", "mmx"], "instruction set 'mmx': expected one of"),
        (["--model", "vae_decoder"], "no readable ONNX model"),
        (["--dim", "depth=3"], "axis depth: expected one of batch, text"),
    ],
)
def test_errors_are_one_line(
    quantized_bundle: Path, run: Run, options: list[str], words: str
) -> None:
    run(quantized_bundle, *options, main=tool.main).refuses(words)


@pytest.mark.parametrize(
    ("old", "words"),
    [(b"w.data", "v.data not found"), (b"text", "axis tevt has no known size")],
)
def test_models_that_cannot_be_run(tmp_path: Path, run: Run, old: bytes, words: str) -> None:
    path = float_model(tmp_path / "m.onnx")
    new = old.replace(b"w", b"v").replace(b"x", b"v")
    path.write_bytes(path.read_bytes().replace(old, new))
    run(path, "--runs", "1", main=tool.main).refuses(words)


@pytest.mark.parametrize("option", [["--runs", "0"], ["--dim", "text"], ["--batch", "x"]])
def test_numbers_are_checked(run: Run, option: list[str]) -> None:
    code, _, err = run("bundle", *option, main=tool.main)
    assert code == 2
    assert "expected" in err
