"""The tool that makes a large transformer a block at a time: the same as an export makes whole."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

from fp4dit_onnx.benchmark.requests import step_case
from fp4dit_onnx.benchmark.sessions import make_session
from fp4dit_onnx.bundle import Bundle
from fp4dit_onnx.compare import sqnr_db
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.inspection import inspect_bundle
from fp4dit_onnx.library import supported_isas
from fp4dit_onnx.models.pixart import PIXART_ALPHA
from fp4dit_onnx.ops import DOMAIN
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pipeline import float_passes, quantize_passes, run_passes
from fp4dit_onnx.probe import load_model, read_state
from fp4dit_onnx.torch_export import export_float

Array = npt.NDArray[Any]
TOOLS = Path(__file__).resolve().parents[1] / "tools"
OPTIONS = ("--blocks", "3", "--width", "96", "--heads", "4", "--caption", "64", "--size", "64")
FORMS = ("float", "transformer")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/xl_step.py as a module."""
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("xl_step", TOOLS / "xl_step.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["xl_step"] = module  # its dataclasses look themselves up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


@pytest.fixture(scope="module")
def made(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes for three blocks of width 96; not to be changed."""
    output = tmp_path_factory.mktemp("xl") / "made"
    tool.main(["--output", str(output), *OPTIONS])
    return output


@pytest.fixture(scope="module")
def whole(tool: ModuleType) -> dict[str, onnx.ModelProto]:
    """The same transformer by the way of an export: all blocks traced and rewritten at once."""
    network = tool.network(tool.Size(blocks=3, width=96, heads=4, caption=64, pixels=64))
    state = tool.quantized({name: p.numpy() for name, p in network.named_parameters()})
    model = export_float(network, PIXART_ALPHA, network.config)
    parameters = frozenset(tensor.name for tensor in model.graph.initializer)
    model, _ = run_passes(model, float_passes(parameters))
    plain, _ = run_passes(model, [NameTensors(parameters, frozenset())])
    fused, _ = run_passes(model, quantize_passes(state, parameters, "fused"))
    return {"float": plain, "transformer": fused}


def feed(batch: int = 2, text: int = 9) -> dict[str, Array]:
    """Inputs of the small transformer: latents of 8 x 8, some text tokens hidden."""
    random = np.random.default_rng(0)
    mask = (random.random((batch, text)) < 0.7).astype(np.int64)
    mask[:, 0] = 1
    return {
        "hidden_states": random.standard_normal((batch, 4, 8, 8)).astype(np.float32),
        "encoder_hidden_states": random.standard_normal((batch, text, 64)).astype(np.float32),
        "timestep": np.linspace(20, 980, batch).astype(np.float32),
        "encoder_attention_mask": mask,
    }


def result(model: bytes | Path, form: str) -> Array:
    isa = supported_isas()[0] if form == "transformer" else None
    found: Array = make_session(model, 1, isa=isa).run(None, feed())[0]
    return found


@pytest.mark.parametrize("form", FORMS)
def test_same_graph_and_same_bits_as_exported_whole(
    made: Path, whole: Mapping[str, onnx.ModelProto], form: str
) -> None:
    path, twin = made / form / "model.onnx", whole[form]
    model = onnx.load(path)

    def nodes(graph: onnx.GraphProto) -> Counter[tuple[str, str]]:
        return Counter((node.name, node.op_type) for node in graph.node)

    assert nodes(model.graph) == nodes(twin.graph)
    values, wanted = (
        {t.name: onnx.numpy_helper.to_array(t) for t in each.graph.initializer}
        for each in (model, twin)
    )
    for name, value in wanted.items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)
        assert values[name].dtype == value.dtype
    found, expected = result(path, form), result(twin.SerializeToString(), form)
    assert np.ptp(found) > 1
    np.testing.assert_array_equal(found, expected)


def test_forms_are_the_same_network(made: Path) -> None:
    plain, fused = (result(made / form / "model.onnx", form) for form in FORMS)
    assert sqnr_db(plain, fused) > 8
    ops = {node.domain for node in load_model(made / "float" / "model.onnx").graph.node}
    assert ops == {""}


def test_blocks_have_weights_of_their_own(made: Path) -> None:
    model = load_model(made / "transformer" / "model.onnx")
    state = read_state(model)
    assert len(state.layers) == 3 * 10 + 6
    assert len(state.attention) == 3 * 2
    codes = [state.layers[f"transformer_blocks.{i}.ff.net.2"].codes for i in range(3)]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert (codes[i] != codes[j]).mean() > 0.5
    formats = Counter(layer.spec.weight for layer in state.layers.values())
    assert formats == {"e3m0": 3, "e2m1": 33}


def test_the_folder_is_a_bundle_that_can_be_timed(made: Path) -> None:
    bundle = Bundle.open(made)
    bundle.check_files(deep=True)
    facts = inspect_bundle(made)
    assert len(facts["layers"]) == facts["manifest"]["totals"]["layers"] == 36
    totals = facts["manifest"]["totals"]
    sizes = [path.stat().st_size for path in (made / "transformer").glob("model.onnx*")]
    assert totals["transformer_bytes"] == sum(sizes)
    assert totals["weights"] == sum(n * k for n, k in (row["shape"] for row in facts["layers"]))
    case = step_case(made, made / "float" / "model.onnx", 2, None)
    assert case.feed["encoder_hidden_states"].shape == (2, 120, 64)


def test_tensors_are_aligned_and_read_back(tool: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = {
        "small": np.array([1, 2], np.float32),
        "codes": random.integers(0, 255, (3, 1001)).astype(np.uint8),
        "large": random.standard_normal((512, 600)).astype(np.float32)[:, :513],
        "half": random.standard_normal(5000).astype(np.float16),
    }
    header = '<ir_version: 10, opset_import: ["": 21]>'
    text = header + "g (float[2] x) => (float[2] y) { y = Add (x, small) }"
    file = tool.ModelFile(tmp_path / "folder" / "m.onnx")
    for name, value in values.items():
        file.add(name, value)
    file.finish(onnx.parser.parse_model(text))
    for tensor in onnx.load(file.path, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert bool(place) == (tensor.name != "small")
        if place:
            assert int(place["offset"]) % (1 << 16 if tensor.name == "large" else 64) == 0
    for tensor in onnx.load(file.path).graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), values[tensor.name])


def test_weights_spread_as_trained_ones(tool: ModuleType) -> None:
    shapes = {"a.weight": (400, 300), "a.bias": (4000,), "table": (60, 100)}
    drawn, other = tool.draw(shapes, 1, 0), tool.draw(shapes, 1, 1)
    assert {name: value.shape for name, value in drawn.items()} == shapes
    assert all(value.dtype == np.float32 for value in drawn.values())
    rows = drawn["a.weight"].std(axis=1) * np.sqrt(300)
    assert np.median(rows) == pytest.approx(1, abs=0.1)
    assert np.log(rows).std() == pytest.approx(0.3, abs=0.05)
    assert drawn["a.bias"].std() == pytest.approx(0.02, rel=0.05)
    assert drawn["table"].std() == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(tool.draw(shapes, 1, 0)["table"], drawn["table"])
    assert (drawn["a.weight"] != other["a.weight"]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--width", "98"], "width 98: expected a multiple of 4 and of the 16 heads"),
        (["--size", "100"], "size 100: expected a multiple of 16 pixels"),
        (["--blocks", "0"], "blocks 0: expected at least 1"),
        (["--seed", "-1"], "seed -1: expected 0 or more"),
    ],
)
def test_sizes_are_checked_before_anything_is_made(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main(["--output", str(tmp_path / "new" / "xl"), *options])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.err == f"error: {words}\n"
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit) as caught:
        tool.main(["--output", str(tmp_path), "--overwrite"])
    assert caught.value.code == 2
    assert "is not empty and holds no bundle" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "kept"


BLOCK = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2] x) => (float[2] y) {
    ["transformer_blocks.0.norm1/LayerNormalization"] "transformer_blocks.0/a" = Neg (x)
    ["transformer_blocks.0/Add"] "transformer_blocks.0/b" = Add ("transformer_blocks.0/a", OTHER)
    ["out"] y = Mul ("transformer_blocks.0/b", "transformer_blocks.0/LAST")
}
"""


def test_blocks_are_chained(tool: ModuleType, tmp_path: Path) -> None:
    text = BLOCK.replace("OTHER", '"transformer_blocks.0.bias"').replace("LAST", "b")
    model = onnx.parser.parse_model(text)
    constant = onnx.numpy_helper.from_array(
        np.array([1, 2], np.float32), "transformer_blocks.0.bias"
    )
    model.graph.initializer.append(constant)
    file = tool.ModelFile(tmp_path / "m.onnx")
    chain = tool.Chain(model, file)
    chain.add_constants({}, 0)
    chain.add_constants({"transformer_blocks.0.bias": np.array([10, 20], np.float32)}, 1)
    with pytest.raises(Fp4DitError, match=r"no initializer transformer_blocks\.0\.weight"):
        chain.add_constants({"transformer_blocks.0.weight": np.array([0], np.float32)}, 2)
    chain.finish(2)
    (y,) = make_session(file.path, 1).run(None, {"x": np.array([3, 5], np.float32)})
    np.testing.assert_array_equal(y, np.square(np.array([10 - (1 - 3), 20 - (2 - 5)], np.float32)))


def test_a_block_that_is_tied_otherwise_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    two_exits = BLOCK.replace("OTHER", "x").replace("LAST", "a")
    no_entry = BLOCK.replace("OTHER", "x").replace("LAST", "b").replace("norm1", "norm2")
    with contextlib.closing(tool.ModelFile(tmp_path / "m.onnx")) as file:
        for text in (two_exits, no_entry):
            with pytest.raises(Fp4DitError, match="expected one each"):
                tool.Chain(onnx.parser.parse_model(text), file)


def test_domain_of_the_quantized_model_is_declared(made: Path) -> None:
    model = onnx.load(made / "transformer" / "model.onnx", load_external_data=False)
    assert {opset.domain for opset in model.opset_import} == {"", DOMAIN}
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    assert used <= {function.name for function in model.functions}
