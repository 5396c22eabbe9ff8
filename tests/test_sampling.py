"""Sampling of diffusers' pipelines: what is handed on, and the embedded demo."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration.sampling import BATCH, load_pipeline, network_calls, sample_latents
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.numbers.compare import same_bits, within
from fp4dit_onnx.runtime.pipeline import Sampling, initial_latents

Array = npt.NDArray[Any]


def assert_same(wanted: Array, found: Any) -> None:
    same = same_bits(wanted, found.numpy())
    assert same.ok, same.detail


def hooks(network: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules())


class FakePipeline:
    """Records its calls; the latents it returns are the noise plus the prompt's length."""

    def __init__(self) -> None:
        self.transformer = torch.nn.Identity()
        self.transformer.config = SimpleNamespace(sample_size=4, in_channels=3)
        self.vae_scale_factor = 8
        self.scheduler = SimpleNamespace(step=lambda latents: (latents,))
        self.batches: list[list[str]] = []
        self.options: dict[str, Any] = {}

    def __call__(self, prompt: list[str], latents: Any, **options: Any) -> None:
        """As diffusers' pipelines are called."""
        self.batches.append(prompt)
        self.options = options
        lengths = torch.tensor([len(p) for p in prompt]).reshape(-1, 1, 1, 1)
        for _ in range(options["num_inference_steps"]):
            self.transformer(latents)
            self.scheduler.step(latents + lengths)
        if "fail" in prompt:
            raise RuntimeError("stopped")


FAMILY = family_of("PixArtAlphaPipeline", "PixArtTransformer2DModel")
TWO_STEPS = Sampling(steps=2, guidance=3.0, height=32, width=48, max_sequence_length=17)


def test_sample_latents_hands_on_prompts_seeds_and_options() -> None:
    pipeline = FakePipeline()
    prompts = ["x" * i for i in range(BATCH + 3)]
    seeds = list(range(100, 100 + len(prompts)))
    calls: list[None] = []
    found = sample_latents(pipeline, FAMILY, prompts, seeds, TWO_STEPS, lambda: calls.append(None))
    assert pipeline.batches == [prompts[:BATCH], prompts[BATCH:]]
    wanted = np.stack(
        [initial_latents(seed, (3, 4, 6)) + np.float32(i) for i, seed in enumerate(seeds)]
    )
    assert_same(wanted, found)
    assert len(calls) == network_calls(len(prompts), 2) == 4
    assert hooks(pipeline.transformer) == 0
    assert pipeline.options == {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": 32,
        "width": 48,
        "max_sequence_length": 17,
        "output_type": "latent",
        **FAMILY.pipeline_options,
    }


def test_sample_latents_removes_its_hook_after_an_exception() -> None:
    pipeline = FakePipeline()
    with pytest.raises(RuntimeError, match="stopped"):
        sample_latents(pipeline, FAMILY, ["fail"], [0], TWO_STEPS)
    assert hooks(pipeline.transformer) == 0


@pytest.mark.parametrize(("prompts", "calls"), [(0, 0), (1, 5), (BATCH, 5), (BATCH + 1, 10)])
def test_network_calls(prompts: int, calls: int) -> None:
    assert network_calls(prompts, 5) == calls


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> tuple[Any, Family, Sampling]:
    checkpoint = open_checkpoint(demo_folder)
    pipeline = load_pipeline(checkpoint)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    pixels = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    return pipeline, family, Sampling(2, 3.0, pixels, pixels, 16)


def test_load_pipeline(demo: tuple[Any, Family, Sampling]) -> None:
    parameters = [*demo[0].transformer.parameters(), *demo[0].text_encoder.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)
    assert not demo[0].transformer.training


def test_sample_latents_of_the_demo(demo: tuple[Any, Family, Sampling]) -> None:
    pipeline, family, sampling = demo
    prompts, seeds = ["a red circle", "a large blue square", "a green triangle"], [3, 1, 2]
    batch = sample_latents(pipeline, family, prompts, seeds, sampling)
    size = pipeline.transformer.config.sample_size
    assert tuple(batch.shape) == (3, pipeline.transformer.config.in_channels, size, size)
    assert bool(torch.isfinite(batch).all())
    assert torch.equal(batch, sample_latents(pipeline, family, prompts, seeds, sampling))

    # A batch only changes the order of float32 sums. Fewer than 2^12 roundings lie on a path through
    # one operator (the longest sum has 768 terms) and fewer than 2^10 operators on one through two
    # steps: fewer than 2^22 roundings of 2^-24 each, which as independent errors add up to their square
    # root (Higham and Mary 2019, A new approach to probabilistic rounding error analysis).
    bound = np.asarray(2.0**11 * 2.0**-24 * float(batch.abs().max()))
    (alone,) = sample_latents(pipeline, family, prompts[1:2], seeds[1:2], sampling).numpy()
    close = within(batch[1].numpy(), alone, bound)
    assert close.ok, close.detail
    others = sample_latents(pipeline, family, prompts[:2], [seeds[1], seeds[0]], sampling)
    for other in others.numpy():  # another prompt, another seed
        assert not within(alone, other, bound).ok
