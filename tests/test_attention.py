"""Attention in torch: the same numbers as diffusers', and q, k and v quantized per head and token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from diffusers.models.attention_processor import Attention

from fp4dit_onnx.calibration.attention import QuantizedAttention, attention_module
from fp4dit_onnx.calibration.simulate import simulate, simulated
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.attention import AttentionProcessor
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits, within
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.spec.state import QuantizedState

Array = npt.NDArray[Any]
HEADS, DIM = 3, 8
WIDTH = HEADS * DIM


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network(torch.nn.Module):
    """One attention over a context, and a linear that is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(WIDTH, WIDTH, heads=HEADS, dim_head=DIM, bias=True)
        self.proj = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any, context: Any, mask: Any = None) -> Any:
        """[B, S, C], [B, L, C] and a mask bias [B, 1, L] -> [B, S, C]."""
        return self.attn(x, encoder_hidden_states=context, attention_mask=mask)


@pytest.fixture
def network() -> Network:
    return Network().requires_grad_(requires_grad=False).eval()


def inputs() -> tuple[Any, Any, Any]:
    """Five tokens that attend to seven, of which the second prompt has but four."""
    x, context = normal(2, 5, WIDTH), normal(2, 7, WIDTH, seed=1)
    x[0, 2] *= 1000  # a token of another size has scales of its own
    mask = torch.zeros(2, 1, 7)
    mask[1, :, 4:] = -10000.0
    return x, context, mask


def quantized_heads(linear: Any, x: Any, fmt: str) -> Array:
    """A linear's output in numpy, quantized and dequantized: [B, H, S, D]."""
    y = linear(x).numpy()
    heads = y.reshape(*y.shape[:2], HEADS, DIM)  # [B, S, C] -> [B, S, H, D]
    q, scale = numerics.quantize(heads, FORMATS[fmt])
    assert scale.shape == (*heads.shape[:3], 1)
    return numerics.dequantize(q, scale, DIM).transpose(0, 2, 1, 3)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("fmt", ["e2m1", "e2m3", "e3m4", "int8", "e4m3"])
def test_simulation_is_plain_numpy(
    network: Network, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v are bit for bit numpy's; what is made of them is attention in float."""
    seen: list[Any] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*parts: Any, **options: Any) -> Any:
        seen.extend(parts)
        return original(*parts, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    network.attn.to_out[0] = torch.nn.Identity()
    x, context, mask = inputs()
    with simulated(network, QuantizedState({}, attention={"attn": fmt})):
        found = network(x, context, mask).numpy()
    sources = (x, context, context)
    q, k, v = wanted = [
        quantized_heads(getattr(network.attn, f"to_{part}"), source, fmt)
        for part, source in zip(ATTENTION_PARTS, sources, strict=True)
    ]
    for expected, got in zip(wanted, seen, strict=True):
        same = same_bits(expected, got.numpy())
        assert same.ok, same.detail
    wide = (part.astype(np.float64) for part in (q, k.swapaxes(-1, -2), v))
    a, b, c = wide
    scores = a @ b / np.sqrt(DIM) + mask.numpy()[:, None]
    mixed = softmax(scores) @ c
    reference = mixed.swapaxes(1, 2).reshape(2, 5, WIDTH)  # [B, H, S, D] -> [B, S, C]
    # A score passes D + 4 roundings of 2^-24 (scales of q and k, products, sums, mask), relative to
    # the sum of its terms' magnitudes; a probability moves by twice that and its own L + 4; the sum
    # over v adds L.
    terms = (np.abs(a) @ np.abs(b) / np.sqrt(DIM)).max() + 1  # the mask's own scores vanish
    bound = (2 * (DIM + 4) * terms + 2 * 7 + 8) * 2.0**-24 * np.abs(c).max()
    close = within(reference, found.astype(np.float64), bound)
    assert close.ok, close.detail
    assert not within(reference, -found.astype(np.float64), bound).ok


def test_without_a_format_it_is_diffusers(tiny_pixart: Callable[..., Any]) -> None:
    """The simulation thus changes nothing but what it quantizes, bit for bit."""
    network = tiny_pixart()
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    arguments = {
        "hidden_states": normal(2, 4, 8, 8),
        "encoder_hidden_states": normal(2, 5, 24),
        "encoder_attention_mask": mask,
        "timestep": torch.tensor([20.0, 999.0]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    wanted = network(**arguments)[0].numpy()
    network.set_attn_processor(AttentionProcessor())
    same = same_bits(wanted, network(**arguments)[0].numpy())
    assert same.ok, same.detail
    simulate(network, QuantizedState({}, attention={"transformer_blocks.1.attn2": "e2m3"}))
    assert not same_bits(wanted, network(**arguments)[0].numpy()).ok
    kinds = {name: type(p) for name, p in network.attn_processors.items()}
    (changed,) = (name for name, kind in kinds.items() if kind is QuantizedAttention)
    assert changed == "transformer_blocks.1.attn2.processor"


def test_simulated_restores_the_processor(network: Network) -> None:
    before, wanted = network.attn.processor, network(*inputs())
    state = QuantizedState({}, attention={"attn": "e2m3"})
    with simulated(network, state):
        assert network.attn.processor == QuantizedAttention(FORMATS["e2m3"])
        assert not torch.equal(network(*inputs()), wanted)
    assert network.attn.processor is before
    assert torch.equal(network(*inputs()), wanted)
    with pytest.raises(RuntimeError, match="stopped"), simulated(network, state):
        raise RuntimeError("stopped")
    assert network.attn.processor is before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "the state has attention other, the model has not"),
        ("proj", "attention proj: in the model it is a Linear, expected a module with set_proc"),
    ],
)
def test_state_of_another_model(network: Network, name: str, message: str) -> None:
    before = network.attn.processor
    state = QuantizedState({}, attention={"attn": "e2m3", name: "e2m3"})
    with pytest.raises(UsageError, match=message), simulated(network, state):
        pass
    assert network.attn.processor is before
    with pytest.raises(UsageError, match=message):
        attention_module(network, name)


def test_a_nan_stays_with_its_head_and_token(network: Network) -> None:
    heads = normal(2, 5, HEADS, DIM)
    heads[1, 3, 2, 4], heads[0, 0, 1] = torch.nan, 0
    found = QuantizedAttention(FORMATS["e2m3"]).rounded(heads)
    assert torch.isnan(found).nonzero().tolist() == [[1, 3, 2, d] for d in range(DIM)]
    assert not found[0, 0, 1].any()
