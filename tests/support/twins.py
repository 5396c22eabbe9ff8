"""Small transformers with random weights, of every family, and a call of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from random_pipeline import make as make_pipeline

from fp4dit_onnx.calibration.record import part_of
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.exporting.plan import ExportRequest, Plan, plan
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.network.network import Call, Network
from fp4dit_onnx.network.networks import EXAMPLE_SIZES, example_inputs, fake_transformer
from fp4dit_onnx.network.positions import arguments_of
from fp4dit_onnx.network.stored import loaded
from fp4dit_onnx.network.streaming import StoredTensors, streamed
from fp4dit_onnx.network.topology import Topology, with_rows

__all__ = ["BATCH", "Planned", "Twin", "make_twin", "planned_twins"]

Planned = Callable[[str], Plan]
"""By the name of an official model."""

BATCH = EXAMPLE_SIZES["batch"]


@dataclass(frozen=True)
class Twin:
    """A small transformer with random weights, in memory and streamed, and a call of it."""

    family: Family
    network: Any
    streamed: Network
    call: Call

    @property
    def topology(self) -> Topology:
        """Of calls of a sample."""
        one, two = (self.streamed.topology(self.of_samples(n), n) for n in (1, 2))
        return with_rows(one, two)

    def of_samples(self, count: int) -> Call:
        """A call of the first sample, `count` times."""
        tables = self.family.interface(self.network.config).tables
        return part_of(self.call, torch.zeros(count, dtype=torch.int64), tables)  # type: ignore[arg-type]


def make_twin(name: str, folder: Path) -> Twin:
    """The twin of an official model's transformer, in the new folder `folder`."""
    make_pipeline(name, folder, twin=True, components=("transformer",))
    checkpoint = open_checkpoint(folder, only=("transformer",))
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    fake = fake_transformer(family.transformer, checkpoint.transformer_config)
    interface = family.interface(fake.config)
    torch.manual_seed(1)
    inputs = example_inputs(interface, fake.config)
    for spec in interface.inputs:
        value = inputs[spec.name]
        if value.is_floating_point():
            inputs[spec.name] = torch.rand_like(value)
        elif spec.values is not None:
            inputs[spec.name] = torch.zeros_like(value)
    if family.name in ("DiT", "AuraFlow"):  # square images; stored positions end at 16
        inputs["hidden_states"] = inputs["hidden_states"][..., :16, :16].contiguous()
    read = StoredTensors(fake.stored_under(checkpoint.tensors))
    part = checkpoint.components["transformer"]
    network = streamed(fake, interface, read)
    return Twin(family, loaded(part), network, ((), arguments_of(interface, inputs)))


def planned_twins(folder: Path) -> Planned:
    """Makes the twin of an official model, each once, and plans two steps of two small images."""

    @cache
    def made(name: str) -> Plan:
        make_pipeline(name, folder / name, twin=True)
        request = ExportRequest(
            model=folder / name, output=folder / "out", steps=2, calibration_prompts=2
        )
        found = plan(request)
        return replace(found, sampling=replace(found.sampling, height=64, width=64))

    return made
