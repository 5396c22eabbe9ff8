"""Graphs without values, and putting blocks in their places."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime as ort

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.skeleton import (
    BLOCK,
    BLOCK_DOMAIN,
    PLACEHOLDER,
    Kind,
    Traced,
    assemble,
    is_placeholder,
    placeholder,
    renamed_block,
)
from fp4dit_onnx.numbers.formats import FORMATS

HEADER = f"""<ir_version: {ops.IR_VERSION}, opset_import:
    ["": {ops.OPSET}, "{ops.DOMAIN}": {ops.VERSION}, "{BLOCK_DOMAIN}": 1]>
"""


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def constant(model: onnx.ModelProto, name: str, value: float) -> None:
    """Give the model a constant of two equal elements."""
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.full(2, value, np.float32), name)
    )


def run(model: onnx.ModelProto, x: float) -> float:
    """The output for two equal numbers, by ONNX Runtime alone."""
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"x": np.full(2, x, np.float32)})
    assert y[0] == y[1]
    return float(y[0])


def test_a_placeholder_has_everything_but_values() -> None:
    made = placeholder("a.weight", (3, 5), onnx.TensorProto.FLOAT16)
    assert (made.name, list(made.dims), made.data_type) == ("a.weight", [3, 5], 10)
    assert is_placeholder(made)
    assert not is_placeholder(onnx.numpy_helper.from_array(np.zeros(3), "x"))
    outside = placeholder("a.weight", (3, 5), onnx.TensorProto.FLOAT16)
    outside.external_data[0].value = "model.onnx.data"
    assert not is_placeholder(outside)
    assert PLACEHOLDER not in outside.SerializeToString().decode("latin1")


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("blocks.1", "blocks.7"),
        ("blocks.1/Add", "blocks.7/Add"),
        ("blocks.1.ff/MatMul", "blocks.7.ff/MatMul"),
        ("blocks.1.ff.weight", "blocks.7.ff.weight"),
        ("blocks.1:in0", "blocks.7:in0"),
        ("blocks.10", "blocks.10"),
        ("blocks.10.ff.weight", "blocks.10.ff.weight"),
        ("blocks.1_more/Add", "blocks.1_more/Add"),
        ("my.blocks.1/Add", "my.blocks.1/Add"),
        ("", ""),
    ],
)
def test_names_of_one_block_in_another(name: str, renamed: str) -> None:
    assert renamed_block(name, "blocks.1", "blocks.7") == renamed


SHELL = f"""shell (float[2] x) => (float[2] y) {{
    ["pre/Neg"] "pre/Neg" = Neg (x)
    ["blocks.0"] "b0" = {BLOCK_DOMAIN}.{BLOCK} ("pre/Neg", x)
    ["blocks.1"] "b1" = {BLOCK_DOMAIN}.{BLOCK} ("b0", x)
    ["blocks.10"] "b10" = {BLOCK_DOMAIN}.{BLOCK} ("b1", x)
    ["post/Add"] y = Add ("b10", "one")
}}"""
# h, x -> h * weight + x, in two nodes
BLOCK_GRAPH = """block (float[2] "blocks.1:in0", float[2] "blocks.1:in1")
  => (float[2] "blocks.1/Add") {
    ["blocks.1.ff/Mul"] "blocks.1.ff/Mul" = Mul ("blocks.1:in0", "blocks.1.ff.weight")
    ["blocks.1/Add"] "blocks.1/Add" = Add ("blocks.1.ff/Mul", "blocks.1:in1")
}"""


def test_blocks_are_put_in_their_places_with_weights_of_their_own() -> None:
    shell, block = parse(SHELL), parse(BLOCK_GRAPH)
    constant(shell, "one", 1)
    block.graph.initializer.append(placeholder("blocks.1.ff.weight", [2], onnx.TensorProto.FLOAT))
    before = block.SerializeToString()
    kind = Kind("blocks.1", block)
    whole = assemble(Traced(shell, {f"blocks.{i}": kind for i in (0, 1, 10)}))
    assert block.SerializeToString() == before
    assert [node.name for node in whole.graph.node] == [
        "pre/Neg",
        *("blocks.0.ff/Mul", "blocks.0/Add"),
        *("blocks.1.ff/Mul", "blocks.1/Add"),
        *("blocks.10.ff/Mul", "blocks.10/Add"),
        "post/Add",
    ]
    absent = [t.name for t in whole.graph.initializer if is_placeholder(t)]
    assert absent == [f"blocks.{i}.ff.weight" for i in (0, 1, 10)]
    assert {opset.domain for opset in whole.opset_import} == {""}
    for tensor in whole.graph.initializer:
        if is_placeholder(tensor):
            factor = float(tensor.name.split(".")[1]) + 2
            value = np.full(2, factor, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    x, h = 3.0, -3.0
    for factor in (2, 3, 12):
        h = h * factor + x
    assert run(whole, x) == h + 1


QUANTIZE = ops.quantize_op(FORMATS["e2m3"])


def quantizing_block(number: int, **attributes: int) -> onnx.ModelProto:
    """Quantizes what all blocks are given, as ``to_k`` of a text's tokens does."""
    name = f"blocks.{number}"
    given = ops.quantize_attributes(FORMATS["e2m3"]) | attributes
    info = onnx.helper.make_tensor_value_info
    floats = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node(
            QUANTIZE,
            [f"{name}:in1"],
            [f"{name}.k.q", f"{name}.k.scale"],
            f"{name}.k/Quantize",
            domain=ops.DOMAIN,
            **given,
        ),
        onnx.helper.make_node(
            "Cast", [f"{name}.k.q"], [f"{name}.k/Cast"], f"{name}.k/Cast", to=floats
        ),
        onnx.helper.make_node(
            "Add", [f"{name}:in0", f"{name}.k/Cast"], [f"{name}/Add"], f"{name}/Add"
        ),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "block",
        [info(f"{name}:in{i}", floats, [2]) for i in range(2)],
        [info(f"{name}/Add", floats, [2])],
    )
    return onnx.helper.make_model(graph)


@pytest.mark.parametrize("bits_differ", [False, True])
def test_quantizing_the_same_tensor_in_the_same_way_is_done_once(bits_differ: bool) -> None:
    shell = parse(SHELL)
    constant(shell, "one", 1)
    kind = Kind("blocks.0", quantizing_block(0))
    other = ops.quantize_attributes(FORMATS["int6"]) if bits_differ else {}
    last = Kind("blocks.10", quantizing_block(10, **other))
    whole = assemble(Traced(shell, {"blocks.0": kind, "blocks.1": kind, "blocks.10": last}))
    quantizing = [node for node in whole.graph.node if node.op_type == QUANTIZE]
    names = ["blocks.0.k/Quantize", "blocks.10.k/Quantize"]
    assert [node.name for node in quantizing] == names[: 1 + bits_differ]
    read = {n.name: n.input[0] for n in whole.graph.node if n.op_type == "Cast"}
    assert read == {
        "blocks.0.k/Cast": "blocks.0.k.q",
        "blocks.1.k/Cast": "blocks.0.k.q",
        "blocks.10.k/Cast": "blocks.10.k.q" if bits_differ else "blocks.0.k.q",
    }
    assert {opset.domain for opset in whole.opset_import} == {"", ops.DOMAIN}
    assert QUANTIZE in {function.name for function in whole.functions}
    onnx.checker.check_model(whole, full_check=True)


# The shell calls a module of block 0 once more: diffusers' DiT does so with its embedder.
SHARED_SHELL = f"""shell (float[2] x) => (float[2] y) {{
    ["blocks.0"] "b0" = {BLOCK_DOMAIN}.{BLOCK} (x)
    ["blocks.1"] "b1" = {BLOCK_DOMAIN}.{BLOCK} ("b0")
    ["blocks.0.emb/Add"] "blocks.0.emb/Add" = Add ("b1", "blocks.0.emb/Add.in1")
    ["blocks.0.emb/Mul"] "blocks.0.emb/Mul" = Mul ("blocks.0.emb/Add", "blocks.0.emb.weight")
    ["blocks.0.emb/Add_2"] y = Add ("blocks.0.emb/Mul", "blocks.0.emb/Add.in1")
}}"""
SHARED_BLOCK = """block (float[2] "blocks.0:in0") => (float[2] "blocks.0.emb/Add_3") {
    ["blocks.0.emb/Add"] "blocks.0.emb/Add" = Add ("blocks.0:in0", "blocks.0.emb/Add.in1")
    ["blocks.0.emb/Add_2"] "blocks.0.emb/Add_2" = Add ("blocks.0.emb/Add", "blocks.0.emb/Add.in1")
    ["blocks.0.emb/Mul"] "blocks.0.emb/Mul" = Mul ("blocks.0.emb/Add_2", "blocks.0.emb.weight")
    ["blocks.0.emb/Add_3"] "blocks.0.emb/Add_3" = Add ("blocks.0.emb/Mul", "blocks.0.emb/Add")
}"""


@pytest.mark.parametrize("other", [5.0, 100.0])
def test_a_module_that_the_shell_calls_too(other: float) -> None:
    """Its tensors have the same names there, and its constants the same names and other values."""
    shell, block = parse(SHARED_SHELL), parse(SHARED_BLOCK)
    for model, added in ((shell, 5), (block, other)):
        constant(model, "blocks.0.emb/Add.in1", added)
        constant(model, "blocks.0.emb.weight", 2)
    kind = Kind("blocks.0", block)
    whole = assemble(Traced(shell, {"blocks.0": kind, "blocks.1": kind}))
    names = Counter(node.name for node in whole.graph.node)
    assert max(names.values()) == 1
    made = Counter(name for node in whole.graph.node for name in node.output)
    made += Counter(tensor.name for tensor in whole.graph.initializer)
    assert max(made.values()) == 1
    h = x = 3.0
    for _ in range(2):
        h = (h + 2 * other) * 2 + (h + other)
    assert run(whole, x) == (h + 5) * 2 + 5
