"""One denoising step of the float transformer, in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.benchmark.step import StepCase
from fp4dit_onnx.calibration.parity import network_runner
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.families import family_of
from fp4dit_onnx.network.stored import loaded
from fp4dit_onnx.system.silence import quiet

__all__ = ["float_step", "import_networks"]


def import_networks() -> None:
    """Import what `float_step` loads networks with."""
    with quiet():
        import diffusers.models.transformers  # noqa: F401
        import transformers  # noqa: F401


def float_step(
    pipeline: Path, model: Path, batch: int, tokens: int, threads: int
) -> Callable[[], npt.NDArray[np.float32]]:
    """The float transformer on the inputs that the bundle's `model` declares, in float32.

    Args:
        pipeline: folder of the float pipeline.
        model: the bundle's transformer.
        batch: rows of a step.
        tokens: of the text.
        threads: of torch, from now on in the whole process.

    Raises:
        CheckpointError: the folder is not a pipeline of a known family.
    """
    checkpoint = open_checkpoint(pipeline, only=("transformer",))
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    feed = StepCase(model, None, batch, tokens).feed
    torch.set_num_threads(threads)
    network = loaded(checkpoint.components["transformer"])
    run = network_runner(network, family)
    return lambda: run(feed)
