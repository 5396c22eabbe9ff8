"""Netron's own reader opens a quantized transformer and shows what it should show."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("netron")

import torch
from manifests import layer as row

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.annotation import annotate
from fp4dit_onnx.bundle.model_file import save_model
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.record import Sampler
from fp4dit_onnx.calibration.run import calibrate
from fp4dit_onnx.families import InputSpec, family_of
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.passes.pipeline import float_passes, quantize_passes, run_passes
from fp4dit_onnx.spec.recipe import FORMS, make_recipe
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.torch_export import export_float

READER = Path(__file__).with_name("netron_reader.mjs")
FAMILY = family_of("PixArtAlphaPipeline", "PixArtTransformer2DModel")
LINEAR_INPUTS = ["q", "scale", "codes", "weight_scale", "bias"]


def inputs_of(network: Any) -> tuple[InputSpec, ...]:
    """The inputs of the exported transformer."""
    return FAMILY.interface(network.config).inputs


@pytest.fixture(scope="session")
def netron_scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Netron's JavaScript beside a package.json that tells every version of node it is modules."""
    spec = importlib.util.find_spec("netron")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = tmp_path_factory.mktemp("netron")
    installed = Path(spec.submodule_search_locations[0])
    for file in (*installed.glob("*.js"), installed / "onnx-metadata.json"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture(scope="session")
def network(tiny_pixart: Callable[..., Any]) -> Any:
    """A random transformer of one block."""
    return tiny_pixart(num_layers=1)


@pytest.fixture(scope="session")
def models(network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The quantized transformer in each form: calibrated on one input, traced, rewritten."""
    recipe = make_recipe(
        "w4a6", method=method_by_name("fp-rtn"), paper_rules=FAMILY.paper_rules, group_size=8
    )
    linears = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
    specs, _ = recipe.assign(linears)
    sizes = {"batch": 2, "text": 5, "height": 8, "width": 8}
    inputs = {s.name: torch.ones(s.shape(network.config, sizes)) for s in inputs_of(network)}
    arguments = FAMILY.interface(network.config).keywords(inputs)

    def sample(on_call: Callable[[], None], first: int) -> None:
        network(**arguments)
        on_call()

    result = calibrate(
        whole(network),
        specs,
        method_by_name("fp-rtn"),
        Sampler(sample, calls=1),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
    )
    traced = export_float(network, FAMILY, network.config)
    parameters = frozenset(t.name for t in traced.graph.initializer)
    mended, _ = run_passes(traced, float_passes(parameters))
    rows = {
        name: row(
            name,
            shape=(q.n, q.k),
            weights=q.n * q.k,
            bytes=q.nbytes,
            output_sqnr_db=20.0,
        )
        for name, q in result.state.layers.items()
    }
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for form in FORMS:
        model, _ = run_passes(mended, quantize_passes(result.state, parameters, form))
        annotate(model, rows, {"source": "a random network"})
        paths[form] = folder / f"{form}.onnx"
        save_model(model, paths[form])
    return paths


@pytest.fixture(scope="session")
def read_with_netron(netron_scripts: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Runs Netron's reader on a model; skipped where there is no node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: Netron's reader is JavaScript")

    def read(model: Path) -> subprocess.CompletedProcess[str]:
        command = [node, str(READER), str(netron_scripts), str(model)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return read


@pytest.fixture(scope="session")
def shown(
    read_with_netron: Callable[[Path], subprocess.CompletedProcess[str]], models: dict[str, Path]
) -> dict[str, Any]:
    """What Netron shows of the model in each form."""
    result = {}
    for form, path in models.items():
        run = read_with_netron(path)
        assert run.returncode == 0, run.stderr
        result[form] = json.loads(run.stdout)
    return result


def of_type(shown: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [node for node in shown["nodes"] if node["type"] == kind]


@pytest.mark.parametrize("form", FORMS)
def test_the_model_opens_without_complaint(shown: dict[str, Any], network: Any, form: str) -> None:
    model = shown[form]
    assert model["errors"] == []
    assert model["format"].startswith("ONNX v")
    assert model["imports"] == [f"ai.onnx v{ops.OPSET}", f"{ops.DOMAIN} v{ops.VERSION}"]
    assert model["inputs"] == [spec.name for spec in inputs_of(network)]


@pytest.mark.parametrize("form", FORMS)
def test_nodes_are_called_after_modules(shown: dict[str, Any], network: Any, form: str) -> None:
    modules = {name for name, _ in network.named_modules()}
    for node in shown[form]["nodes"]:
        path = node["name"] if node["type"] == ops.LINEAR else node["name"].rpartition("/")[0]
        assert path.removesuffix(".input").removesuffix(".weight") in modules, node["name"]


def test_linears_show_named_inputs(shown: dict[str, Any], network: Any) -> None:
    """Every linear of the network; constants carry their torch name, type and data."""
    linears = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    found = {node["name"]: node for node in of_type(shown["fused"], ops.LINEAR)}
    assert found.keys() == linears.keys()
    for name, node in found.items():
        n, k = linears[name].weight.shape
        assert [entry["name"] for entry in node["inputs"]] == LINEAR_INPUTS
        assert [entry["name"] for entry in node["outputs"]] == ["y"]
        q, scale, codes, weight_scale, bias = (entry["tensors"][0] for entry in node["inputs"])
        assert (q["name"].endswith(".q"), scale["name"].endswith(".scale")) == (True, True)
        assert codes["name"] == f"{name}.weight.codes"
        assert (codes["type"], codes["bytes"]) == (f"uint8[{n},{k // 2}]", n * k // 2)
        groups = -(-k // 8)
        assert weight_scale["name"] == f"{name}.weight.scale"
        assert (weight_scale["type"], weight_scale["bytes"]) == (
            f"float16[{n},{groups}]",
            2 * n * groups,
        )
        assert (bias["name"], bias["type"], bias["bytes"]) == (
            f"{name}.bias",
            f"float32[{n}]",
            4 * n,
        )


def test_formats_show_as_attributes(shown: dict[str, Any]) -> None:
    by_name = {node["name"]: node["attributes"] for node in of_type(shown["fused"], ops.LINEAR)}
    for name, attributes in by_name.items():
        weight = "e3m0" if name.endswith("ff.net.0.proj") else "e2m1"
        assert (attributes["weight_format"], attributes["act_format"]) == (weight, "e2m3")
        assert (attributes["group_size"], attributes["bits"]) == (8, 4)
        assert attributes["grid"] == format_by_name(weight).grid.tolist()
    quantize = of_type(shown["fused"], "FpQuantize")
    assert {node["attributes"]["format"] for node in quantize} == {"e2m3"}


def test_one_quantize_feeds_q_k_and_v(shown: dict[str, Any]) -> None:
    found = {node["name"]: node for node in of_type(shown["fused"], ops.LINEAR)}
    read = {
        found[f"transformer_blocks.0.attn1.to_{x}"]["inputs"][0]["tensors"][0]["name"]
        for x in "qkv"
    }
    assert read == {"transformer_blocks.0.attn1.to_q.input.q"}
    assert len(of_type(shown["fused"], "FpQuantize")) < len(found)


@pytest.mark.parametrize("form", FORMS)
def test_function_bodies_are_reachable(shown: dict[str, Any], form: str) -> None:
    """From each node of our domain, and in the model's list; with their description."""
    model = shown[form]
    listed = {f["name"]: f for f in model["functions"]}
    own = [node for node in model["nodes"] if node["module"] == ops.DOMAIN]
    assert own
    assert {node["type"] for node in own} <= listed.keys()
    for node in own:
        body = ops.function(node["type"])
        # Netron shows a constant that only one node reads in that node.
        shown_as_nodes = [kind for kind in node["body"] if kind != "Constant"]
        assert shown_as_nodes == [n.op_type for n in body.node if n.op_type != "Constant"]
        assert [entry["name"] for entry in node["inputs"]] == list(body.input)
        assert [entry["name"] for entry in node["outputs"]] == list(body.output)
    for name, entry in listed.items():
        assert (entry["module"], entry["inputs"]) == (ops.DOMAIN, list(ops.function(name).input))
        assert entry["description"] == ops.function(name).doc_string
    assert (ops.LINEAR in listed) == (form == "fused")


def test_notes_of_a_node_show(shown: dict[str, Any]) -> None:
    """In the form `fused` at the linear, in the form `qdq` at the weight's nodes."""
    name = "transformer_blocks.0.attn1.to_q"
    fused = {node["name"]: node for node in shown["fused"]["nodes"]}
    linear = fused[name]
    k, n = linear["attributes"]["K"], linear["inputs"][4]["tensors"][0]["bytes"] // 4
    assert linear["description"] == f"Linear {k} to {n}: W e2m1 in groups of 8, A e2m3"
    assert list(linear["metadata"]) == ["packed", "density", "output SQNR"]
    assert linear["metadata"]["output SQNR"] == "20.00 dB"
    quantize = fused[f"{name}.input/Quantize"]
    assert quantize["metadata"] == {
        "bits": "6",
        "read by": ", ".join(f"transformer_blocks.0.attn1.to_{x}" for x in "qkv"),
    }
    spread = {node["name"]: node for node in shown["qdq"]["nodes"]}
    assert spread[f"{name}.weight/Unpack"]["metadata"] == linear["metadata"]
    assert spread[f"{name}.input/Quantize"]["metadata"] == quantize["metadata"]
    assert all(node["description"] for node in spread.values() if node["module"] == ops.DOMAIN)


@pytest.mark.parametrize("form", FORMS)
def test_notes_of_the_model_show(shown: dict[str, Any], form: str) -> None:
    model = shown[form]
    assert re.fullmatch(r"\d+ linear layers in 6\.\d{3} bits per weight", model["description"])
    assert model["producer"] == f"fp4dit-onnx {importlib.metadata.version('fp4dit-onnx')}"
    assert model["metadata"]["source"] == "a random network"
    assert model["metadata"]["least output SQNR"].startswith("20.00 dB, ")


def test_the_reader_reports_a_damaged_file(
    read_with_netron: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The script behind these tests fails where Netron does."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    run = read_with_netron(broken)
    assert run.returncode != 0
    assert "Unsupported file content" in run.stderr
