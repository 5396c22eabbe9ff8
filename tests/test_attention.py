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
from torch.overrides import TorchFunctionMode

from fp4dit_onnx.calibration.attention import attention_module
from fp4dit_onnx.calibration.grid import quantize_rows
from fp4dit_onnx.calibration.run import sqnr_db
from fp4dit_onnx.calibration.simulate import simulated, unquantized
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


class _Products(TorchFunctionMode):
    """Notes what torch's attention multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any, Any]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            q, k, v, *_ = (*args, *(kwargs or {}).values())
            self.seen.append((q, k, v))
        return function(*args, **(kwargs or {}))


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
def test_simulation_is_plain_numpy(network: Network, fmt: str) -> None:
    """q, k and v are bit for bit numpy's; what is made of them is attention in float."""
    network.attn.to_out[0] = torch.nn.Identity()
    x, context, mask = inputs()
    with _Products() as products, simulated(network, QuantizedState({}, attention={"attn": fmt})):
        found = network(x, context, mask).numpy()
    (seen,) = products.seen
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


def test_the_processor_for_open_sizes_is_diffusers(tiny_pixart: Callable[..., Any]) -> None:
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


def test_simulated_restores_the_attention(network: Network) -> None:
    wanted = network(*inputs())
    state = QuantizedState({}, attention={"attn": "e2m3"})
    with simulated(network, state):
        rounded = network(*inputs())
        assert not torch.equal(rounded, wanted)
        with unquantized(network):
            assert torch.equal(network(*inputs()), wanted)
        assert torch.equal(network(*inputs()), rounded)
    assert "forward" not in vars(network.attn)
    assert torch.equal(network(*inputs()), wanted)
    own = network.attn.forward
    network.attn.forward = own
    with pytest.raises(RuntimeError, match="stopped"), simulated(network, state):
        raise RuntimeError("stopped")
    assert vars(network.attn)["forward"] is own


def on_grid(x: Any, fmt: str) -> bool:
    """Whether rounding [..., D] moves nothing by more than float32 does."""
    q, scale = quantize_rows(x, FORMATS[fmt])
    return bool(((q * scale - x).abs() <= 1e-6 * x.abs()).all())


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        *("pixart-alpha-512", "hunyuan-dit-1.2", "dit-xl-2-256", "flux-dev", "sd3.5-medium"),
        *("auraflow", "sana-1600m"),
    ],
)
def test_every_family_multiplies_rounded_q_k_and_v(twin: Callable[[str], Any], name: str) -> None:
    """After norms and rotations, text and image joined: every product of torch's attention."""
    subject = twin(name)
    layers = [n for n, m in subject.network.named_modules() if isinstance(m, torch.nn.Linear)]
    attention = dict.fromkeys(subject.family.attentions(layers), "e2m3")

    def rounded(attention: dict[str, str]) -> tuple[Any, list[bool]]:
        """What the network gives, and which of its products are of rounded tensors."""
        args, kwargs = subject.call
        state = QuantizedState({}, attention=attention)
        with _Products() as products, simulated(subject.network, state):
            result = subject.network(*args, **kwargs)[0]
        return result, [all(on_grid(x, "e2m3") for x in parts) for parts in products.seen]

    wanted, none = rounded({})
    found, every = rounded(attention)
    _, other = rounded(dict(list(attention.items())[1:]))
    assert none == [False] * len(attention)
    assert every == [True] * len(attention)
    assert other == [False, *every[1:]]
    assert sqnr_db(wanted, found) < 60


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "the state has attention other, the model has not"),
        ("proj", "attention proj: in the model it is a Linear, expected an attention of diff"),
    ],
)
def test_state_of_another_model(network: Network, name: str, message: str) -> None:
    state = QuantizedState({}, attention={"attn": "e2m3", name: "e2m3"})
    with pytest.raises(UsageError, match=message), simulated(network, state):
        pass
    assert "forward" not in vars(network.attn)
    with pytest.raises(UsageError, match=message):
        attention_module(network, name)


def test_a_nan_stays_with_its_head_and_token(network: Network) -> None:
    network.attn.to_out[0] = torch.nn.Identity()
    x, context, mask = inputs()
    with simulated(network, QuantizedState({}, attention={"attn": "e2m3"})):
        wanted = network(x, context, mask)
        x[1, 3, 4] = torch.nan
        found = network(x, context, mask)
    assert torch.isnan(found).any(dim=-1).nonzero().tolist() == [[1, 3]]
    kept = ~torch.isnan(found)
    assert torch.equal(found[kept], wanted[kept])
