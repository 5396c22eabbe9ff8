"""Every error text that docs/troubleshooting.md explains is in the sources, or made here."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

ort = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
VARIES = "\0"
"""What stands for a value in a message of the sources."""
FOREIGN = "## Messages of ONNX Runtime"


def headings(text: str) -> list[str]:
    return re.findall(r"^### `(.*)`$", text, re.MULTILINE)


def _python_text(node: ast.AST) -> str | None:
    """The text of a string expression, with VARIES for values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_python_text(part) or VARIES for part in node.values)
    return None


@cache
def messages() -> tuple[str, ...]:
    """Every string of the package, the library and the Makefile."""
    found: list[str] = []
    for folder in ("fp4dit_onnx", "passes", "calibration"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [text for node in ast.walk(tree) if (text := _python_text(node))]
    for path in (ROOT / "custom_ops").rglob("*.cc"):
        joined = re.sub(r'"\s+"', "", path.read_text(encoding="utf-8"))
        for text in re.findall(r'"((?:[^"\\\n]|\\.)*)"', joined):
            found.append(re.sub(r"%[-.0-9]*[a-z]+", VARIES, text))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return (*found, *re.findall(r'echo "(.*)"', makefile))


def explains(heading: str, message: str) -> bool:
    """Whether a heading, with ``...`` for what varies, is `message`.

    A part between two ``...`` may say what the sources fill in: only its end and beginning count.
    """
    heading, message = " ".join(heading.split()), " ".join(message.split())
    pattern = ".*".join(re.escape(part) for part in heading.split("..."))
    return re.search(pattern, message, re.DOTALL) is not None


OWN, _, THEIRS = PAGE.read_text(encoding="utf-8").partition(FOREIGN)


@pytest.mark.parametrize("heading", headings(OWN))
def test_the_text_is_in_the_sources(heading: str) -> None:
    assert any(explains(heading, message) for message in messages()), heading


def test_a_text_that_is_nowhere_is_found() -> None:
    assert explains("unknown format ...: expected", f"unknown format {VARIES}: expected one of")
    assert not explains("unknown formats ...: expected", f"unknown format {VARIES}: expected one")
    assert not any(explains("the moon is in the way of ...", text) for text in messages())


def linear_model(folder: Path) -> Path:
    """A quantize node without its body, and a weight in a file beside the model."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21, "com.fp4dit": 1]>
    g (float[2, 4] x) => (int8[2, 4] q, float[2, 1] s) {
        q, s = com.fp4dit.FpQuantize <format = "e2m1", mantissa_bits = 1, max = 12.0,
            group_size = 8, candidates = [12.0]> (x) }""")
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def no_bodies(folder: Path) -> None:
    ort.InferenceSession(str(linear_model(folder)), providers=["CPUExecutionProvider"])


def double_constants(folder: Path) -> None:
    """What graphsurgeon's folding makes of the constants of older bodies."""
    from fp4dit_onnx.targets.tiny_model import tiny_linear

    model = tiny_linear()
    for node in (node for function in model.functions for node in function.node):
        if node.op_type == "Constant" and not node.attribute[0].ref_attr_name:
            value = onnx.numpy_helper.to_array(node.attribute[0].t)
            if value.dtype == np.float32 and node.output[0] != "zero":  # which is Pad's too
                wide = onnx.numpy_helper.from_array(value.astype(np.float64))
                node.attribute[0].t.CopyFrom(wide)
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def low_limit(folder: Path) -> None:
    """As a graph of a thousand times as many nodes meets it."""
    from fp4dit_onnx.targets.tiny_model import tiny_linear

    options = ort.SessionOptions()
    options.add_session_config_entry("session.function_expansion_node_limit", "1")
    ort.InferenceSession(tiny_linear().SerializeToString(), options)


def no_data(folder: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
    g (float[64] x) => (float[64] y) { y = Add (x, w) }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(64, np.float32), "w"))
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    (folder / "model.onnx.data").unlink()
    ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def wrong_shape(folder: Path) -> None:
    """FpLinear whose bias has one channel too many."""
    from fp4dit_onnx import library_path, ops
    from fp4dit_onnx.numbers.formats import FORMATS

    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21, "com.fp4dit": 1]>
    g (int8[1, 4] q, float[1, 1] s) => (float[1, 2] y) {
        y = com.fp4dit.FpLinear (q, s, codes, scale, bias) }""")
    attributes: dict[str, Any] = ops.linear_attributes(FORMATS["e2m3"], FORMATS["e2m1"], 4, 128)
    node = model.graph.node[0]
    node.attribute.extend(onnx.helper.make_attribute(*item) for item in attributes.items())
    constants = {
        "codes": np.zeros((2, 2), np.uint8),
        "scale": np.ones((2, 1), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


MAKERS = (no_bodies, double_constants, low_limit, no_data, wrong_shape)
MADE = dict(zip(headings(THEIRS), MAKERS, strict=True))


@pytest.mark.parametrize("heading", MADE)
def test_the_runtime_says_so(heading: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"\w") as raised:
        MADE[heading](tmp_path)
    assert explains(heading, str(raised.value)), raised.value
