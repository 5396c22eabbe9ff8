"""What the records say of modules is what networks do: outer layers, readers of a norm, q, k and v."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from torch.overrides import TorchFunctionMode

from fp4dit_onnx.families import FAMILIES
from fp4dit_onnx.families.family import Blocks

TWINS = (
    "pixart-alpha-512",
    "hunyuan-dit-1.1",
    "dit-xl-2-256",
    "flux-dev",
    "sd3.5-medium",
    "auraflow",
    "z-image",
    "flux2-klein-4b",
    "sana-1600m",
)
SIX = {
    "adaln_single.emb.timestep_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2",
    "adaln_single.linear",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
    "proj_out",
}
"""The outer layers of PixArt without micro-conditions."""


@pytest.fixture(params=TWINS)
def subject(request: pytest.FixtureRequest, twin: Callable[[str], Any]) -> Any:
    """Every family's twin in turn."""
    return twin(request.param)


def linears_of(module: Any) -> dict[str, Any]:
    return {name: m for name, m in module.named_modules() if isinstance(m, torch.nn.Linear)}


def test_every_family_has_a_twin_here(twin: Callable[[str], Any]) -> None:
    named = {twin(name).family.transformer for name in TWINS}
    assert named == {family.transformer for family in FAMILIES}


def test_outer_layers_are_the_linears_outside_of_the_blocks(subject: Any) -> None:
    family, names = subject.family, set(linears_of(subject.network))
    lists = tuple(f"{blocks.name}." for blocks in family.blocks)
    found: set[str] = set()
    for patterns in family.outer.values():
        for pattern in patterns:
            matched = {name for name in names if fnmatchcase(name, pattern)}
            assert matched, pattern
            assert not matched & found, pattern
            found |= matched
    assert found >= {name for name in names if not name.startswith(lists)}
    embedders = {name for name in found if name.startswith(lists)}  # DiT has one in each block
    assert all(".timestep_embedder." in name for name in embedders)
    if family.name == "PixArt-alpha":
        assert found == SIX


@contextmanager
def hooked(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run(subject: Any) -> None:
    args, kwargs = subject.call
    subject.network(*args, **kwargs)


def read(subject: Any, block: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each linear of a block reads, and the block's arguments."""
    seen: dict[str, Any] = {}
    given: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: seen.setdefault(name, args[0])

    hooks = [m.register_forward_pre_hook(keep(n)) for n, m in linears_of(block).items()]
    signature = inspect.signature(type(block).forward)

    def arguments(_: Any, args: Any, kwargs: Any) -> None:
        given.update(signature.bind(block, *args, **kwargs).arguments)

    hooks.append(block.register_forward_pre_hook(arguments, with_kwargs=True))
    with hooked(hooks):
        run(subject)
    return seen, given


def of_norm(subject: Any, block: Any, norm: str, factor: float) -> dict[str, Any]:
    """What each linear of a block reads when a norm gives `factor` times its result."""

    def scaled(_: Any, __: Any, result: Any) -> Any:
        if not isinstance(result, tuple):
            return factor * result
        return tuple(factor * x if x.ndim == 3 else x for x in result)  # gates are [B, D]

    with hooked([block.get_submodule(norm).register_forward_hook(scaled)]):
        return read(subject, block)[0]


def first_with(subject: Any, blocks: Blocks, module: str) -> Any:
    """The first block of a list that has a module of that name."""
    listed = list(subject.network.get_submodule(blocks.name))
    return next(b for b in listed if module in dict(b.named_modules()))


@torch.no_grad()
def test_readers_read_one_tensor_of_their_norm(subject: Any) -> None:
    """Of a norm they read a scale and a shift: twice what it gives moves them twice as far."""
    for blocks in subject.family.blocks:
        modules = {
            n for b in subject.network.get_submodule(blocks.name) for n, _ in b.named_modules()
        }
        for source, readers in blocks.readers:
            assert modules >= set(readers), source
            block = first_with(subject, blocks, source if source in modules else readers[0])
            seen, given = read(subject, block)
            assert len({id(seen[name]) for name in readers}) == 1, source
            tensor = seen[readers[0]]
            assert set(readers) == {n for n, x in seen.items() if x is tensor}, source
            if source not in modules:
                assert torch.equal(tensor, given[source])
                continue
            none, once, twice = (
                of_norm(subject, block, source, factor)[readers[0]] for factor in (0.0, 1.0, 2.0)
            )
            moved = (once - none).abs().max()
            assert moved > 0, source
            assert (twice - none - 2 * (once - none)).abs().max() < 1e-4 * moved, source


@torch.no_grad()
def test_linears_that_share_a_tensor_are_readers(subject: Any) -> None:
    for blocks in subject.family.blocks:
        listed = {name: group for _, group in blocks.readers for name in group}
        seen, _ = read(subject, next(iter(subject.network.get_submodule(blocks.name))))
        for name, tensor in seen.items():
            same = [other for other, x in seen.items() if x is tensor]
            assert len(same) == 1 or set(same) == set(listed[name]), same


class _Joined(TorchFunctionMode):
    """Notes the widths of tensors [B, S, C] that are joined side by side, by the width they make."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, list[int]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.cat and result.ndim == 3:
            widths = [part.shape[-1] for part in args[0]]
            if result.shape[-1] == sum(widths):
                self.found[sum(widths)] = widths
        return result


@contextmanager
def inside(block: Any) -> Iterator[_Joined]:
    """What is joined while a block runs."""
    joins, own = _Joined(), block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with joins:
            return own(*args, **kwargs)

    block.forward = forward
    try:
        yield joins
    finally:
        del block.forward


@torch.no_grad()
def test_linears_of_joined_tensors_say_so(subject: Any) -> None:
    """Every linear of a block that reads tensors side by side; each has an equal share or several."""
    layers = linears_of(subject.network)
    joined = subject.family.joined(layers)
    found: set[str] = set()
    for blocks in subject.family.blocks:
        for name, block in subject.network.get_submodule(blocks.name).named_children():
            with inside(block) as joins:
                run(subject)
            for linear, module in linears_of(block).items():
                layer = f"{blocks.name}.{name}.{linear}"
                if widths := joins.found.get(module.in_features):
                    share = module.in_features // joined[layer]
                    assert all(width % share == 0 for width in widths), layer
                    assert share == min(widths), layer
                    found.add(layer)
    assert found == set(joined)


class _Attention(TorchFunctionMode):
    """Notes which of q, k and v hold NaN in the first attention that has any."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention and not self.found:
            given = [*args, *(kwargs or {}).values()][:3]
            wrong = [bool(x.isnan().any()) for x in given]
            self.found = wrong if any(wrong) else []
        return function(*args, **(kwargs or {}))


def test_an_attention_is_in_float_with_any_of_its_linears(twin: Callable[[str], Any]) -> None:
    subject = twin("flux-dev")
    layers = tuple(linears_of(subject.network))
    joint, *others = subject.family.attentions(layers)
    assert joint == "transformer_blocks.0.attn"
    assert others[-1].startswith("single_transformer_blocks.")
    assert len({joint, *others}) == len(others) + 1
    for kept in ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_v_proj"):
        assert subject.family.attentions(layers, [kept]) == tuple(others)
    assert subject.family.attentions(layers, ["proj_out"]) == (joint, *others)
    assert subject.family.attentions(layers[::-1]) == (*others[::-1], joint)


@torch.no_grad()
def test_linears_make_q_k_and_v(subject: Any) -> None:
    for blocks in subject.family.blocks:
        for triple in blocks.qkv:
            block = first_with(subject, blocks, triple[0])
            for linear in triple:
                hook = block.get_submodule(linear).register_forward_hook(
                    lambda _, __, result: torch.full_like(result, torch.nan)
                )
                with hooked([hook]), _Attention() as attention:
                    run(subject)
                assert attention.found == [other == linear for other in triple], linear
