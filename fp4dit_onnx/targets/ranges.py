"""The largest magnitude of activations, measured while the bundle generates images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fp4dit_onnx.bundle.calls import take_apart
from fp4dit_onnx.bundle.probe import load_graph
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.system.progress import Reporter

__all__ = ["PICTURES", "activation_ranges"]

PICTURES = 4
"""Images generated, of `Pipeline.example_prompts`, at the bundle's own settings."""
_SUFFIX = "/largest"


def activation_ranges(bundle: Path, names: Sequence[str], reporter: Reporter) -> dict[str, float]:
    """The largest magnitude of each value of the transformer in `names`, over whole runs.

    Args:
        bundle: can generate images.
        names: float values of the transformer's graph.
        reporter: progress.
    """
    if not names:
        return {}
    pipeline = Pipeline(bundle)
    source = bundle / "transformer"
    model = load_graph(source / "model.onnx")
    take_apart(model.graph)
    for name in names:
        magnitude = onnx.helper.make_node("Abs", [name], [f"{name}/magnitude"])
        largest = onnx.helper.make_node(
            "ReduceMax", [f"{name}/magnitude"], [f"{name}{_SUFFIX}"], keepdims=0
        )
        model.graph.node.extend([magnitude, largest])
        model.graph.output.append(onnx.ValueInfoProto(name=f"{name}{_SUFFIX}"))
    path = source / ".ranges.onnx"  # beside the data, which it shares
    path.write_bytes(model.SerializeToString())
    try:
        del pipeline.transformer  # two would be in memory
        recorder = _Recorder(session(path), len(names))
        pipeline.transformer = recorder
        settings = pipeline.settings()
        with reporter.stage("ranges of activations", settings.steps, "denoising steps") as advance:
            pipeline.sample(
                pipeline.example_prompts()[:PICTURES],
                range(PICTURES),
                settings,
                after_step=lambda *_: advance(1),
            )
    finally:
        path.unlink()
    return dict(zip(names, map(float, recorder.largest), strict=True))


class _Recorder:
    """The transformer's session, that keeps the maxima which the model gives besides."""

    def __init__(self, inner: Any, count: int) -> None:
        self._inner, self._count = inner, count
        self.largest = np.zeros(count, np.float32)

    def get_inputs(self) -> Sequence[Any]:
        """Those of the model."""
        inputs: Sequence[Any] = self._inner.get_inputs()
        return inputs

    def get_outputs(self) -> Sequence[Any]:
        """Those of the model, without the maxima."""
        outputs: Sequence[Any] = self._inner.get_outputs()
        return outputs[: -self._count]

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The model's own outputs."""
        results: list[Any] = self._inner.run(None, feed)
        self.largest = np.maximum(self.largest, np.array(results[-self._count :]))
        return results[: -self._count]
