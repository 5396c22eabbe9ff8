"""What is noted on the nodes of a quantized graph for viewers."""

from __future__ import annotations

import importlib.metadata

import onnx
import onnx.parser
import pytest

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.annotation import annotate
from fp4dit_onnx.bundle.manifest import Weight

TEXT = """
<ir_version: 10, opset_import: ["": 21, "com.fp4dit": 1]>
g (float[2, 8] x, uint8[4, 4] c, float16[4, 2] s, float[4] b, uint8[8, 4] d, float16[8, 1] t)
=> (float[2, 4] y, float[8, 2] z, float[2, 4] p) {
    q, a = com.fp4dit.FpQuantize
        <format = "e2m3", mantissa_bits = 3, max = 60, group_size = 2147483647, candidates = [60.0]>
        (x)
    y = com.fp4dit.FpLinear <act_format = "e2m3", weight_format = "e3m0", group_size = 4,
        act_group_size = 8,
        K = 8, bits = 4, grid = [0.0, 1.0]> (q, a, c, s, b)
    v = com.fp4dit.FpDequantize <format = "e2m3", group_size = 8> (q, a)
    w = com.fp4dit.FpUnpack
        <format = "e2m1", bits = 4, grid = [0.0, 1.0], K = 8> (d)
    f = com.fp4dit.FpDequantize <format = "e2m1", group_size = 8> (w, t)
    r = Transpose <perm = [1, 0]> (v)
    z = MatMul (f, r)
    o = com.fp4dit.FpAttention <format = "e3m4", attention_scale = 0.5>
        (q, a, q, a, q, a, b)
    p = com.fp4dit.FpLinear <act_format = "e2m3", weight_format = "e3m0", group_size = 4,
        act_group_size = 8,
        K = 8, bits = 4, grid = [0.0, 1.0]> (q, a, c, s, b)
}
"""
NAMES = (
    "up.input/Quantize",
    "up",
    "up.input/Dequantize",
    "down.weight/Unpack",
    "down.weight/Dequantize",
    "down/Transpose",
    "down/MatMul",
    "attn",
    "up_2",
)
"""Of the nodes: the text form has no way to write these. The last calls a linear again."""
WEIGHTS = {
    "c": "up.weight.codes",
    "s": "up.weight.scale",
    "d": "down.weight.codes",
    "t": "down.weight.scale",
}
"""Names of tensors, for the same reason."""
ROWS = {"up": Weight((4, 8), 32, 128, 18.456, 20.0), "down": Weight((8, 8), 1048, 256, 15.0)}


def annotated(text: str = TEXT) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, NAMES, strict=True):
        node.name = name
        node.input[:] = [WEIGHTS.get(i, i) for i in node.input]
    annotate(model, ROWS, {"method": "fp-rtn", "steps": 20})
    return model


@pytest.fixture
def model() -> onnx.ModelProto:
    return annotated()


def notes(place: onnx.NodeProto | onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in place.metadata_props}


DOWN = {"weight SQNR": "15.00 dB"}
UP = (
    "Linear 8 to 4: W e3m0 in groups of 4, A e2m3",
    {
        "packed": "32 bytes",
        "density": "8.000 bits per weight",
        "weight SQNR": "18.46 dB",
        "output SQNR": "20.00 dB",
    },
)
EXPECTED = {
    "up.input/Quantize": (
        "Activations to e2m3, one scale per row",
        {"bits": "6", "read by": "up, down, attn"},
    ),
    "up": UP,
    "up_2": UP,
    "up.input/Dequantize": ("Activations in e2m3, a scale per 8 inputs", {"bits": "6"}),
    "down.weight/Unpack": (
        "Weight, 8 to 8: packed e2m1",
        {"packed": "1,048 bytes", "density": "131.000 bits per weight", **DOWN},
    ),
    "down.weight/Dequantize": ("Weight, 8 to 8: e2m1 in groups of 8", {"bits": "4", **DOWN}),
    "down/Transpose": ("", {}),
    "down/MatMul": ("", {}),
    "attn": ("Attention on e3m4 queries, keys and values", {"bits": "8"}),
}


def test_each_node_of_our_domain_is_noted(model: onnx.ModelProto) -> None:
    """Quantize names the modules that read it, those behind a Dequantize too, each once."""
    found = {node.name: (node.doc_string, notes(node)) for node in model.graph.node}
    assert found == EXPECTED


def test_the_model_is_noted(model: onnx.ModelProto) -> None:
    assert model.doc_string == "2 linear layers in 90.000 bits per weight"
    assert notes(model) == {
        "method": "fp-rtn",
        "steps": "20",
        "weight formats": "1 e2m1, 1 e3m0",
        "least weight SQNR": "15.00 dB, down",
        "least output SQNR": "20.00 dB, up",
    }
    assert model.producer_name == "fp4dit-onnx"
    assert model.producer_version == importlib.metadata.version("fp4dit-onnx")


def test_noting_twice_changes_nothing(model: onnx.ModelProto) -> None:
    once = model.SerializeToString(deterministic=True)
    annotate(model, ROWS, {"method": "fp-rtn", "steps": 20})
    assert model.SerializeToString(deterministic=True) == once


def test_float_activations() -> None:
    made = annotated(TEXT.replace('act_format = "e2m3"', 'act_format = ""'))
    linear = next(node for node in made.graph.node if node.op_type == ops.LINEAR)
    assert linear.doc_string == "Linear 8 to 4: W e3m0 in groups of 4, A float"


def test_nothing_quantized() -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Neg (x) }'
    )
    annotate(made, {}, {})
    assert made.doc_string == "0 linear layers in 0.000 bits per weight"
    assert notes(made) == {}
