"""Images of the float pipeline, which bundles are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration import sampling
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.evaluation import picturing
from fp4dit_onnx.runtime import Sampling

SAMPLING = Sampling(steps=2, guidance=3.0, height=64, width=64, max_sequence_length=16)


def test_float_images_are_those_of_the_seed(demo_folder: Path) -> None:
    first, second = picturing.float_images(demo_folder, ["chipmunk", "bat"], [3, 4], SAMPLING)
    (alone,) = picturing.float_images(demo_folder, ["bat"], [4], SAMPLING)
    assert first.size == (64, 64)
    a, b = np.asarray(second, np.int16), np.asarray(alone, np.int16)
    assert np.abs(a - b).max() <= 1  # a value next to a half may be rounded to either side
    assert np.abs(a - np.asarray(first, np.int16)).max() > 10


def test_float_images_refuse_a_broken_model(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.full((1, 4, 8, 8), torch.nan)
    monkeypatch.setattr(sampling, "sample_latents", lambda *_, **__: broken)
    with pytest.raises(CheckpointError, match="not finite in float32"):
        picturing.float_images(demo_folder, ["bat"], [0], SAMPLING)
