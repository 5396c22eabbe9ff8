"""The network's guided error on recorded samples of the float sampler's trajectory."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from fp4dit_onnx.calibration.samples import Samples
from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.execution import host
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.state import QuantizedState

__all__ = ["Trajectory", "output_channels"]


def output_channels(network: torch.nn.Module, call: tuple[Any, ...], kwargs: Any) -> torch.Tensor:
    """The network's prediction [B, C, ...] without the variance that some give behind it."""
    latents = call[0] if call else kwargs["hidden_states"]
    output: torch.Tensor = network(*call, **kwargs)[0]
    return output[:, : latents.shape[1]]


class Trajectory:
    """Some of the recorded samples, and what the float network makes of them.

    Args:
        network: in float.
        samples: arguments of the network, with the importance of each.
        guidance: of the sampler.
        chunk: samples that are run at a time.
        count: pairs of samples at most, spread evenly over all.
    """

    def __init__(
        self, network: Network, samples: Samples, guidance: Guided, chunk: int, count: int
    ) -> None:
        self._network, self._samples, self._guidance = network, samples, guidance
        spread = np.linspace(0, samples.pairs - 1, min(samples.pairs, count))
        pairs = torch.from_numpy(spread.round().astype(int))
        self._batches = torch.split(pairs, chunk // 2 or 1)
        self._total = float(samples.weight[pairs].sum())

    @cached_property
    def _right(self) -> list[torch.Tensor]:
        return [self._prediction(batch) for batch in self._batches]

    @property
    def signal(self) -> float:
        """Mean square of the float network's guided prediction, weighted by importance."""
        return self._mean(self._right)

    def error(self, state: QuantizedState) -> float:
        """Mean square of the guided prediction's error under `state`, weighted by importance."""
        right = self._right
        with simulated(self._network.module, state):
            both = zip(self._batches, right, strict=True)
            return self._mean([self._prediction(batch) - exact for batch, exact in both])

    @torch.no_grad()
    def _prediction(self, pairs: torch.Tensor) -> torch.Tensor:
        samples = self._samples
        return output_channels(self._network.module, *samples.take(samples.twins(pairs))).float()

    def _mean(self, predictions: list[torch.Tensor]) -> float:
        both = zip(self._batches, predictions, strict=True)
        return sum(self._weighted(batch, each) for batch, each in both) / self._total

    def _weighted(self, pairs: torch.Tensor, prediction: torch.Tensor) -> float:
        guided = host(self._guidance.combined(prediction).flatten(1).square().mean(dim=1))
        return float((self._samples.weight[pairs] * guided).sum())
