"""From a checkpoint to a bundle: calibrate in torch, trace to ONNX, run the passes, write.

Methods that need no data read the weights tensor by tensor; the network is never in memory.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from fp4dit_onnx.bundle.annotation import annotate as annotate_graph
from fp4dit_onnx.bundle.bundle import new_bundle, write_manifest
from fp4dit_onnx.bundle.manifest import Encoder, Layer, Manifest
from fp4dit_onnx.calibration.methods import use_of
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.calibrating import calibrated, case_errors, provenance_of
from fp4dit_onnx.exporting.component_writing import Component, ComponentWriter
from fp4dit_onnx.exporting.components import copy_settings, write_vae
from fp4dit_onnx.exporting.evidence import evidence_of_export
from fp4dit_onnx.exporting.manifest_of import manifest_of
from fp4dit_onnx.exporting.plan import ExportRequest, Plan, format_row, plan, work_folder
from fp4dit_onnx.exporting.recipe_files import save_recipe
from fp4dit_onnx.exporting.streaming import LayerNote, Quantizer, WeightNote, from_weights
from fp4dit_onnx.exporting.text_encoders import write_encoder
from fp4dit_onnx.files import plain
from fp4dit_onnx.report.writing import report_of_export
from fp4dit_onnx.spec.state import WORK_MANIFEST, LayerLayout, QuantizedState, save_state
from fp4dit_onnx.system.locking import locked
from fp4dit_onnx.system.progress import Reporter, Reporters, SilentReporter
from fp4dit_onnx.system.resources import Resources, StageTimes
from fp4dit_onnx.system.versions import versions
from fp4dit_onnx.targets import convert_in_place, target_by_name

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.work import Work
    from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
    from fp4dit_onnx.network.networks import FakeNetwork
    from fp4dit_onnx.passes.base import PassReport

__all__ = ["ExportRequest", "ExportResult", "Plan", "export", "plan"]

DISK_MARGIN = 64 * 2**20
"""Bytes that a bundle may take beyond its large tensors: graphs, tokenizers, settings."""


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        bundle: its folder.
        manifest: its quantization.json.
        seconds: wall time.
    """

    bundle: Path
    manifest: Manifest
    seconds: float


def export(request: ExportRequest, reporter: Reporter | None = None) -> ExportResult:
    """Carry out a request; the bundle appears whole or not at all.

    Raises:
        UsageError: see `plan`; also an output folder that is not empty, or a disk that is full.
    """
    start = time.monotonic()
    report = reporter or SilentReporter()
    planned = plan(request)
    request = planned.request
    for note in planned.notes:
        report.note(note)
    if planned.measured and not planned.trains:
        report.note(
            f"method {request.method} needs no calibration data; the float model is run anyway, to "
            "measure errors and for the report; --no-measure skips this"
        )
    work = work_folder(request)
    with locked(work, report.note):
        with new_bundle(
            request.output,
            overwrite=request.overwrite,
            source=planned.checkpoint.folder,
            needed=_needed(planned, work),
            note=report.note,
        ) as folder:
            save_recipe(request, planned.method)
            if request.restart:
                _forget(work)
            manifest = _Export(request, planned, folder, report).write()
        _forget(work)
    return ExportResult(request.output, manifest, time.monotonic() - start)


def _needed(planned: Plan, work: Path) -> int:
    """Bytes that the bundle will take beyond the weights that an export of this request wrote before."""
    written = sum(p.stat().st_size for p in work.rglob("*.data")) if work.is_dir() else 0
    return max(0, planned.bundle_bytes + DISK_MARGIN - written)


def _forget(work: Path) -> None:
    """Delete a work folder; anything else is left alone, whatever the user called it."""
    if (work / WORK_MANIFEST).is_file():
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Weights:
    """Where the values of the transformer's layers come from.

    Attributes:
        layers: what is quantized, and how.
        quantizer: gives a layer.
        outputs: what the manifest says of each layer's inputs and output where they were measured.
        measured: what the manifest says of the whole model's error.
        state: all layers at once, where they are in memory or asked for.
    """

    layers: Mapping[str, LayerLayout]
    quantizer: Quantizer
    outputs: Mapping[str, Mapping[str, Any]]
    measured: Mapping[str, Any]
    state: QuantizedState | None = None


class _Export:
    """One export, into a folder that becomes the bundle."""

    def __init__(
        self, request: ExportRequest, planned: Plan, folder: Path, report: Reporter
    ) -> None:
        self._request, self._planned, self._folder = request, planned, folder
        self._report, self._resources = report, Resources()

    def write(self) -> Manifest:
        """All files of the bundle; returns its manifest."""
        from fp4dit_onnx.network.networks import fake_transformer

        planned = self._planned
        checkpoint = planned.checkpoint
        self._resources.imported()
        network = fake_transformer(planned.family.transformer, checkpoint.transformer_config)
        tensors = network.stored_under(checkpoint.tensors)
        work = None if planned.measured else self._work()
        writer = ComponentWriter(
            self._folder,
            work.folder if work else None,
            self._request.resolved_form,
            self._report,
            self._resources,
        )
        try:
            encoders = None
            if self._request.time is not None:  # what is done by then needs no prediction
                writer.trace("transformer", network, planned.family.interface(network.config))
                encoders = self._write_others(writer)
            with self._resources.stage("calibration"):
                weights = self._calibrated() if planned.measured else self._streamed(tensors)
            rows, reports = self._write_transformer(writer, network, tensors, weights)
            if encoders is None:
                encoders = self._write_others(writer)
            writer.collect()
        except Fp4DitError:
            if work is not None:  # the same command would fail again
                work.remove()
            raise
        manifest = replace(manifest_of(self._planned, rows, reports), text_encoders=encoders)
        copy_settings(checkpoint, self._folder, planned.sampling.steps)
        if self._request.state is not None and weights.state is not None:
            save_state(weights.state, self._request.state)
        manifest = replace(manifest, **weights.measured, resources=self._resources.used())
        written = write_manifest(self._folder, manifest)
        evidence = evidence_of_export(self._folder, self._request, planned, self._report)
        target = target_by_name(self._request.resolved_target)
        if target.rewrite is not None:
            written = convert_in_place(self._folder, written, target, self._report)
        if not self._request.report:
            return written
        return report_of_export(self._folder, evidence, self._report)

    def _write_others(self, writer: ComponentWriter) -> dict[str, Encoder]:
        """The text encoders, of which the manifest tells, and the VAE."""
        planned = self._planned
        parts = planned.checkpoint.components
        hidden = {text.encoder: text.hidden for text in planned.family.texts}
        encoders = {
            name: write_encoder(
                parts[name], recipe, use_of(planned.method.range), writer, hidden.get(name, ())
            )
            for name, recipe in planned.encoders.items()
        }
        if "vae" in parts:
            write_vae(parts["vae"], writer)
        return encoders

    def _streamed(self, tensors: Mapping[str, TensorInfo]) -> _Weights:
        """Layers rounded to nearest from the checkpoint's own tensors, one at a time."""
        planned = self._planned
        layers = {
            name: LayerLayout(name, spec, *tensors[f"{name}.weight"].shape)
            for name, spec in planned.specs.items()
        }
        quantizer = from_weights(tensors, layers, planned.method.stages)
        state = None
        if self._request.state is not None:
            made = {name: quantizer(name) for name in layers}
            quantizer, quantized = made.__getitem__, {name: own for name, (own, _) in made.items()}
            state = QuantizedState(quantized, provenance_of(planned), planned.attention)
        if planned.method.changes_specs:
            layers = {name: quantizer(name)[0].layout for name in layers}
        return _Weights(layers, quantizer, {}, {"model_sqnr_db": None, "case_sqnr_db": ()}, state)

    def _calibrated(self) -> _Weights:
        """Layers as calibration finds them, while it runs the float pipeline."""
        from fp4dit_onnx.calibration.sampling import load_pipeline
        from fp4dit_onnx.network.execution import execution_of
        from fp4dit_onnx.network.stored import opened

        planned, budget = self._planned, self._request.max_ram
        checkpoint, part = planned.checkpoint, planned.checkpoint.components["transformer"]
        assert planned.calibrated is not None
        where = execution_of(**vars(planned.calibrated), limit=self._request.max_vram or math.inf)
        told = Reporters([self._report, StageTimes(self._resources)])
        with where.within_memory():
            with told.stage("loading the model", 1) as advance:
                interface = planned.family.interface(checkpoint.transformer_config)
                network = opened(part, interface, budget, where)
                source = checkpoint
                if self._request.components != "all":  # sampling takes the whole pipeline
                    source = open_checkpoint(self._request.model, lora=self._request.lora)
                pipeline = load_pipeline(source, network, budget, calibrates=True, execution=where)
                advance(1)
            result = calibrated(
                self._request, planned, network, pipeline, source, told, self._resources
            )
            self._planned = planned = replace(planned, method=result.method)
            state = result.state
            measured = {
                "model_sqnr_db": result.model_sqnr_db,
                "choices": result.compared,
                "budget": result.spent,
                "case_sqnr_db": tuple(case_errors(planned, network, state)),
            }
        notes = {
            name: WeightNote(error.weight, error.weight_kurtosis)
            for name, error in result.errors.items()
        }
        return _Weights(
            layers=state.layout.layers,
            quantizer=lambda name: (state.layers[name], notes[name]),
            outputs={
                name: {"output_sqnr_db": error.output, "outliers": error.outliers}
                for name, error in result.errors.items()
            },
            measured=measured,
            state=state,
        )

    def _write_transformer(
        self,
        writer: ComponentWriter,
        network: FakeNetwork,
        tensors: Mapping[str, TensorInfo],
        weights: _Weights,
    ) -> tuple[list[Layer], tuple[PassReport, ...]]:
        """The transformer's files; returns a row for each quantized layer, and the passes' reports."""
        planned = self._planned
        rows: list[Layer] = []

        def annotate(model: onnx.ModelProto, notes: Mapping[str, LayerNote]) -> None:
            for row in planned.layers:
                name = row.name
                rows.append(
                    replace(
                        row,
                        **format_row(weights.layers[name].spec),
                        **asdict(notes[name]),
                        **weights.outputs.get(name, {}),
                    )
                )
            annotate_graph(model, {row.name: row for row in rows}, planned.summary)

        component = Component(
            name="transformer",
            network=network,
            interface=planned.family.interface(network.config),
            tensors=tensors,
            layers=weights.layers,
            quantizer=weights.quantizer,
            attention=planned.attention,
            slots=planned.slots,
        )
        _, reports = writer.write(component, annotate)
        return rows, reports

    def _work(self) -> Work:
        """The folder in which a killed export resumes."""
        from fp4dit_onnx.calibration.work import Work

        planned = self._planned
        parts = planned.checkpoint.components.values()
        infos = [info for part in parts for info in part.tensors.values()]
        added = [delta.down for info in infos for delta in info.low_rank]
        files = sorted({info.file for info in (*infos, *added)})
        return Work(
            work_folder(self._request),
            {
                "model": {
                    f"{p.parent.name}/{p.name}": [p.stat().st_size, p.stat().st_mtime_ns]
                    for p in files
                },
                "lora": list(planned.checkpoint.lora),
                "config": dict(planned.checkpoint.transformer_config),
                "recipe": plain(planned.recipe),
                "method": planned.method.to_json(),
                "encoders": plain(planned.encoders),
                "form": self._request.resolved_form,
                "versions": versions(),
            },
        )
