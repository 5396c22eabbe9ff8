"""What is said when ONNX Runtime refuses a model."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.report.inspection import expanded_nodes
from fp4dit_onnx.runtime.library import library_path
from fp4dit_onnx.runtime.providers import ON_CPU, placed_on
from fp4dit_onnx.runtime.session import session, session_options
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.targets.tiny_model import tiny_linear

LIMITS = (1, 32)
"""The release, of those tried, that limits how far function bodies are expanded."""
FAIL = "[ONNXRuntimeError] : 1 : FAIL : "
START = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: "
SAID = {
    f"{FAIL}Load model from model.onnx failed:/onnxruntime_src/model.cc:1 Unsupported model IR "
    "version: 10, max supported IR version: 9\n": (
        "the model is of IR version 10 and it reads up to 9: install a newer one "
        "with  pip install --upgrade onnxruntime"
    ),
    f"{FAIL}/onnxruntime_src/model_load_utils.h:56 ONNX Runtime only *guarantees* support for "
    "models stamped with official released onnx opset versions. Opset 21 is under development and "
    "support for this is limited. (...) Current official support for domain ai.onnx is till "
    "opset 20.": (
        "the model uses opset 21 and it knows up to 20: install a newer one "
        "with  pip install --upgrade onnxruntime"
    ),
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Cos(7) node "
    "with name 'pos_embed/Cos'": (
        "it has no kernel for Cos of these types: install a newer one with  pip install --upgrade "
        "onnxruntime"
    ),
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for "
    "DequantizeLinear(21) node with name 'proj_out/weight'": (
        "it has no kernel for DequantizeLinear of these types; a bundle of the target standard is "
        "for other runtimes: export or convert for another target"
    ),
    f"{START}filesystem error: cannot get file size: No such file or directory "
    "[model.onnx.data]": (
        "its data file is missing or too short (cannot get file size: No such file or directory "
        "[model.onnx.data]): copy or export the bundle again"
    ),
    f"{FAIL}Function inlining exceeded the configured cumulative node expansion limit while "
    "expanding 'com.fp4dit:FpLinear'.": (
        "its function bodies are more than its limit of nodes allows: register the custom-op "
        "library, or convert the bundle with --target inline"
    ),
    f"{START}{FAIL}something else went wrong\nand more of it": "something else went wrong",
}
"""What ONNX Runtime 1.16, 1.17, 1.22 and 1.32 say, shortened, and what is said of it."""


@pytest.mark.parametrize(
    "said", SAID, ids=["IR", "opset", "kernel", "standard", "data", "expansion", "unknown"]
)
def test_what_onnx_runtime_says_is_explained(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BundleError) as caught:
        session(model, library=False)
    version = onnxruntime.__version__
    assert str(caught.value) == f"ONNX Runtime {version} cannot load {model}: {SAID[said]}"


def test_expanded_nodes_are_what_onnx_runtime_limits() -> None:
    """Neither the library's kernels nor an inlined graph are touched by the limit."""
    model = tiny_linear()
    nodes = expanded_nodes(model)

    def load(model: onnx.ModelProto, limit: int, *, library: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.function_expansion_node_limit", str(limit))
        if library:
            options.register_custom_ops_library(str(library_path()))
        onnxruntime.InferenceSession(model.SerializeToString(), options)

    load(model, nodes)
    load(model, 1, library=True)
    assert expanded_nodes(inline(model)) == 0
    load(inline(model), 1)
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= LIMITS:
        with pytest.raises(Exception, match="exceeded the configured cumulative node expansion"):
            load(model, nodes - 1)


@pytest.mark.parametrize("version", ["1.17.3", "1.4.0"])
def test_an_old_runtime_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has a say: of the library it would say less."""
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(UsageError, match=r"1\.18 or newer.*pip install --upgrade onnxruntime"):
        session(tmp_path / "model.onnx")


def test_what_is_no_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"no protobuf at all")
    with pytest.raises(BundleError, match="it is not an ONNX model or was cut short"):
        session(model, library=False)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_data_that_are_not_there(demo_bundle: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(demo_bundle / "transformer", tmp_path / "transformer")
    data = folder / "model.onnx.data"
    if damage == "cut":
        os.truncate(data, 1000)
    else:
        data.unlink()
    with pytest.raises(BundleError, match="its data file is missing or too short") as caught:
        session(folder / "model.onnx", library=False)
    assert len(str(caught.value).splitlines()) == 1


def test_an_installation_that_does_not_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('numpy.core.multiarray failed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(UsageError, match=r"cannot be imported \(numpy.core.multiarray failed\)"):
        session(tmp_path / "model.onnx", library=False)


@pytest.mark.parametrize("library", [True, False])
def test_a_model_that_loads_and_cannot_be_computed(tmp_path: Path, library: bool) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[n] x, float[m] y) => (float[k] z) { z = Mul (x, y) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    loaded = session(tmp_path / "model.onnx", library=library)
    two, three = np.ones(2, np.float32), np.ones(3, np.float32)
    assert loaded.run(None, {"x": two, "y": two})[0].tolist() == [1, 1]
    with pytest.raises(BundleError, match=r"cannot run .*model.onnx: .*Mul node.*copy or export"):
        loaded.run(None, {"x": two, "y": three})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 2), np.int64), "Invalid rank for input"),
        (np.zeros(2, np.int64), "Got invalid dimensions"),
        (np.full(3, 5, np.int64), "Gather node.*out of data bounds"),
        (np.zeros(3, np.float32), "Unexpected input data type"),
    ],
)
def test_inputs_that_a_model_does_not_take(tmp_path: Path, x: np.ndarray, message: str) -> None:
    """As where files of a bundle do not fit each other: a tokenizer, an encoder, a config."""
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (int64[3] x) => (float[k] z) <float[5] rows = {1, 2, 3, 4, 5}> { z = Gather (rows, x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    loaded = session(tmp_path / "model.onnx", library=False)
    assert loaded.run(None, {"x": np.arange(3)})[0].tolist() == [1, 2, 3]
    with pytest.raises(BundleError, match=f"cannot run .*{message}.*does not fit it") as caught:
        loaded.run(None, {"x": x})
    assert "\n" not in str(caught.value)


def test_a_run_that_was_planned_would_take_memory_twice() -> None:
    """ONNX Runtime keeps what the first run took beside the block that it plans for later ones."""
    assert not session_options(placed_on("cpu")).enable_mem_pattern
    assert not session_options(ON_CPU).enable_mem_pattern
    assert session_options(replace(ON_CPU, mem_pattern=True)).enable_mem_pattern


def test_what_loading_took_is_returned(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[bool] = []
    monkeypatch.setattr(
        sys.modules[session.__module__], "return_memory", lambda: returned.append(True)
    )
    session(demo_bundle / "text_encoder" / "model.onnx")
    assert returned == [True]
