"""Generate an image with another runtime below the Python pipeline, in its own process.

    python tools/draw_with.py openvino INLINED_BUNDLE PROMPT PICTURE.png

Tokenizer, scheduler and noise are `fp4dit_onnx.Pipeline`'s; what runs models is replaced. OpenVINO
converts no local functions, so its bundle is one of ``fp4dit-onnx convert --target inline``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from endings import ends_in_a_line

from fp4dit_onnx.runtime import pipeline

__all__ = ["SESSIONS", "pipeline_with"]

Array = npt.NDArray[Any]


class OpenVinoModel:
    """A model on OpenVINO's CPU device in float32, as `fp4dit_onnx.Pipeline` takes sessions.

    Args:
        path: an ONNX file without local functions.
    """

    def __init__(self, path: Path, **_: object) -> None:
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        self._model = core.compile_model(core.read_model(str(path)), "CPU", options)

    def get_inputs(self) -> list[Any]:
        """Name and shape of each input."""
        return [item for port in self._model.inputs for item in _described(port)]

    def get_outputs(self) -> list[Any]:
        """Name and shape of each output, once for every name that it has."""
        return [item for port in self._model.outputs for item in _described(port)]

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """All outputs, or those named."""
        found = self._model(dict(feed))
        names = [item.name for item in self.get_outputs()] if outputs is None else outputs
        return [np.array(found[name]) for name in names]


def _described(port: Any) -> list[Any]:
    shape = [d.get_length() if d.is_static else str(d) for d in port.get_partial_shape()]
    return [SimpleNamespace(name=name, shape=shape) for name in sorted(port.get_names())]


SESSIONS: dict[str, Callable[..., Any]] = {"openvino": OpenVinoModel}
"""Runtime -> what takes the place of `fp4dit_onnx.runtime.session.session`."""


def pipeline_with(runtime: str, bundle: Path) -> pipeline.Pipeline:
    """The pipeline of a bundle, its models run by `runtime`, one of `SESSIONS`."""
    with mock.patch.object(pipeline, "session", SESSIONS[runtime]):
        return pipeline.Pipeline(bundle, library=False)


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runtime", choices=list(SESSIONS))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(arguments)
    made = pipeline_with(given.runtime, given.bundle)
    made.generate([given.prompt])[0].save(given.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
