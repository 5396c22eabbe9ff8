"""The tool that measures quantizers of softmax's result: the quantizers, and where they act."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import softmax_formats as tool

from fp4dit_onnx.calibration.attention import InPlace
from fp4dit_onnx.evaluation.metrics import Score


def test_log_sqrt2_is_the_papers_formula() -> None:
    """Q = round(-2 log2(p / s)), 2^-ceil(q/2) and the root of two where q is odd; 0 from 2^bits on."""
    generator = torch.Generator().manual_seed(1)
    p, scale = torch.rand(4096, generator=generator) ** 8, 0.7
    expected = []
    for x in p.tolist():
        q = max(0, round(-2 * math.log2(x / scale)))
        power = 2.0 ** -math.ceil(q / 2) * (math.sqrt(2) if q % 2 else 1)
        expected.append(scale * power if q < 16 else 0.0)
    found = tool.logarithmic(p, scale)
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-6, atol=0)
    assert len(found.unique()) == 17  # 16 powers, and 0
    assert tool.logarithmic(torch.zeros(1), scale).item() == 0


def test_e3m1_is_next_to_powers_of_the_root_of_two() -> None:
    """1.5 stands where the other has 1.414."""
    steps = tool.E3M1.magnitudes[2:]
    ratios = steps[1:] / steps[:-1]
    assert {round(ratio, 3) for ratio in ratios} == {1.5, 1.333}
    x = torch.tensor([1.0, 0.74, 0.55, 0.36])
    nearest = [1, 2 / 3, 1 / 2, 1 / 3]
    assert tool.floating(x, 1.0, tool.E3M1).tolist() == pytest.approx(nearest)


def test_every_quantizer_has_as_many_values_as_its_bits_say() -> None:
    """A log grid has 0 beside them, as published; at 16 bits nothing of an image's weight is lost."""
    p = torch.rand(1, 50_000, generator=torch.Generator().manual_seed(5)) ** 16
    counts = {
        label: len(quantizer(p, scale=float(p.max())).unique())
        for label, quantizer in tool.QUANTIZERS.items()
    }
    assert [*counts.values()][1:] == [256, 16, 17, 17, 16]
    step, roundings = float(p.max()) / 32767, 4  # of factor, product, scale and result, float32
    error = (tool.of_fp_attention(p, 0.0) - p).abs().max()
    assert float(error) <= step * (0.5 + roundings * 32767 * 2**-24)


def test_the_scale_of_least_error_is_found() -> None:
    """Of one large value among many small ones: on an even grid it is given up, on a log grid not."""
    p = torch.full((10_000,), 0.01)
    p[0] = 0.5
    assert tool.searched_scale(p, tool.even) < 0.02
    p[1:] = 2.0 ** -torch.arange(1.0, 10_000.0).remainder(7)
    assert tool.searched_scale(p, tool.logarithmic) >= 0.5


@pytest.mark.parametrize("masked", [False, True])
def test_probabilities_are_changed_where_torch_multiplies_them(masked: bool) -> None:
    """Unchanged the attention is torch's own; halved it is half of it."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, 5, 8, generator=generator) for _ in range(3))
    mask = torch.randn(2, 1, 5, 5, generator=generator) if masked else None
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = attention(q, k, v, attn_mask=mask)
    for factor in map(torch.tensor, (1.0, 0.5)):
        changing = partial(tool.attention, change=factor.__mul__)
        with InPlace(changing):
            found = attention(q, k, v, attn_mask=mask)
        assert torch.allclose(found, factor * expected, atol=1e-6)


class Attended(torch.nn.Module):
    """An attention as diffusers has them, which gives torch's for one value per token."""

    def set_processor(self) -> None:
        """What an attention of diffusers is known by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, 1, S, D] -> same."""
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


def test_named_attentions_alone_are_changed_and_are_restored() -> None:
    network = torch.nn.ModuleDict({"a": Attended(), "b": Attended()})
    x = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(3))
    expected, keeper = network["b"](x), tool.Keeper()
    with tool.changed(network, {"a": torch.zeros_like}):
        assert not network["a"](x).any()
        assert torch.equal(network["b"](x), expected)
    with tool.changed(network, {"a": keeper}):
        assert torch.allclose(network["a"](x), expected, atol=1e-6)
    probabilities = (x @ x.transpose(-1, -2) * 8**-0.5).softmax(-1)
    assert len(keeper.kept) == tool.KEPT
    assert torch.isin(keeper.kept, probabilities).all()
    assert torch.equal(network["a"](x), expected)


def test_images_are_compared_with_those_of_unchanged_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each quantizer acts while its images are made, none while the float model's are."""
    network = torch.nn.ModuleDict({"a": Attended()})
    x = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(3))
    expected = network["a"](x)
    monkeypatch.setattr(tool, "sample_latents", lambda *_: network["a"](x))

    def scores(drawn: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return drawn, torch.equal(network["a"](x), expected)

    pipeline = SimpleNamespace(transformer=network)
    bench: Any = SimpleNamespace(
        pipeline=pipeline,
        family=None,
        sampling=None,
        drawn=lambda label: network["a"](x),
        scores=scores,
    )
    found = tool.measured(bench)
    assert [*found] == [*tool.QUANTIZERS]
    drawn, restored = zip(*found.values(), strict=True)
    assert all(restored)
    assert all(not torch.equal(y, expected) for y in drawn)
    assert len({tuple(y.flatten().tolist()) for y in drawn}) == len(drawn)


def test_the_table_has_a_row_for_each_quantizer() -> None:
    score = Score(40.126, 0.25, (40.126,))
    assert tool.table({"one": (score, score)}).splitlines()[-1] == (
        "| one | 40.13 ± 0.25 | 40.13 ± 0.25 |"
    )
