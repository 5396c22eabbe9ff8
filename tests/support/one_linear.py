"""A unit of calibration that is one linear with two outlier channels, and what it receives."""

from __future__ import annotations

from pathlib import Path

import torch

from fp4dit_onnx.calibration.evidence import FloatUnit, Objective, Part
from fp4dit_onnx.calibration.samples import Array, Tape
from fp4dit_onnx.families.guidance import Guidance, Guided
from fp4dit_onnx.network.execution import HOST, Execution

__all__ = ["NAME", "K", "N", "one_linear"]

NAME, SAMPLES, TOKENS, K, N = "fc", 16, 6, 16, 32


class Parts:
    """Of a network that is the linear."""

    execution: Execution = HOST

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(K, N)
        self.linear.weight.data[[3, 20]] *= 12
        self.linear.requires_grad_(requires_grad=False)

    def materialize(self, name: str, execution: Execution | None = None) -> torch.nn.Module:
        """The linear."""
        return self.linear

    def tensor(self, name: str) -> torch.Tensor:
        """Of the linear."""
        return self.linear.get_parameter(name.removeprefix(f"{NAME}."))


def one_linear(folder: Path) -> tuple[FloatUnit, torch.Tensor]:
    """The unit, what it receives and should give kept in `folder`; and its inputs."""
    parts, x = Parts(), torch.randn(SAMPLES, TOKENS, K)
    (folder / "arguments").mkdir()
    tape = Tape(folder / "arguments", SAMPLES)
    tape.write(0, ((x,), {}), SAMPLES)
    target = Array(folder / "target.npy")
    target.create(SAMPLES, parts.linear(x))
    target.write(0, parts.linear(x))
    samples = tape.finish(torch.ones(SAMPLES), paired=False)
    guided = Guided(Guidance(), 1.0)
    return FloatUnit(Part.of(NAME, parts), Objective(samples, {0: target}, guided, 1.0)), x
