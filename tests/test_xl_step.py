"""The tool that makes a large transformer: the product's own export of random weights, and its float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command_line import Run

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import torch
import xl_step as tool
from diffusers import PixArtTransformer2DModel

from fp4dit_onnx.benchmark.requests import step_case
from fp4dit_onnx.benchmark.sessions import make_session
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.probe import load_model, read_state
from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.ops import DOMAIN
from fp4dit_onnx.report.inspection import inspect_bundle
from fp4dit_onnx.runtime.library import supported_isas
from fp4dit_onnx.system.silence import quiet

Array = npt.NDArray[Any]
OPTIONS = ("--blocks", "3", "--width", "96", "--heads", "4", "--caption", "64", "--size", "64")
FORMS = ("float", "transformer")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes for three blocks of width 96; not to be changed."""
    output = tmp_path_factory.mktemp("xl") / "made"
    tool.main(["--output", str(output), *OPTIONS])
    return output


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same transformer in torch, from weights drawn anew."""
    folder = tmp_path_factory.mktemp("drawn") / "again"
    tool.write_checkpoint(tool.Size(blocks=3, width=96, heads=4, caption=64, pixels=64), folder)
    with quiet():
        loaded = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    return loaded.eval().requires_grad_(requires_grad=False)


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


def result(model: Path, form: str) -> Array:
    isa = supported_isas()[0] if form == "transformer" else None
    found: Array = make_session(model, 1, isa=isa).run(None, feed())[0]
    return found


def test_the_float_model_is_the_network(made: Path, network: Any) -> None:
    """Parameters bit for bit, results up to float32 rounding: 100 dB is a part in 10^5."""
    model = onnx.load(made / "float" / "model.onnx")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(values[name], parameter.numpy(), err_msg=name)
    given = {name: torch.from_numpy(value) for name, value in feed().items()}
    conditions = {"resolution": None, "aspect_ratio": None}
    expected = network(**given, added_cond_kwargs=conditions, return_dict=False)[0].numpy()
    found = result(made / "float" / "model.onnx", "float")
    assert np.ptp(found) > 1
    assert sqnr_db(expected, found) > 100


def test_the_quantized_model_is_rounded_to_nearest(made: Path, network: Any) -> None:
    linears = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    state = read_state(load_model(made / "transformer" / "model.onnx"))
    assert state.layers.keys() == linears.keys()
    for name, layer in state.layers.items():
        wanted = quantize_layer(name, linears[name].weight, layer.spec)
        np.testing.assert_array_equal(layer.codes, wanted.codes, err_msg=name)
        np.testing.assert_array_equal(layer.scale, wanted.scale, err_msg=name)


def test_forms_are_the_same_network(made: Path) -> None:
    plain, fused = (result(made / form / "model.onnx", form) for form in FORMS)
    assert 8 < sqnr_db(plain, fused) < 40
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
    formats = Counter(layer.spec.weight.format for layer in state.layers.values())
    assert formats == {"e3m0": 3, "e2m1": 33}


def test_the_folder_is_a_bundle_that_can_be_timed(made: Path) -> None:
    bundle = Bundle.open(made)
    bundle.check_files(deep=True)
    assert not bundle.whole
    listed = {"float/model.onnx", "float/model.onnx.data", "transformer/model.onnx.data"}
    assert listed < set(bundle.manifest.files)
    folders = sorted(path.name for path in made.iterdir())
    assert folders == ["float", "model_index.json", "quantization.json", "transformer"]
    assert sorted(path.name for path in made.parent.iterdir()) == ["made"]
    facts = inspect_bundle(made)
    totals = facts["manifest"]["totals"]
    assert len(facts["layers"]) == totals["layers"] == 36
    assert totals["weights"] == sum(n * k for n, k in (row["shape"] for row in facts["layers"]))
    assert facts["manifest"]["sampling"]["height"] == 64
    case = step_case(made, made / "float" / "model.onnx", 2, None)
    assert case.feed["encoder_hidden_states"].shape == (2, 120, 64)
    assert case.feed["hidden_states"].shape == (2, 4, 8, 8)
    assert case.reference is not None
    assert case.reference.shape == (2, 8, 8, 8)


def test_seeds_give_other_weights(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 1, 1):
        folder = tmp_path / str(len(drawn))
        tool.write_checkpoint(tool.Size(1, 32, 4, 16, 64, seed), folder)
        (path,) = (folder / "transformer").glob("*.safetensors")
        drawn.append(path.read_bytes())
    assert drawn[0] != drawn[1] == drawn[2]


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
    tmp_path: Path, run: Run, options: list[str], words: str
) -> None:
    refused = run("--output", tmp_path / "new" / "xl", *options, main=tool.main)
    assert refused == (2, "", f"error: {words}\n")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    refused = run("--output", tmp_path, "--overwrite", main=tool.main)
    refused.refuses("is not empty and holds no bundle")
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "write_float", fail)
    options = ["--blocks", "1", "--width", "32", "--heads", "4", "--caption", "16", "--size", "64"]
    with pytest.raises(KeyboardInterrupt):
        tool.main(["--output", str(tmp_path / "xl"), *options])
    assert list(tmp_path.iterdir()) == []


def test_domain_of_the_quantized_model_is_declared(made: Path) -> None:
    model = onnx.load(made / "transformer" / "model.onnx", load_external_data=False)
    assert {opset.domain for opset in model.opset_import} == {"", DOMAIN}
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    assert used <= {function.name for function in model.functions}
