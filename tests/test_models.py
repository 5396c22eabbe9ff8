"""Every family: the float graph computes what diffusers' own network does, at every size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

from fp4dit_onnx.exporting.streaming import GraphValues, nothing_quantized, write_model
from fp4dit_onnx.families import DYNAMIC
from fp4dit_onnx.passes.pipeline import quantized_graph
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.spec.state import Layout
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.verification.cases import inputs_of_sizes

Array = npt.NDArray[Any]
Arguments = dict[str, Any]
TWINS = (
    "pixart-alpha-512",
    "pixart-alpha-1024-ms",
    "pixart-sigma-512",
    "hunyuan-dit-1.1",
    "hunyuan-dit-1.2",
    "dit-xl-2-256",
)
SQUARES = ((1, 5, 1, 1), (2, 9, 1.5, 1.5), (2, 1, 0.5, 0.5))
SIZES = ((1, 5, 1, 1), (2, 9, 1.5, 1), (2, 1, 0.5, 1.25))
"""Batch, text length, and height and width as shares of the model's own size."""
AXES = ("batch", "text", "height", "width")
ROTARY_ERROR = 2e-6
"""Of an element of the rotary tables, which tests/test_tracing.py holds them to."""


@dataclass(frozen=True)
class Subject:
    """A twin with its weights, in torch and as a graph."""

    twin: Any
    network: Any
    model: onnx.ModelProto
    path: Path

    @property
    def name(self) -> str:
        """Of the family."""
        return str(self.twin.family.name)

    def feed(self, batch: int, text: int, height: float, width: float) -> dict[str, Array]:
        """Random inputs of a size given in shares of the model's own."""
        config = self.network.config
        patch, own = config.patch_size, config.sample_size
        space = [round(own * share / patch) * patch for share in (height, width)]
        sizes = dict(zip(AXES, (batch, text, *space), strict=True))
        return inputs_of_sizes(self.twin.family, config, sizes, 321.0, batch)

    def run(self, feed: Mapping[str, Array]) -> Array:
        """What the graph computes."""
        return np.asarray(session(self.path, library=False).run(None, dict(feed))[0])

    def arguments(self, feed: Mapping[str, Array]) -> Arguments:
        """Of diffusers' own network, as diffusers' pipeline makes them."""
        given = {name: torch.from_numpy(value) for name, value in feed.items()}
        config = self.network.config
        if self.name == "Hunyuan-DiT":
            grid = tuple(size // config.patch_size for size in feed["hidden_states"].shape[-2:])
            base = 512 // 8 // config.patch_size
            tables = get_2d_rotary_pos_embed(
                config.attention_head_dim,
                get_resize_crop_region_for_grid(grid, base),
                grid,
                output_type="pt",
            )
            return {**given, "image_rotary_emb": tables, "return_dict": False}
        made: Arguments = self.twin.family.interface(config).keywords(given)
        return made


@pytest.fixture(scope="module")
def subject_of(
    traced_twin: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Subject]:
    """Each twin by name, made once."""
    folder = tmp_path_factory.mktemp("graphs")

    def make(name: str) -> Subject:
        twin = traced_twin(name)
        model, _ = quantized_graph(twin.traced, Layout({}, {}), "fused")
        path = folder / f"{name}.onnx"
        tensors = twin.network.stored_under(twin.checkpoint.tensors)
        write_model(model, GraphValues(tensors, {}, nothing_quantized), path)
        return Subject(twin, twin.torch_network(), model, path)

    return cache(make)


@pytest.fixture(scope="module", params=TWINS)
def subject(request: pytest.FixtureRequest, subject_of: Callable[[str], Subject]) -> Subject:
    """Every twin in turn."""
    return subject_of(request.param)


def in_double(arguments: Arguments) -> Arguments:
    def wide(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, dict):
            return {k: wide(v) for k, v in value.items()}
        return tuple(wide(v) for v in value) if isinstance(value, tuple) else value

    return {name: wide(value) for name, value in arguments.items()}


def run_torch(network: Any, arguments: Arguments) -> Array:
    with torch.no_grad(), quiet():
        result: Array = network(**arguments)[0].numpy()
    return result


def rms(a: Array) -> float:
    return float(np.sqrt(np.square(a.astype(np.float64)).mean()))


def moved_inputs(wide: Arguments) -> Iterator[Arguments]:
    """Arguments off by as much as float32 may have them, of what diffusers makes in float32 always.

    The sinusoids of the timestep: frequency (exp) and phase are rounded to 2^-23 relatively each,
    which moves the phase as a timestep larger by 2^-22 does. And the rotary tables.
    """
    yield {**wide, "timestep": wide["timestep"].double() * (1 + 2.0**-22)}
    if "image_rotary_emb" in wide:
        random = torch.Generator().manual_seed(0)
        tables = tuple(
            t + ROTARY_ERROR * (2 * torch.randint(0, 2, t.shape, generator=random) - 1)
            for t in wide["image_rotary_emb"]
        )
        yield {**wide, "image_rotary_emb": tables}


def agrees(network: Any, arguments: Arguments, found: Array) -> bool:
    """Whether `found` is the network's output up to float32 rounding.

    The reference is the network in float64. Rounding alone moves a float32 evaluation away from it
    by about as much as torch's own float32 evaluation is away; another order of sums may cost a
    small multiple, 4. To this come the errors of `moved_inputs`.
    """
    double, wide = copy.deepcopy(network).double(), in_double(arguments)
    reference = run_torch(double, wide)
    if found.shape != reference.shape:
        return False
    bound = 4 * rms(run_torch(network, arguments) - reference)
    bound += sum(rms(run_torch(double, moved) - reference) for moved in moved_inputs(wide))
    assert bound < 1e-4 * rms(reference), "the bound is loose"
    return bool(rms(found - reference) <= bound)


@pytest.mark.parametrize("case", range(len(SIZES)))
def test_the_graph_computes_what_diffusers_does(subject: Subject, case: int) -> None:
    # diffusers' own DiT takes every image for a square
    sizes = (SQUARES if subject.name == "DiT" else SIZES)[case]
    feed = subject.feed(*sizes)
    arguments, found = subject.arguments(feed), subject.run(feed)
    assert agrees(subject.network, arguments, found)
    if case == 1:
        other = copy.deepcopy(subject.network)
        weight = next(p for n, p in other.named_parameters() if n.endswith("attn1.to_q.weight"))
        weight[0, 0] += 1e-2
        assert not agrees(other, arguments, found)
        assert not agrees(subject.network, arguments, -found)


def test_dit_draws_what_is_no_square(subject_of: Callable[[str], Subject]) -> None:
    """The positions of a square and of a part of it are different, and rows are not columns."""
    subject = subject_of("dit-xl-2-256")
    wide = subject.feed(2, 1, 1, 2)
    found = subject.run(wide)
    assert found.shape == (2, 8, 8, 16)
    turned = {**wide, "hidden_states": wide["hidden_states"].swapaxes(2, 3).copy()}
    assert subject.run(turned).shape == (2, 8, 16, 8)
    assert not np.allclose(subject.run(turned).swapaxes(2, 3), found, atol=1e-2)


def test_every_parameter_is_in_the_graph_by_its_name(subject: Subject) -> None:
    held = {tensor.name for tensor in subject.model.graph.initializer}
    shared = set()
    if subject.name == "DiT":  # what torch never reads: the embedders of the other blocks' copies
        shared = {n for n in subject.network.state_dict() if ".norm1.emb." in n}
    parameters = dict(subject.network.named_parameters())
    assert parameters.keys() - held <= shared
    modules = {name for name, _ in subject.network.named_modules()}
    for node in subject.model.graph.node:
        assert node.name.rpartition("/")[0] in modules


def test_every_size_is_open(subject: Subject) -> None:
    def dims(value: onnx.ValueInfoProto) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    config = subject.network.config
    specs = subject.twin.family.interface(config).inputs
    graph = subject.model.graph
    assert {i.name: dims(i) for i in graph.input} == {
        spec.name: [
            d if d in DYNAMIC else d if isinstance(d, int) else config[d] for d in spec.dims
        ]
        for spec in specs
    }
    (output,) = (dims(o) for o in graph.output)
    assert output[0] == "batch"
    assert ["height" in str(output[2]), "width" in str(output[3])] == [True, True]
