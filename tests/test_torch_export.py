"""Tracing a transformer: names, dynamic shapes, and the same numbers as torch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import onnxruntime as ort
import torch

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.families import family_of
from fp4dit_onnx.network.attention import AttentionProcessor
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.passes.pipeline import float_passes, run_passes
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.torch_export import export_float

Array = npt.NDArray[Any]
Inputs = Mapping[str, Any]
FAMILY = family_of("PixArtSigmaPipeline", "PixArtTransformer2DModel")

# Three thirds of the width hold the micro-conditions, so it must be a multiple of 3.
CONDITIONED = {
    "use_additional_conditions": True,
    "attention_head_dim": 24,
    "cross_attention_dim": 48,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conditioned": CONDITIONED,
    "no_bias_geglu": {"attention_bias": False, "activation_fn": "geglu", "num_layers": 1},
    # at 8 x 8, 64 tokens, as large as the axis that torch "squeezes"
    "unpatched": {"patch_size": 1, "out_channels": 4, "num_layers": 1},
    "larger": {"sample_size": 16, "num_layers": 1},
    "interpolated": {"sample_size": 16, "interpolation_scale": 2, "num_layers": 1},
}
SIZES = [
    (1, 1, 8, 8),
    (2, 16, 16, 16),
    (5, 33, 24, 24),
    (2, 7, 12, 8),
    (3, 9, 16, 24),
    (1, 2, 2, 22),
]
"""Batch, text length, height and width; none is what the tracer was shown.

The variants' own sizes are 8 and 16: each is asked for smaller, equal and larger ones.
"""


class Export:
    """A network, what tracing made of it, and what the float passes made of that."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.traced = export_float(network, FAMILY, network.config)
        self.parameters = frozenset(t.name for t in self.traced.graph.initializer)
        self.model, self.reports = run_passes(self.traced, float_passes(self.parameters))

    def inputs(self, batch: int, text: int, height: int, width: int) -> dict[str, Any]:
        """Random inputs; every text has a first token, the timesteps span the sampler's."""
        random = torch.Generator().manual_seed(batch)
        sizes = {"batch": batch, "text": text, "height": height, "width": width}
        made = {}
        for spec in FAMILY.interface(self.network.config).inputs:
            value = torch.randn(spec.shape(self.network.config, sizes), generator=random)
            if spec.name == "timestep":
                value = torch.rand(batch, generator=random) * 999
            if spec.name == "encoder_attention_mask":
                value = (value > 0).long()
                value[:, 0] = 1
            made[spec.name] = value
        return made


@pytest.fixture(scope="module")
def exported(tiny_pixart: Callable[..., Any]) -> Callable[[str], Export]:
    """Each variant by name, exported once."""
    return cache(lambda name: Export(tiny_pixart(**VARIANTS[name])))


@pytest.fixture(scope="module", params=VARIANTS)
def export(request: pytest.FixtureRequest, exported: Callable[[str], Export]) -> Export:
    """Every variant in turn."""
    return exported(request.param)


def run_torch(network: Any, inputs: Inputs) -> Array:
    with torch.no_grad():
        arguments = FAMILY.interface(network.config).keywords(inputs)
        result: Array = network(**arguments)[0].numpy()
    return result


def run_model(model: onnx.ModelProto, inputs: Inputs) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    (result,) = session.run(["sample"], {name: value.numpy() for name, value in inputs.items()})
    return np.asarray(result)


def rms(a: Array) -> float:
    return float(np.sqrt(np.square(a.astype(np.float64)).mean()))


def agrees(network: Any, inputs: Inputs, found: Array) -> bool:
    """Whether `found` is the network's output up to float32 rounding.

    The reference is the network in float64. Rounding alone moves a float32 evaluation away from it
    by about as much as torch's own float32 evaluation is away; another order of sums may cost a
    small multiple, 4. One source is larger, and the same in torch's float32 and float64 paths:
    diffusers makes the sinusoids of the timestep in float32, where the frequency (exp) and its
    product with the timestep are rounded to 2^-23 relatively each, which moves the phase as a
    timestep larger by 2^-22 does.
    """
    double = copy.deepcopy(network).double()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    reference = run_torch(double, wide)
    rounding = rms(run_torch(network, inputs) - reference)
    moved = run_torch(double, {**wide, "timestep": wide["timestep"] * (1 + 2.0**-22)})
    return bool(rms(found - reference) <= 4 * rounding + rms(moved - reference))


def test_initializers_are_called_as_the_parameters(export: Export) -> None:
    """Every parameter keeps its name and its values, in the trace and after the passes."""
    tensors = dict(export.network.named_parameters())
    buffers = dict(export.network.named_buffers())
    for model in (export.traced, export.model):
        found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        assert tensors.keys() <= found.keys()
        assert all(np.array_equal(found[name], tensors[name].numpy()) for name in tensors)
    assert export.parameters <= tensors.keys() | buffers.keys()


def test_nodes_are_called_after_their_modules(export: Export) -> None:
    modules = {name for name, _ in export.network.named_modules()}
    for model in (export.traced, export.model):
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        paths = {name.rpartition("/")[0] for name in names}
        assert paths <= modules
        assert {"transformer_blocks.0.attn1", "adaln_single.linear", "proj_out"} <= paths
    linears = {n for n, m in export.network.named_modules() if isinstance(m, torch.nn.Linear)}
    products = {n.name for n in export.model.graph.node if n.op_type == "MatMul"}
    assert {f"{layer}/MatMul" for layer in linears} <= products


def test_batch_text_height_and_width_are_dynamic_and_nothing_else(export: Export) -> None:
    def dims(value: onnx.ValueInfoProto) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    config = export.network.config
    expected: dict[str, list[int | str]] = {
        "hidden_states": ["batch", 4, "height", "width"],
        "encoder_hidden_states": ["batch", "text", 24],
        "timestep": ["batch"],
        "encoder_attention_mask": ["batch", "text"],
    }
    if config.use_additional_conditions:
        expected |= {"resolution": ["batch", 2], "aspect_ratio": ["batch", 1]}
    for model in (export.traced, export.model):
        assert {i.name: dims(i) for i in model.graph.input} == expected
        assert [o.name for o in model.graph.output] == ["sample"]
    patch = config.patch_size
    spaces = [
        f"{patch}*(({axis}//{patch}))" if patch > 1 else axis for axis in ("height", "width")
    ]
    assert dims(export.model.graph.output[0]) == ["batch", config.out_channels, *spaces]
    assert (export.model.ir_version, export.model.opset_import[0].version) == (IR_VERSION, OPSET)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_float_model_computes_what_torch_does(
    export: Export, sizes: tuple[int, int, int, int]
) -> None:
    inputs = export.inputs(*sizes)
    found = run_model(export.model, inputs)
    assert found.shape == (sizes[0], export.network.config.out_channels, *sizes[2:])
    assert agrees(export.network, inputs, found)


def test_a_slightly_different_network_is_told_apart(
    exported: Callable[[str], Export], tiny_pixart: Callable[..., Any]
) -> None:
    """The comparator: a wrong sign, a NaN, one weight moved by 1e-4, erf's GELU for tanh's.

    And the positions: of another trained size, and of an image lying on its side.
    """
    export = exported("plain")
    inputs = export.inputs(2, 16, 8, 12)
    found = run_model(export.model, inputs)
    assert agrees(export.network, inputs, found)
    assert not agrees(export.network, inputs, -found)
    assert not agrees(export.network, inputs, np.where(found == found.max(), np.nan, found))
    moved = copy.deepcopy(export.network)
    moved.proj_out.weight[0, 0] += 1e-4
    assert not agrees(moved, inputs, found)
    assert not agrees(tiny_pixart(activation_fn="gelu"), inputs, found)
    assert not agrees(tiny_pixart(sample_size=16), inputs, found)
    standing = {**inputs, "hidden_states": inputs["hidden_states"].transpose(2, 3)}
    turned = np.swapaxes(run_model(export.model, standing), 2, 3)
    assert not agrees(export.network, inputs, turned)


def test_the_passes_leave_nothing_that_runtimes_stumble_over(export: Export) -> None:
    """Shapes are constant where 0 and -1 can say them, and there are no sequences.

    They cannot where tokens become an image, of which height and width are open: at the end.
    """
    kinds = {node.op_type for node in export.model.graph.node}
    assert kinds.isdisjoint({"SplitToSequence", "SequenceAt", "Identity", "Gemm", "CastLike"})
    constant = {t.name for t in export.model.graph.initializer}
    reshapes = [node for node in export.model.graph.node if node.op_type == "Reshape"]
    computed = [node.name for node in reshapes if node.input[1] not in constant]
    assert len(computed) == (2 if export.network.config.patch_size > 1 else 1)
    assert not any("/" in name for name in computed), "in a module of the network"
    _, again = run_passes(export.model, float_passes(export.parameters))
    assert [(r.name, r.rewritten) for r in again if r.rewritten] == []


def test_export_says_nothing(
    tiny_pixart: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    network = tiny_pixart(num_layers=1)
    export_float(network, FAMILY, network.config)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", ["torch.onnx", "torch._subclasses.fake_tensor"])
def test_quiet_exporter_restores_the_loggers(name: str) -> None:
    logger = logging.getLogger(name)
    before = logging.root.manager.disable
    with quiet():
        assert not logger.isEnabledFor(logging.ERROR)
    assert logging.root.manager.disable == before
    assert logger.isEnabledFor(logging.ERROR)


class Untraceable(torch.nn.Module):
    """Branches on a value, which a trace cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Either way, a tensor."""
        return x + 1 if x.sum() > 0 else x


def test_a_network_that_cannot_be_traced_is_one_line(
    tiny_pixart: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    network = tiny_pixart(num_layers=1)
    network.proj_out = Untraceable()
    with pytest.raises(Fp4DitError) as caught:
        export_float(network, FAMILY, network.config)
    message = str(caught.value)
    assert message.startswith("torch.onnx cannot trace PixArtTransformer2DModel: GuardOnData")
    assert "Could not guard on data-dependent expression" in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, torch.onnx.OnnxExporterError)
    assert capfd.readouterr() == ("", "")


def test_the_network_is_left_as_it_was(
    exported: Callable[[str], Export], tiny_pixart: Callable[..., Any]
) -> None:
    network, fresh = exported("plain").network, tiny_pixart()
    kinds = {name: type(processor) for name, processor in fresh.attn_processors.items()}
    assert {name: type(p) for name, p in network.attn_processors.items()} == kinds
    assert AttentionProcessor not in kinds.values()
    wanted = fresh.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())


def test_a_failed_export_restores_attention(
    tiny_pixart: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_pixart()
    before = dict(network.attn_processors)

    def fail(*_: Any, **__: Any) -> None:
        used = network.attn_processors.values()
        assert all(isinstance(processor, AttentionProcessor) for processor in used)
        raise RuntimeError("no luck")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="no luck"):
        export_float(network, FAMILY, network.config)
    assert network.attn_processors == before
