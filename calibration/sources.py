"""The float sampler straight from files: a value that other machines can take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.calibration.record import Sampler
from fp4dit_onnx.calibration.sampling import load_pipeline, pipeline_sampler
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
from fp4dit_onnx.families import family_of
from fp4dit_onnx.network.execution import Execution
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.stored import opened, rooted
from fp4dit_onnx.runtime.sampling import Sampling

__all__ = ["StoredSampler"]


@dataclass(frozen=True)
class StoredSampler:
    """A `batches.Source`; fields as `pipeline_sampler` has them.

    Attributes:
        checkpoint: of the pipeline.
        prompts: P texts.
        seeds: P seeds.
        sampling: steps, guidance, size and text length.
        execution: where it runs, and in what precision.
        budget: bytes that the network may take in memory, see `opened`.
        kept: file of the prompts' encodings, written before.
        known: latents of images.
    """

    checkpoint: Checkpoint = field(compare=False)
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    execution: Execution
    budget: float
    kept: Path
    known: npt.NDArray[np.float32] | None = field(compare=False)

    def __post_init__(self) -> None:
        """Other machines have other working directories."""
        parts = {name: rooted(part) for name, part in self.checkpoint.components.items()}
        folder = self.checkpoint.folder.absolute()
        there = replace(self.checkpoint, folder=folder, components=parts)
        object.__setattr__(self, "checkpoint", there)
        object.__setattr__(self, "kept", self.kept.absolute())

    def opened(self) -> tuple[Network, Sampler]:
        """See `batches.Source`; raises as `load_pipeline`."""
        return _opened(self)


@lru_cache(maxsize=1)
def _opened(given: StoredSampler) -> tuple[Network, Sampler]:
    checkpoint, execution = given.checkpoint, given.execution
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    interface = family.interface(checkpoint.transformer_config)
    network = opened(checkpoint.components["transformer"], interface, given.budget, execution)
    pipeline = load_pipeline(
        checkpoint, network, given.budget, calibrates=True, execution=execution
    )
    sampler = pipeline_sampler(
        pipeline,
        family,
        given.prompts,
        given.seeds,
        given.sampling,
        execution,
        known=given.known,
        kept=given.kept,
    )
    sampler.prepare()
    return network, sampler
