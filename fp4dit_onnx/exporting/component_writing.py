"""Writes one component of a bundle: trace without weights, run the passes, stream the weights in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from fp4dit_onnx.bundle.names import codes_of
from fp4dit_onnx.bundle.slots import open_slots
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.streaming import (
    GraphValues,
    LayerNote,
    Quantizer,
    nothing_quantized,
    write_model,
)
from fp4dit_onnx.families import Interface
from fp4dit_onnx.spec.low_rank import LowRank
from fp4dit_onnx.spec.state import LayerLayout, Layout
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.system.resources import Resources

if TYPE_CHECKING:
    from fp4dit_onnx.bundle.skeleton import Traced
    from fp4dit_onnx.network.networks import FakeNetwork
    from fp4dit_onnx.passes.base import PassReport

__all__ = ["TRACING", "Component", "ComponentWriter"]

TRACING = "{}: tracing"
"""Name of the stage, of a component."""
Annotate = Callable[[onnx.ModelProto, Mapping[str, LayerNote]], None]


@dataclass(frozen=True)
class Component:
    """What is to be written.

    Attributes:
        name: of its folder in the bundle.
        network: without weights.
        interface: of the network.
        tensors: where its weights are stored, by their names in the network.
        layers: what is quantized, and how.
        quantizer: gives a quantized layer.
        attention: name -> format of each attention whose q, k and v are quantized.
        half: store what stays in float as float16.
        slots: rank of the LoRA that each of some quantized layers can take at run time.
    """

    name: str
    network: FakeNetwork
    interface: Interface
    tensors: Mapping[str, TensorInfo]
    layers: Mapping[str, LayerLayout] = field(default_factory=dict)
    quantizer: Quantizer = nothing_quantized
    attention: Mapping[str, str] = field(default_factory=dict)
    half: bool = False
    slots: Mapping[str, int] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """What the passes put into the graph."""
        slotted = {
            name: replace(
                self.layers[name], spec=replace(self.layers[name].spec, slot=LowRank(rank))
            )
            for name, rank in self.slots.items()
        }
        return Layout({**self.layers, **slotted}, self.attention)


@dataclass(frozen=True)
class ComponentWriter:
    """Writes components into a bundle.

    Attributes:
        bundle: folder that becomes the bundle.
        work: folder in which a killed export resumes; None where nothing is kept.
        form: ``fused`` or ``qdq``.
        report: progress.
        resources: notes the time.
    """

    bundle: Path
    work: Path | None
    form: str
    report: Reporter
    resources: Resources

    def write(
        self, part: Component, annotate: Annotate = lambda model, notes: None
    ) -> tuple[dict[str, LayerNote], tuple[PassReport, ...]]:
        """Write ``model.onnx`` and its data file into the component's folder.

        Args:
            part: the component.
            annotate: may change the graph once everything is known of its layers.

        Returns:
            What is known of each layer, and what the passes did.

        Raises:
            Fp4DitError: torch cannot trace the network, or a layer is not a linear of its graph.
        """
        model, reports = self._graph(part)
        return self._weights(part, model, annotate), reports

    def trace(self, name: str, network: FakeNetwork, interface: Interface) -> Traced:
        """The graph of a component before any pass, see `traced_once`."""
        from fp4dit_onnx.tracing.trace import traced_once

        with (
            self.resources.stage(TRACING.format(name)),
            self.report.stage(f"tracing {name}", 1) as advance,
        ):
            traced = traced_once(network, interface)
            advance(1)
        return traced

    def _graph(self, part: Component) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
        from fp4dit_onnx.passes.pipeline import quantized_graph, run_passes
        from fp4dit_onnx.passes.store_half import StoreHalf

        traced = self.trace(part.name, part.network, part.interface)
        with (
            self.resources.stage(f"{part.name}: passes"),
            self.report.stage(
                f"rewriting {part.name}", max(1, len(traced.kinds)), "kinds of blocks"
            ) as advance,
        ):
            model, reports = quantized_graph(traced, part.layout, self.form, lambda: advance(1))
            if part.half:
                model, more = run_passes(model, [StoreHalf(frozenset(part.tensors))])
                reports += more
        _check_layers(part, model)
        open_slots(model)
        return model, reports

    def _weights(
        self, part: Component, model: onnx.ModelProto, annotate: Annotate
    ) -> dict[str, LayerNote]:
        folder = self.bundle / part.name
        place = self.work / part.name if self.work else folder
        for needed in (folder, place):
            needed.mkdir(exist_ok=True)
        journal = place / "written.jsonl" if self.work else None
        values = GraphValues(part.tensors, part.layers, part.quantizer)
        with (
            self.resources.stage(f"{part.name}: weights"),
            self.report.stage(
                f"writing {part.name}", len(model.graph.initializer), "tensors"
            ) as advance,
        ):
            notes = write_model(
                model,
                values,
                place / "model.onnx",
                journal=journal,
                annotate=lambda found: annotate(model, found),
                advance=advance,
            )
        return notes

    def collect(self) -> None:
        """Move what is complete from the work folder to the bundle; until then a kill loses nothing."""
        for path in sorted(self.work.glob("*/model.onnx*")) if self.work else ():
            shutil.move(path, self.bundle / path.parent.name / path.name)


def _check_layers(part: Component, model: onnx.ModelProto) -> None:
    held = {tensor.name for tensor in model.graph.initializer}
    absent = [name for name in part.layers if codes_of(name) not in held]
    if absent:
        raise Fp4DitError(
            f"{part.name}: layer {absent[0]} is not a linear of the traced graph, and {len(absent)} "
            f"such in all; leave it in float with --rule '{absent[0]}=none'"
        )
