"""Text encodings of all prompts, computed before sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from random_pipeline import make as make_pipeline

pytest.importorskip("diffusers")

import torch
from torch.utils import _pytree as pytree

from fp4dit_onnx.calibration.record import first_call
from fp4dit_onnx.calibration.sampling import BATCH, load_pipeline, pipeline_sampler
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.families import family_of
from fp4dit_onnx.runtime.sampling import Sampling

COUNT = BATCH + 2
PROMPTS = [f"{'a red apple ' * (i // 2)}on a table" for i in range(COUNT)]  # each text twice
MODELS = ("pixart-alpha-256", "hunyuan-dit-1.1", "sd3-medium", "flux-dev")


def first_calls(sampler: Any, network: torch.nn.Module) -> list[torch.Tensor]:
    """Tensors of the first call of the second batch."""

    def sample(on_call: Any, first: int) -> object:
        return sampler.sample(on_call, 1)

    class Second:
        """The sampler from its second batch on."""

    second = Second()
    second.sample = sample  # type: ignore[attr-defined]
    found = pytree.tree_leaves(first_call(network, second))  # type: ignore[arg-type]
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_encoded_once_as_the_pipeline_would(name: str, tmp_path: Path) -> None:
    make_pipeline(name, tmp_path / name, twin=True)
    checkpoint = open_checkpoint(tmp_path / name)
    pipeline = load_pipeline(checkpoint, calibrates=True)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    given = (pipeline, family, PROMPTS, list(range(COUNT)), Sampling(2, 3.0, 64, 64, 16))
    without = first_calls(pipeline_sampler(*given), pipeline.transformer)
    assert float(sum(p.abs().sum() for p in pipeline.vae.parameters())) == 0  # not read
    encoders = [m for n, m in pipeline.components.items() if n.startswith("text_encoder") and m]
    rows: list[list[torch.Tensor]] = [[] for _ in encoders]
    for encoder, seen in zip(encoders, rows, strict=True):
        for module in encoder.modules():
            if getattr(module, "num_embeddings", 0) == encoder.config.vocab_size:
                module.register_forward_pre_hook(
                    lambda module, args, seen=seen: seen.extend(args[0])
                )
    sampler = pipeline_sampler(*given)
    sampler.prepare()
    # A text that comes twice runs once for the prompts, and once as the empty one of guidance.
    for seen in rows:
        distinct = {tuple(row.tolist()) for row in seen}
        assert len(seen) == len(distinct) == COUNT // 2 + sampler.paired
    assert not any(n.startswith("text_encoder") and m for n, m in pipeline.components.items())
    ahead = first_calls(sampler, pipeline.transformer)
    assert len(ahead) == len(without)
    for one, other in zip(ahead, without, strict=True):
        # A batch only changes the order of float32 sums; the bound is that of test_sampling, where a
        # path through the network has more roundings.
        bound = 2.0**11 * 2.0**-24 * max(float(other.abs().max()), 1.0)
        assert float((one.double() - other.double()).abs().max()) <= bound
