"""From a configuration to graphs: networks without weights, kinds of blocks, positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")

import torch
from diffusers.models.embeddings import (
    PatchEmbed,
    get_2d_rotary_pos_embed,
    get_2d_sincos_pos_embed,
)
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

from fp4dit_onnx.bundle.skeleton import BLOCK_DOMAIN, is_placeholder
from fp4dit_onnx.checkpoint.checkpoint import TensorInfo
from fp4dit_onnx.errors import CheckpointError, Fp4DitError
from fp4dit_onnx.families import InputSpec, Interface, family_of
from fp4dit_onnx.families.autoencoders import DECODER
from fp4dit_onnx.network.fake import fake_network, is_fake
from fp4dit_onnx.network.networks import FakeNetwork, fake_transformer
from fp4dit_onnx.network.positions import cropped_table, grid_rotary, sincos_table
from fp4dit_onnx.tracing.trace import trace, traced_once


class Tied(torch.nn.Module):
    """Two linears of one weight, a buffer that is stored and one that is computed."""

    stored: torch.Tensor
    computed: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, dtype=torch.float16)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = torch.nn.Dropout(0.5)
        self.register_buffer("stored", torch.arange(4), persistent=True)
        self.register_buffer("computed", torch.arange(4) * 1.5, persistent=False)


def test_parameters_are_fake_and_what_no_file_has_is_real() -> None:
    network, mode = fake_network(Tied)
    assert not any(module.training for module in network.modules())
    for name, parameter in network.named_parameters():
        assert is_fake(parameter), name
        assert isinstance(parameter, torch.nn.Parameter)
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
        assert not parameter.requires_grad
    assert is_fake(network.stored)
    assert network.stored.dtype == torch.int64
    assert not is_fake(network.computed)
    assert network.computed.tolist() == [0, 1.5, 3, 4.5]  # type: ignore[operator]
    assert not is_fake(torch.zeros(2))
    with mode:
        assert is_fake(network.first(torch.ones(5, 3)))  # type: ignore[operator]


def test_tied_parameters_stay_tied() -> None:
    network, _ = fake_network(Tied)
    assert network.first.weight is network.second.weight
    assert len(list(network.parameters())) == 2
    assert len(network.state_dict()) == 4


def test_a_fake_network_takes_no_memory() -> None:
    """Sixteen petabytes."""
    network, _ = fake_network(lambda: torch.nn.Linear(1 << 26, 1 << 26))
    assert network.weight.shape == (1 << 26, 1 << 26)


def test_positions_of_diffusers_are_real(traced_twin: Callable[[str], Any]) -> None:
    twin = traced_twin("pixart-alpha-512")
    module, own = twin.network.module, twin.torch_network()
    assert all(is_fake(p) for p in module.parameters())
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {name: tuple(p.shape) for name, p in own.named_parameters()}
    assert torch.equal(module.pos_embed.pos_embed, own.pos_embed.pos_embed)


def test_every_tensor_is_found_in_the_checkpoint(traced_twin: Callable[[str], Any]) -> None:
    twin = traced_twin("dit-xl-2-256")
    stored = dict(twin.checkpoint.tensors)
    found = twin.network.stored_under(stored)
    assert found == {name: stored[name] for name in twin.network.module.state_dict()}
    linear = "transformer_blocks.1.attn1.to_q"
    assert linear in twin.network.linears
    del stored[f"{linear}.weight"]
    with pytest.raises(CheckpointError, match=f"has no tensor '{linear}.weight'"):
        twin.network.stored_under(stored)


def test_tied_tensors_are_stored_once_under_any_name() -> None:
    network = FakeNetwork(*fake_network(Tied), {})

    def info(*shape: int) -> TensorInfo:
        return TensorInfo(shape, "F32", None, 0, 0)  # type: ignore[arg-type]

    rest = {"first.bias": info(3), "net.stored": info(4)}
    for name in ("first.weight", "second.weight", "net.second.weight"):
        found = network.stored_under({name: info(3, 3), **rest}, "net.{}".format)
        assert found["first.weight"] is found["second.weight"]
        assert found.keys() == {"first.weight", "first.bias", "second.weight", "stored"}


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("NoSuchTransformer", {}, "has no class NoSuchTransformer: install a newer one"),
        (
            "PixArtTransformer2DModel",
            {"norm_type": "none"},
            "config.json makes no PixArtTransformer2DModel: .*download it again",
        ),
    ],
)
def test_configurations_that_make_nothing(name: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        fake_transformer(name, config)


@pytest.mark.parametrize(
    ("name", "blocks", "kinds"),
    [
        ("pixart-alpha-512", "transformer_blocks", [[0, 1, 2, 3]]),
        # the second half adds what the first half's blocks gave
        ("hunyuan-dit-1.2", "blocks", [[0, 1, 2, 3], [4, 5]]),
        ("dit-xl-2-256", "transformer_blocks", [[0, 1, 2, 3]]),
    ],
)
def test_blocks_are_traced_once_a_kind(
    traced_twin: Callable[[str], Any], name: str, blocks: str, kinds: list[list[int]]
) -> None:
    twin = traced_twin(name)
    found: dict[int, list[str]] = {}
    for block, kind in twin.traced.kinds.items():
        found.setdefault(id(kind), []).append(block)
    wanted = [[f"{blocks}.{i}" for i in numbers] for numbers in kinds]
    assert list(found.values()) == wanted
    for kind, names in zip(
        {id(k): k for k in twin.traced.kinds.values()}.values(), wanted, strict=True
    ):
        assert kind.first == names[0]
        prefix = (f"{kind.first}.", f"{kind.first}/")
        assert all(node.name.startswith(prefix) for node in kind.model.graph.node)
        parameters = [t.name for t in kind.model.graph.initializer if is_placeholder(t)]
        assert sorted(parameters) == sorted(
            n for n, _ in twin.network.module.named_parameters() if n.startswith(prefix[0])
        )
    standing = [n.name for n in twin.traced.shell.graph.node if n.domain == BLOCK_DOMAIN]
    assert standing == list(twin.traced.kinds)
    assert [i.name for i in twin.traced.shell.graph.input] == [
        spec.name for spec in twin.family.interface(twin.network.config).inputs
    ]


def test_open_sizes_of_blocks_are_named(traced_twin: Callable[[str], Any]) -> None:
    traced = traced_twin("pixart-alpha-512").traced
    (kind,) = {id(k): k for k in traced.kinds.values()}.values()
    dims = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*kind.model.graph.input, *kind.model.graph.output)
    ]
    assert dims == [
        ["batch", "tokens", 96],
        ["batch", "text", 96],
        ["batch", 1, "text"],
        ["batch", 576],
        ["batch", "tokens", 96],
    ]


def test_the_network_is_left_as_it_was(traced_twin: Callable[[str], Any]) -> None:
    for name in ("pixart-alpha-512", "hunyuan-dit-1.2", "dit-xl-2-256"):
        module = traced_twin(name).network.module
        assert [n for n, m in module.named_modules() if "forward" in vars(m)] == []


class Untraceable(torch.nn.Module):
    """Branches on a value."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Either way, a tensor."""
        return ((x + 1) if x.sum() > 0 else x,)


def test_a_network_is_traced_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []

    def trace(module: Any, interface: Any, config: dict[str, int], mode: Any) -> int:
        traced.append(config["width"])
        return len(traced)

    monkeypatch.setattr("fp4dit_onnx.tracing.trace.trace", trace)
    monkeypatch.setattr("fp4dit_onnx.tracing.trace._TRACED", kept := {})

    def made(width: int) -> Any:
        return traced_once(FakeNetwork(torch.nn.Module(), None, {"width": width}), DECODER)

    assert [made(width) for width in (8, 16, 8)] == [1, 2, 1]
    for width in range(50):
        made(width)
    assert len(kept) == 32


def test_what_cannot_be_traced_is_one_line() -> None:
    network, mode = fake_network(Untraceable)
    interface = Interface((InputSpec("x", "float32", ("batch", 3)),))
    with pytest.raises(Fp4DitError, match=r"torch\.onnx cannot trace Untraceable: [^\n]*$"):
        trace(network, interface, {}, mode)


GRIDS = ((8, 8), (4, 4), (12, 12), (12, 8), (5, 31), (64, 64), (1, 7))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("base", "scale"), [(8, 1), (32, 1), (64, 2), (16, 0.5)])
def test_sines_are_those_of_diffusers(grid: tuple[int, int], base: int, scale: float) -> None:
    """Exactly: the table that `PatchEmbed` makes for a size that is not its own."""
    height, width = grid
    found = sincos_table(height, width, 24, base, scale)
    wanted = get_2d_sincos_pos_embed(
        24, grid, interpolation_scale=scale, base_size=base, output_type="pt"
    )
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted.float().unsqueeze(0))


def test_the_own_size_is_no_exception() -> None:
    embed = PatchEmbed(height=16, width=16, patch_size=2, embed_dim=24, interpolation_scale=2)
    assert torch.equal(sincos_table(8, 8, 24, embed.base_size, 2), embed.pos_embed)
    turned = sincos_table(8, 12, 24, 8, 2).unflatten(1, (8, 12)).transpose(1, 2).flatten(1, 2)
    assert not torch.equal(turned, sincos_table(12, 8, 24, 8, 2))


@pytest.mark.parametrize("grid", [(6, 6), (2, 4), (5, 3), (1, 6)], ids=str)
@pytest.mark.parametrize("side", [6, 7])
def test_the_middle_of_a_stored_table(side: int, grid: tuple[int, int]) -> None:
    embed = PatchEmbed(height=8, width=8, patch_size=2, embed_dim=8, pos_embed_max_size=side)
    found = cropped_table(embed.pos_embed, side, *grid)
    assert torch.equal(found, embed.cropped_pos_embed(2 * grid[0], 2 * grid[1]))


@pytest.mark.parametrize("grid", [*GRIDS, (32, 32), (64, 48), (40, 72)], ids=str)
@pytest.mark.parametrize("base", [16, 32])
def test_rotary_tables_are_those_of_diffusers(grid: tuple[int, int], base: int) -> None:
    """Up to 2e-6: half a unit in the last place of an angle below 32, the largest there is."""
    found = grid_rotary(*grid, head_dim=24, base_size=base)
    region = get_resize_crop_region_for_grid(grid, base)
    wanted = get_2d_rotary_pos_embed(24, region, grid, output_type="pt")
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == theirs.shape == (math.prod(grid), 24)
        assert float((mine - theirs).abs().max()) <= 2e-6
    if grid[0] != grid[1]:
        turned = grid_rotary(grid[1], grid[0], head_dim=24, base_size=base)
        assert float((turned[0] - wanted[0]).abs().max()) > 0.01


def test_families_have_blocks_that_their_networks_have(traced_twin: Callable[[str], Any]) -> None:
    for name in ("pixart-alpha-512", "hunyuan-dit-1.2", "dit-xl-2-256"):
        twin = traced_twin(name)
        checkpoint = twin.checkpoint
        family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
        assert family is twin.family
        (blocks,) = family.interface(twin.network.config).blocks
        assert len(twin.network.module.get_submodule(blocks)) == len(twin.traced.kinds)
