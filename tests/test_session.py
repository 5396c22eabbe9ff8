"""What is said when ONNX Runtime refuses a model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

import onnxruntime

from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.runtime.session import session

IR = (
    "[ONNXRuntimeError] : 1 : FAIL : Load model from model.onnx failed:/onnxruntime_src/model.cc:1 "
    "Unsupported model IR version: 10, max supported IR version: 9\n"
)
OPSET = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/model_load_utils.h:56 ONNX Runtime only "
    "*guarantees* support for models stamped with official released onnx opset versions. Opset 21 "
    "is under development and support for this is limited. (...) Current official support for "
    "domain ai.onnx is till opset 20."
)
OLD = {
    IR: "the model is of IR version 10 and it reads up to 9: install a newer one with",
    OPSET: "the model uses opset 21 and it knows up to 20: install a newer one with",
}
"""Of ONNX Runtime 1.16 and 1.17."""


@pytest.mark.parametrize("said", OLD, ids=["IR", "opset"])
def test_an_old_runtime_is_named(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BundleError) as caught:
        session(model, library=False)
    assert OLD[said] in str(caught.value)
    assert "pip install --upgrade onnxruntime" in str(caught.value)


def test_what_is_no_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"no protobuf at all")
    with pytest.raises(BundleError, match="it is no ONNX model or was cut short"):
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
