"""The target ``nbits``: weights exactly the bundle's, multiplied by ONNX Runtime's own operator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from command_line import Run
from linear_models import FORMS, linear_model
from onnx import numpy_helper

from fp4dit_onnx.bundle.bundle import Bundle, write_manifest
from fp4dit_onnx.bundle.probe import attributes, load_model
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.exporting.export import ExportRequest, plan
from fp4dit_onnx.numbers.compare import UNIT_ROUNDOFF
from fp4dit_onnx.numbers.formats import FORMATS, format_by_name
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.targets import convert, target_by_name
from fp4dit_onnx.targets.matmul_nbits import bits_of, block_of, linear, rounding_bound, values
from fp4dit_onnx.targets.nbits import MATMUL, nbits
from fp4dit_onnx.verification.verify import verify

Array = npt.NDArray[Any]
LEAST_DB = 45.0
STEPS = 6
SHAPES = {(64, 32): 32, (96, 48): 16, (40, 16): 16, (72, 72): 16, (20, 20): 16, (512, 512): 256}
"""(K, group) -> block: powers of two, a group of several blocks, rows that end within one."""


@pytest.fixture(scope="module")
def bodies(drawable: Callable[..., Path]) -> Path:
    return drawable("w4a16")


@pytest.fixture(scope="module")
def converted(bodies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nbits") / "bundle"
    return convert(bodies, folder, target_by_name("nbits")).bundle


LAYER = "transformer_blocks.0.attn1.to_q"


def product(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in products(model) if node.name == f"{LAYER}/product")


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == MATMUL]


def test_bits_of_every_format() -> None:
    four = {"e1m2", "int4"}
    eight = {"e2m1", "e3m0", "e2m3", "int6", "int8"}
    assert {name for name in FORMATS if bits_of(format_by_name(name)) == 4} == four
    assert {name for name in FORMATS if bits_of(format_by_name(name)) == 8} == eight


def test_blocks() -> None:
    assert {shape: block_of(*shape) for shape in SHAPES} == SHAPES
    assert block_of(36, 24) is None
    assert block_of(64, 8) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["e1m2", "int4", "e2m1", "e3m0", "int8"])
@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
def test_a_linear(name: str, form: str, half: bool, tmp_path: Path) -> None:
    """The embedded weight has the body's bits, and ONNX Runtime's product is within the bound."""
    for shape in SHAPES:
        model, weight, bias = linear_model(name, "e2m3", form, shape)
        made = nbits(model, half=half)
        (node,) = products(made)
        tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        given = attributes(node)
        stored = [tensors[i] for i in node.input[1:]]
        found = values(*stored, given["K"], given["bits"])
        assert np.array_equal(found.view(np.uint32) << 1, weight.view(np.uint32) << 1)
        whole = values(*stored, stored[0][0].size * 8 // given["bits"], given["bits"])
        assert not whole[:, shape[0] :].any()  # beyond the row
        x = np.random.default_rng(2).standard_normal((3, shape[0])).astype(np.float32)
        onnx.save(made, tmp_path / "model.onnx")
        y = session(tmp_path / "model.onnx", library=False, threads=1).run(None, {"x": x})[0]
        x = x.astype(np.float16) if half else x
        exact, bound = linear(x, weight), rounding_bound(x, weight)
        assert (np.abs(y - (exact + bias)) <= bound + UNIT_ROUNDOFF * np.abs(exact + bias)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [("e3m4", (64, 32)), ("e1m2", (48, 24))], ids=["format", "group"])
def test_a_layout_that_the_operator_has_not_keeps_its_body(
    form: str, kept: tuple[str, tuple[int, int]], tmp_path: Path
) -> None:
    name, shape = kept
    model, weight, bias = linear_model(name, "e2m3", form, shape)
    made = nbits(model)
    assert not products(made)
    assert {node.domain for node in made.graph.node} == {""}
    onnx.save(made, tmp_path / "model.onnx")
    x = np.random.default_rng(2).standard_normal((3, shape[0])).astype(np.float32)
    y = session(tmp_path / "model.onnx", library=False, threads=1).run(None, {"x": x})[0]
    assert np.allclose(y, linear(x, weight) + bias, rtol=1e-5, atol=1e-5)


def test_scales_that_float16_has_not_stay_float32() -> None:
    scale = np.full((6, 2), 1 + 2.0**-20, np.float32)
    model = linear_model("e1m2", shape=(64, 32), scale=scale)[0]
    made = nbits(model, half=True)
    assert "Cast" not in {node.op_type for node in made.graph.node}
    scales = next(t for t in made.graph.initializer if t.name == "l.weight_scale")
    assert np.array_equal(numpy_helper.to_array(scales), scale)


def test_the_demo_is_the_same_image(converted: Path, bodies: Path) -> None:
    """In w4a16 and e1m2: float32 sums in another order alone."""
    model = load_model(converted / "transformer" / "model.onnx")
    rows = Bundle.open(converted).manifest.layers
    assert len(products(model)) >= len(rows)
    assert {attributes(node)["bits"] for node in products(model)} == {4}
    pictures = [
        np.asarray(Pipeline(folder, library=False).generate(["giraffe face"], steps=STEPS)[0])
        for folder in (bodies, converted)
    ]
    assert psnr(*pictures) >= LEAST_DB


def test_commands_understand_it(converted: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("verify", converted, "--quick")
    assert code == 0
    assert "2 of 2" not in out
    assert "stock ONNX Runtime linears" in out
    assert "for the target nbits: activations float" in run("inspect", converted).out
    code, out, _ = run("inspect", converted, "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "bundle"
    assert (
        run(
            "generate",
            converted,
            "--prompt",
            "red apple",
            "--steps",
            "1",
            "-o",
            tmp_path / "a.png",
        )[0]
        == 0
    )
    assert run("report", converted, "-o", tmp_path / "report.html")[0] == 0


def altered(source: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of the bundle `source` with another graph."""
    shutil.copytree(source, folder)
    path = folder / "transformer" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    write_manifest(folder, Bundle.open(source).manifest)
    return folder


def test_verify_finds_rounded_activations(converted: Path, tmp_path: Path) -> None:
    """An operator told to multiply in 8 bits is off by more than float32's rounding."""

    def narrow(model: onnx.ModelProto) -> None:
        product(model).attribute.append(onnx.helper.make_attribute("accuracy_level", 4))

    checks = verify(altered(converted, tmp_path / "b", narrow), quick=True).checks
    (wrong,) = [check for check in checks if not check.ok]
    assert f"first at node {LAYER}/product" in wrong.detail


def test_verify_finds_a_layer_of_another_form(converted: Path, tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        node = product(model)
        tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
        tensor.name = node.input[1] = "other"

    checks = verify(altered(converted, tmp_path / "b", rename), quick=True).checks
    (wrong,) = [check for check in checks if not check.ok]
    assert (wrong.name, wrong.detail) == ("packed weights", LAYER)


def test_a_runtime_without_the_operator_is_told(tmp_path: Path) -> None:
    made = nbits(linear_model("e1m2", shape=(64, 32))[0])
    products(made)[0].op_type = "MatMulNBitsOfTomorrow"
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(BundleError) as told:
        session(tmp_path / "model.onnx")
    text = str(told.value)
    assert "lacks the operator MatMulNBitsOfTomorrow of bundles of the target nbits" in text
    assert "pip install --upgrade onnxruntime" in text
    assert "\n" not in text


def test_an_export_with_no_layer_for_it_is_refused(tmp_path: Path) -> None:
    request = ExportRequest(
        tmp_path / "b", bits="w8a8", method="fp-rtn", target="nbits", weight_format="e3m4"
    )
    with pytest.raises(UsageError, match=r"weights of e3m4.*expected a format"):
        plan(request)
    assert {
        row.weight_format
        for row in plan(
            ExportRequest(tmp_path / "b", bits="w4a16", method="fp-rtn", target="nbits")
        ).layers
    } == {"e1m2"}
