"""One denoising step: a bundle's transformer, and the float model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from fp4dit_onnx.benchmark.backend import Absent, Backend, Loaded
from fp4dit_onnx.benchmark.case import Array, checked_sqnr
from fp4dit_onnx.benchmark.int8_models import quantized
from fp4dit_onnx.benchmark.openvino_models import onnx_model
from fp4dit_onnx.benchmark.sessions import bound, make_session
from fp4dit_onnx.bundle.probe import load_graph
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import BUNDLE
from fp4dit_onnx.files.settings import transformer_settings
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.resources import usable_cores
from fp4dit_onnx.values import whole

__all__ = ["PEERS", "StepCase", "ours"]

TIMESTEP = 500.0
NO_FLOAT = "needs the float model: give it with --float"


@dataclass(frozen=True)
class StepCase:
    """A transformer's forward pass on random inputs, always the same for the same sizes.

    Attributes:
        model: the quantized transformer.
        float_model: the same in float32, or None.
        batch: two rows per image where guidance is used.
        tokens: of the text.
    """

    model: Path
    float_model: Path | None
    batch: int
    tokens: int

    kind = "step"
    operations = None
    product = None

    def __post_init__(self) -> None:
        """Check the sizes, and that both models take the same inputs."""
        whole("batch", self.batch, 1)
        whole("tokens", self.tokens, 0)
        if self.float_model is None:
            return
        wanted, found = sorted(self.feed), sorted(v.name for v in _inputs(self.float_model))
        if wanted != found:
            raise UsageError(
                f"{self.float_model} takes {', '.join(found)}; the bundle's transformer takes "
                f"{', '.join(wanted)}: give the float model that the bundle was made from"
            )

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"batch {self.batch}, text {self.tokens}"

    @cached_property
    def feed(self) -> dict[str, Array]:
        """Input name -> value: floats are standard normal, masks hide nothing, indices are 0."""
        sizes = {"batch": self.batch, "text": self.tokens, **_latent_sizes(self.model)}
        random = np.random.default_rng(0)
        return {info.name: _value(info, sizes, random) for info in _inputs(self.model)}

    @cached_property
    def reference(self) -> Array | None:
        """The float model's result, in float32; None without a float model."""
        if self.float_model is None:
            return None
        found = bound(make_session(self.float_model, usable_cores()), self.feed)
        found.run()
        return found.result()

    def sqnr(self, result: Array) -> float | None:
        """See `Case.sqnr`."""
        reference = result if self.reference is None else self.reference
        return checked_sqnr(reference, result)


def _latent_sizes(model: Path) -> dict[str, int]:
    """Height and width of the model's own size, as the configuration beside it has it."""
    path = model.with_name("config.json")
    if not path.is_file():
        return {}
    side = transformer_settings(path, BUNDLE).get("sample_size")
    return {"height": int(side), "width": int(side)} if side else {}


def _inputs(path: Path) -> list[onnx.ValueInfoProto]:
    """The declared inputs of a model.

    Raises:
        UsageError: there is no readable model.
    """
    graph = load_graph(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [info for info in graph.input if info.name not in weights]


def _value(
    info: onnx.ValueInfoProto, sizes: Mapping[str, int], random: np.random.Generator
) -> Array:
    tensor = info.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    unknown = [str(d) for d in dims if not isinstance(d, int) and d not in sizes]
    if unknown:
        raise UsageError(
            f"input {info.name}: dimension {unknown[0] or '?'} has no known size, expected numbers "
            f"or {', '.join(sizes)}"
        )
    shape = [d if isinstance(d, int) else sizes[d] for d in dims]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if info.name == "timestep":
        return np.full(shape, TIMESTEP, dtype)
    if np.issubdtype(dtype, np.integer):
        # A mask has an axis of its text, an index has not.
        return np.full(shape, len(shape) > 1, dtype)
    return random.standard_normal(shape).astype(dtype)


def ours(isa: str) -> Backend[StepCase]:
    """The bundle's transformer with the kernels of one instruction set."""

    def load(case: StepCase, threads: int) -> Loaded:
        return bound(make_session(case.model, threads, isa=isa), case.feed)

    return Backend(f"fp4dit {isa}", "the bundle's transformer", load, isa=isa)


def _function_bodies(case: StepCase, threads: int) -> Loaded:
    return bound(make_session(case.model, threads), case.feed)


def _float_path(case: StepCase) -> Path:
    if case.float_model is None:
        raise Absent(NO_FLOAT)
    return case.float_model


def _ort_float32(case: StepCase, threads: int) -> Loaded:
    return bound(make_session(_float_path(case), threads), case.feed)


def _ort_int8(case: StepCase, threads: int) -> Loaded:
    """`quantize_dynamic` of the float model."""
    with scratch_folder() as folder:
        model = quantized(_float_path(case), Path(folder, "int8.onnx"))
        return bound(make_session(model, threads), case.feed)


def _openvino(precision: str, short: str) -> Backend[StepCase]:
    def load(case: StepCase, threads: int) -> Loaded:
        return onnx_model(_float_path(case), case.feed, threads, precision)

    about = f"the float model, inference precision {precision}"
    return Backend(f"openvino-{short}", about, load, "openvino")


PEERS: tuple[Backend[StepCase], ...] = (
    Backend("ort-float32", "the float model", _ort_float32),
    Backend("ort-int8", "quantize_dynamic of the float model", _ort_int8),
    Backend(
        "ort-functions",
        "the bundle through its function bodies",
        _function_bodies,
        by_default=False,
    ),
    _openvino("f32", "float32"),
    _openvino("bf16", "bf16"),
)
"""Other backends for a denoising step; another one is another entry."""
