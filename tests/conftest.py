"""Fixtures that several test modules share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from fp4dit_onnx.checkpoint import demo_folder as embedded_folder
from fp4dit_onnx.compare import same_bits, within
from fp4dit_onnx.ops import IR_VERSION, OPSET

Arrays = Mapping[str, npt.NDArray[Any]]


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The embedded demo pipeline; not to be changed."""
    return embedded_folder()


@pytest.fixture
def demo_copy(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the embedded demo pipeline, to be damaged."""
    return shutil.copytree(demo_folder, tmp_path / "pipeline")


class PassBench:
    """Runs passes on small graphs and checks what holds for every pass."""

    def parse(self, text: str, parameters: Arrays | None = None) -> onnx.ModelProto:
        """The model of a graph in ONNX's text form, with initializers, its shapes inferred."""
        header = f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>\n'
        model = onnx.parser.parse_model(header + text)
        for name, value in (parameters or {}).items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return onnx.shape_inference.infer_shapes(model)

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


@pytest.fixture
def bench() -> PassBench:
    """Runs passes on small graphs; needs the packages of the extra ``export``."""
    pytest.importorskip("onnx_graphsurgeon")
    return PassBench()


@pytest.fixture(scope="session")
def tiny_pixart() -> Callable[..., Any]:
    """Makes a PixArt transformer of two blocks of width 32 with random weights, in eval mode."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("diffusers.models.transformers")

    def make(**changes: Any) -> Any:
        config = {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "use_additional_conditions": False,
        }
        torch.manual_seed(0)
        network = transformers.PixArtTransformer2DModel(**{**config, **changes})
        return network.eval().requires_grad_(requires_grad=False)

    return make
