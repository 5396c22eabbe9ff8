"""The whole line on the embedded demo pipeline: export, what the bundle holds, and the parity gate."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle, write_manifest
from fp4dit_onnx.bundle.manifest import read_manifest
from fp4dit_onnx.bundle.probe import load_graph, load_model, read_state
from fp4dit_onnx.calibration.choosing import CHOSEN
from fp4dit_onnx.calibration.sampling import load_pipeline
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.exporting.export import ExportRequest, ExportResult, export, plan
from fp4dit_onnx.families import FAMILIES
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.passes.pipeline import float_passes, run_passes
from fp4dit_onnx.spec.state import load_state
from fp4dit_onnx.torch_export import export_float
from fp4dit_onnx.verification.cases import CASES
from fp4dit_onnx.verification.verify import verify

FAST = {"method": "fp-rtn", "steps": 3, "calibration_prompts": 2, "report": False}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    folder = tmp_path_factory.mktemp("export")
    request = ExportRequest(output=folder / "fused", state=folder / "state.safetensors", **FAST)
    return export(request)


@pytest.fixture(scope="module")
def float_model() -> onnx.ModelProto:
    checkpoint = plan(ExportRequest(output=Path("unused"))).checkpoint
    network = load_pipeline(checkpoint).transformer
    model = export_float(network, FAMILIES[0], checkpoint.transformer_config)
    parameters = frozenset(t.name for t in model.graph.initializer)
    return run_passes(model, float_passes(parameters))[0]


def test_weights_take_at_most_4_3_bits_on_disk(exported: ExportResult) -> None:
    model = load_model(Bundle.open(exported.bundle).transformer)
    tensors = {t.name: t for t in model.graph.initializer}
    rows = exported.manifest.layers
    stored = sum(
        len(tensors[f"{row.name}.weight.{part}"].raw_data)
        for row in rows
        for part in ("codes", "scale")
    )
    weights = sum(row.weights for row in rows)
    assert 8 * stored / weights <= 4.3
    assert stored == exported.manifest.totals.bytes


def test_trained_weights_arrive_in_the_graph(tmp_path: Path) -> None:
    request = ExportRequest(
        output=tmp_path / "out",
        state=tmp_path / "state.safetensors",
        weight_format="auto",
        iterations=2,
        samples=16,
        calibration_prompts=2,
        steps=3,
        report=False,
    )
    result = export(request)
    assert not (tmp_path / "out.calibration").exists()
    state = load_state(tmp_path / "state.safetensors")
    found = read_state(load_model(Bundle.open(result.bundle).transformer))
    assert {n: q.spec for n, q in found.layers.items()} == {
        n: q.spec for n, q in state.layers.items()
    }
    for name, layer in state.layers.items():
        assert same_bits(layer.codes, found.layers[name].codes).ok
        assert same_bits(layer.scale, found.layers[name].scale).ok
    rows = {row.name: row.weight_format for row in result.manifest.layers}
    assert rows == {name: layer.spec.weight.format for name, layer in state.layers.items()}
    choices = result.manifest.choices
    assert {row.choice for row in choices} == {CHOSEN, "e2m1", "e1m2", "e3m0"}
    (taken,) = [row for row in choices if row.taken]
    assert taken.error == min(row.error for row in choices)
    assert taken.choice == CHOSEN or set(rows.values()) == {taken.choice}
    stages = result.manifest.method["stage"]
    assert [s["iterations"] for s in stages if "iterations" in s] == [2]
    assert verify(result.bundle, quick=True).ok


@pytest.mark.parametrize("changes", [{}, {"method": "fp-rtn", "measure": False}])
def test_a_damaged_model_leaves_nothing_behind(
    changes: Any, demo_copy: Path, tmp_path: Path
) -> None:
    """Calibrated, or rounded from its files."""
    weights = demo_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["proj_out.weight"][0, 0] = np.nan
    safetensors.numpy.save_file(tensors, weights)
    with pytest.raises(UsageError, match="layer proj_out: its weight holds NaN or infinity"):
        export(ExportRequest(output=tmp_path / "new" / "out", model=demo_copy, **changes))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["fp-rtn", "fp4dit"])
def test_a_folder_that_is_no_work_folder_is_never_deleted(tmp_path: Path, method: str) -> None:
    letter = tmp_path / "home" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    request = ExportRequest(
        output=tmp_path / "out", work=letter.parent, restart=True, **{**FAST, "method": method}
    )
    if method == "fp4dit":  # would need the folder
        with pytest.raises(UsageError, match="exists and holds no calibration"):
            export(request)
    else:
        export(request)
    assert letter.read_text() == "dear"


def test_no_float_copy_of_a_quantized_weight(
    exported: ExportResult, float_model: onnx.ModelProto
) -> None:
    model = load_model(Bundle.open(exported.bundle).transformer)
    quantized = read_state(model).layers
    floats = {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    for tensor in float_model.graph.initializer:
        if tensor.name.removesuffix(".weight") not in quantized:
            continue
        weight = numpy_helper.to_array(tensor)
        for name, value in floats.items():
            assert value.size != weight.size, f"{name} is as large as {tensor.name}"


def test_transformer_is_under_a_quarter_of_its_float_export(
    exported: ExportResult, float_model: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(float_model, tmp_path / "float.onnx")
    path = Bundle.open(exported.bundle).transformer
    size = path.stat().st_size + path.with_name(path.name + ".data").stat().st_size
    assert size < (tmp_path / "float.onnx").stat().st_size / 4


def test_state_file_and_graph_hold_the_same_codes(exported: ExportResult) -> None:
    state = load_state(exported.bundle.parent / "state.safetensors")
    carried = read_state(load_model(Bundle.open(exported.bundle).transformer))
    assert state.layers.keys() == carried.layers.keys()
    assert state.attention == carried.attention == exported.manifest.attention
    assert set(state.attention.values()) == {"e2m3"}
    for name, layer in state.layers.items():
        assert carried.layers[name].spec == layer.spec
        np.testing.assert_array_equal(carried.layers[name].codes, layer.codes)
        np.testing.assert_array_equal(carried.layers[name].scale, layer.scale)


def test_every_linear_and_pass_is_accounted_for(exported: ExportResult) -> None:
    manifest = exported.manifest
    counts = {p.name: p.rewritten for p in manifest.passes}
    layers = len(manifest.layers)
    assert layers == 86
    assert counts["insert_qdq"] == counts["pack_weights"] == counts["fuse_linear"] == layers
    assert counts["mend_squeeze"] == 1
    assert counts["quantize_attention"] == 3 * len(manifest.attention) == 48
    assert {r.weight_format for r in manifest.layers} == {"e2m1", "e3m0"}
    assert all(r.output_sqnr_db > 10 for r in manifest.layers)
    assert all(r.outliers.input_kurtosis > 1 and r.outliers.gains_db for r in manifest.layers)


def test_verify_passes(exported: ExportResult) -> None:
    result = verify(exported.bundle)
    assert result.ok, [c for c in result.checks if not c.ok]
    names = {c.name for c in result.checks}
    assert {"library nodes", "PyTorch codes", "kernel counter", "ONNX reference nodes"} <= names
    pairs = 2 * 3 * len(exported.manifest.attention)
    nodes = next(c for c in result.checks if c.name == "library nodes").detail
    assert int(nodes.split(": ")[1].removesuffix(" nodes")) >= pairs + 86


def test_attention_in_float(exported: ExportResult, tmp_path: Path) -> None:
    """Nothing but linears is quantized then, which costs less.

    Not on each single input: attention to one token of text is the same whatever its k is.
    """
    request = ExportRequest(output=tmp_path / "float", attention_format="none", **FAST)
    result = export(request)
    assert result.manifest.attention == {}
    model = load_model(Bundle.open(result.bundle).transformer)
    assert {n.op_type for n in model.graph.node if n.domain == ops.DOMAIN} == {
        ops.LINEAR,
        "FpQuantize",
        "FpGeluQuantize",
        "FpNormQuantize",
    }
    assert read_state(model).attention == {}
    assert result.manifest.model_sqnr_db > exported.manifest.model_sqnr_db
    mine, other = result.manifest.case_sqnr_db, exported.manifest.case_sqnr_db
    texts = [case.text for case in CASES]
    assert all(a > b for a, b, text in zip(mine, other, texts, strict=True) if text > 1)
    checked = verify(result.bundle, quick=True)
    assert checked.ok, [c for c in checked.checks if not c.ok]


def test_qdq_form_verifies(tmp_path: Path) -> None:
    request = ExportRequest(
        output=tmp_path / "qdq", form="qdq", bits="w4a8", scale="int4*f32", group_size=32, **FAST
    )
    result = export(request)
    model = load_model(Bundle.open(result.bundle).transformer)
    used = {n.op_type for n in model.graph.node if n.domain == ops.DOMAIN}
    assert used == {ops.UNPACK, ops.SCALE, ops.DEQUANTIZE, "FpQuantizeInt16"}
    checked = verify(result.bundle, quick=True)
    assert checked.ok, [c for c in checked.checks if not c.ok]


@pytest.mark.parametrize(
    ("bits", "changes", "used"),
    [
        (
            "w8a8",
            {},
            {
                "FpQuantizeInt16",
                "FpGeluQuantizeInt16",
                "FpNormQuantizeInt16",
                ops.LINEAR,
                ops.ATTENTION,
            },
        ),
        ("w4a16", {}, {ops.LINEAR}),
        (
            "w4a4",
            {"scale": "int4*f32", "group_size": 32, "activation_group_size": 16},
            # The paper's e3m0 leaves no room for multipliers.
            {
                "FpQuantize",
                "FpGeluQuantize",
                "FpNormQuantize",
                ops.LINEAR,
                ops.LINEAR_INTEGER,
                ops.ATTENTION,
            },
        ),
    ],
)
def test_other_bits_verify(
    bits: str, changes: dict[str, Any], used: set[str], tmp_path: Path
) -> None:
    result = export(ExportRequest(output=tmp_path / bits, bits=bits, **changes, **FAST))
    graph = load_graph(Bundle.open(result.bundle).transformer).graph
    assert {n.op_type for n in graph.node if n.domain == ops.DOMAIN} == used
    checked = verify(result.bundle, quick=True)
    assert checked.ok, [c for c in checked.checks if not c.ok]


@pytest.fixture
def tampered(exported: ExportResult, tmp_path: Path) -> tuple[Path, onnx.ModelProto]:
    """A copy of the bundle whose transformer may be changed; call `_seal` after."""
    folder = tmp_path / "tampered"
    for name in ("", *exported.manifest.files, "quantization.json"):
        source, target = exported.bundle / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder, onnx.load(folder / "transformer" / "model.onnx", load_external_data=False)


def _seal(folder: Path, model: onnx.ModelProto) -> None:
    """Write the changed model with a manifest whose hashes fit it."""
    (folder / "transformer" / "model.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, read_manifest(folder / "quantization.json"))


def test_verify_names_the_first_node_whose_body_computes_something_else(
    tampered: tuple[Path, onnx.ModelProto],
) -> None:
    folder, model = tampered
    body = next(f for f in model.functions if f.name == "FpQuantize")
    next(n for n in body.node if n.op_type == "Round").op_type = "Floor"
    _seal(folder, model)
    failed = [c for c in verify(folder, quick=True).checks if not c.ok]
    assert failed
    first = next(n.name for n in model.graph.node if n.op_type == "FpQuantize")
    assert f"first at node {first}" in failed[0].detail
    assert {c.name for c in failed} >= {"stock ONNX Runtime nodes", "ONNX reference nodes"}
    assert "library nodes" not in {c.name for c in failed}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_verify_finds_a_float_copy_of_a_weight_under_any_name(
    tampered: tuple[Path, onnx.ModelProto], dtype: type[np.floating]
) -> None:
    folder, model = tampered
    row = read_manifest(folder / "quantization.json").layers[0]
    copy = np.zeros(row.shape[::-1], dtype)
    model.graph.initializer.append(numpy_helper.from_array(copy, "folded"))
    _seal(folder, model)
    checks = {c.name: c for c in verify(folder, quick=True).checks}
    assert not checks["packed weights"].ok
    assert checks["packed weights"].detail == "folded"


def test_verify_finds_attention_that_the_manifest_has_not(
    tampered: tuple[Path, onnx.ModelProto],
) -> None:
    """Whole models are too far apart to tell: q, k and v cost less than the rest."""
    folder, model = tampered
    module = "transformer_blocks.0.attn1"
    other = FORMATS["int6"]
    for node in model.graph.node:
        quantizes = node.name in {f"{module}.{part}/Quantize" for part in "qkv"}
        if not quantizes and node.name != module:
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        given |= ops.quantize_attributes(other) if quantizes else {"format": other.name}
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(*item) for item in given.items())
    _seal(folder, model)
    (failed,) = (c for c in verify(folder, quick=True).checks if not c.ok)
    assert (failed.name, failed.detail) == ("attention", module)


def test_verify_refuses_an_altered_file(tampered: tuple[Path, onnx.ModelProto]) -> None:
    folder, _ = tampered
    data = folder / "transformer" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="sha256"):
        verify(folder, quick=True)


def test_kernels_that_cannot_run_are_one_line_and_exit_2(
    exported: ExportResult, tmp_path: Path
) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "fp4dit_onnx",
            "generate",
            str(exported.bundle),
            "--prompt",
            "x",
            "--output",
            str(tmp_path / "x.png"),
        ],
        env={**os.environ, "FP4DIT_ISA": "sparc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: custom-op library: ")
    assert "FP4DIT_ISA is 'sparc'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_plan_agrees_with_the_export(exported: ExportResult) -> None:
    planned = plan(ExportRequest(output=Path("unused")))
    assert planned.totals == exported.manifest.totals
    assert [r.name for r in planned.layers] == [r.name for r in exported.manifest.layers]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": "w5a5"}, "unknown bits"),
        ({"method": "magic"}, "unknown method"),
        ({"form": "other"}, "unknown form"),
        ({"weight_format": "e9m9"}, "unknown format"),
        ({"rules": ("nothing.*=e2m1",)}, "matches none of the 86"),
        ({"calibration_prompts": 0}, "prompts = 0: expected a whole number from 1"),
        ({"seed": -1}, "seed = -1: expected a whole number from 0"),
        ({"state": Path()}, "is a folder: expected the name of a file"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export(ExportRequest(output=tmp_path / "out", **options))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
