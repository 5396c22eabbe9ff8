"""Small graphs for the tests of passes: made from text, run, and compared before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits, within
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.ops import DOMAIN, IR_VERSION, OPSET, VERSION, attach_functions
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState

__all__ = [
    "NO_PARAMETERS",
    "PassBench",
    "constants",
    "normal",
    "only_reason",
    "op_types",
    "through",
]

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
K = 20
GROUP = 8
"""Not a divisor of K: the last group is short."""

NO_PARAMETERS: frozenset[str] = frozenset()


def normal(*shape: int) -> Array:
    """Normal noise, the same for the same shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def op_types(model: onnx.ModelProto) -> list[str]:
    """The operators of the graph's nodes, in order."""
    return [node.op_type for node in model.graph.node]


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    """Initializers as lists, by name."""
    tensors = model.graph.initializer
    return {t.name: onnx.numpy_helper.to_array(t).tolist() for t in tensors}


class PassBench:
    """Runs passes on small graphs and checks what holds for every pass."""

    def parse(self, text: str, parameters: Arrays | None = None) -> onnx.ModelProto:
        """The model of a graph in ONNX's text form, with initializers, its shapes inferred."""
        return onnx.shape_inference.infer_shapes(self.bare(text, parameters))

    def bare(self, text: str, parameters: Arrays | None = None) -> onnx.ModelProto:
        """The model of a graph, with the shapes alone that the text gives."""
        header = (
            f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}, "{DOMAIN}": {VERSION}]>\n'
        )
        model = onnx.parser.parse_model(header + text)
        attach_functions(model)
        if not model.functions:
            del model.opset_import[1:]
        for name, value in (parameters or {}).items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return model

    def run(self, model: onnx.ModelProto, feed: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name, in ONNX Runtime on one thread with its own graph rewriting off."""
        ort = pytest.importorskip("onnxruntime")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options)
        names = [output.name for output in model.graph.output]
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    def rewrite(
        self,
        model: onnx.ModelProto | str,
        step: Any,
        feed: Arrays,
        *,
        expected: Arrays | None = None,
        bound: npt.ArrayLike = 0.0,
    ) -> tuple[onnx.ModelProto, Any]:
        """The model after pass `step`, and its report.

        Asserts that the model passes the full check, that its outputs are `expected` (by default:
        what they were) up to `bound`, and that a second run rewrites nothing.
        """
        from fp4dit_onnx.passes.pipeline import run_passes

        model = self.parse(model) if isinstance(model, str) else model
        wanted = self.run(model, feed) if expected is None else expected
        result, (report,) = run_passes(model, [step])
        onnx.checker.check_model(result, full_check=True)
        found = self.run(result, feed)
        assert list(found) == list(wanted)
        for name, value in found.items():
            same = (
                within(value, wanted[name], bound)
                if np.any(bound)
                else same_bits(value, wanted[name])
            )
            assert same.ok, f"{name}: {same.detail}"
        _, (again,) = run_passes(result, [step])
        assert again.rewritten == 0, f"{step.name}: the second run rewrites too"
        assert report.name == step.name
        return result, report

    def normal(self, *shape: int) -> Array:
        """Random numbers, the same for the same shape."""
        return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)

    def quantized(
        self, name: str, weight: Array, weight_format: str, activation: str | None
    ) -> QuantizedLayer:
        """`weight` rounded to nearest under absmax scales in float16."""
        spec = LayerSpec.of(weight_format, activation, GROUP)
        fmt = spec.weight_format
        starts = np.arange(0, weight.shape[1], GROUP)
        amax = np.maximum.reduceat(np.abs(weight), starts, axis=1)
        scale = (amax / np.float32(fmt.max_integer)).astype(np.float16)
        codes = numerics.quantize_groups(weight, scale.astype(np.float32), fmt, GROUP)
        packed = numerics.pack(codes, fmt.storage_bits)
        return QuantizedLayer(name, spec, weight.shape[1], {"codes": packed, "scale": scale})

    def state_of(self, parameters: Mapping[str, Array], **formats: str) -> QuantizedState:
        """A state of the layers named, each with formats written ``weight/activation``."""
        layers = {}
        for name, spec in formats.items():
            weight, _, activation = spec.partition("/")
            layers[name] = self.quantized(
                name, parameters[f"{name}.weight"], weight, activation or None
            )
        return QuantizedState(layers)

    def linear(self, layer: str, x: str, y: str, bias: bool = True) -> str:
        """Text of a canonical linear."""
        product = f"{y}_product" if bias else y
        add = f'["{layer}/Add"] {y} = Add ({product}, "{layer}.bias")' if bias else ""
        return f"""["{layer}/Transpose"] {y}_columns = Transpose <perm = [1, 0]> ("{layer}.weight")
            ["{layer}/MatMul"] {product} = MatMul ({x}, {y}_columns) {add}
        """

    def layer_parameters(self, *layers: str, n: int = 12, k: int = K) -> dict[str, Array]:
        """Weights [n, k] and biases [n] of the layers named."""
        values = np.random.default_rng(n * k)
        parameters = {}
        for layer in layers:
            parameters[f"{layer}.weight"] = values.standard_normal((n, k)).astype(np.float32)
            parameters[f"{layer}.bias"] = values.standard_normal(n).astype(np.float32)
        return parameters

    def one_layer(self, bias: bool = True) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """A graph of the linear ``fc`` alone, and its parameters."""
        parameters = self.layer_parameters("fc")
        text = f"g (float[B, S, {K}] x) => (float[B, S, 12] y) {{ {self.linear('fc', 'x', 'y', bias)} }}"
        return self.parse(text, parameters), parameters

    def tensor(self, model: onnx.ModelProto, name: str) -> Array:
        """The value of an initializer."""
        (found,) = (t for t in model.graph.initializer if t.name == name)
        return onnx.numpy_helper.to_array(found)


def through(x: Array, name: str) -> Array:
    """`x` after quantize and dequantize in format `name`."""
    q, scale = numerics.quantize(x, format_by_name(name))
    return numerics.dequantize(q, scale, x.shape[-1])


def only_reason(report: Any, name: str) -> str:
    """The reason of the one skip, which must be of node `name`."""
    assert report.rewritten == 0
    assert [skip.name for skip in report.skipped] == [name]
    return str(report.skipped[0].reason)
