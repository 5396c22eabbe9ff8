"""From a checkpoint to a bundle: calibrate in torch, trace to ONNX, run the passes, write."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from fp4dit_onnx.bundle import FORMAT_VERSION, new_bundle, write_manifest
from fp4dit_onnx.cases import CASES, case_inputs
from fp4dit_onnx.compare import sqnr_db
from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.layers import totals
from fp4dit_onnx.methods import AdaRound
from fp4dit_onnx.model_file import save_model
from fp4dit_onnx.plan import WORK_MANIFEST, ExportRequest, Plan, plan, work_folder
from fp4dit_onnx.progress import Reporter, SilentReporter
from fp4dit_onnx.state import QuantizedState, save_state

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.run import Calibration
    from fp4dit_onnx.passes.base import PassReport

__all__ = ["ExportRequest", "ExportResult", "Plan", "export", "plan"]

LARGEST_MODEL = 2**31 - 2**26
TORCH_PACKAGES = ("torch", "diffusers", "transformers", "onnx_graphsurgeon", "onnxscript")


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        bundle: its folder.
        manifest: contents of its quantization.json.
        seconds: wall time.
    """

    bundle: Path
    manifest: Mapping[str, Any]
    seconds: float


def export(request: ExportRequest, reporter: Reporter | None = None) -> ExportResult:
    """Carry out a request; the bundle appears whole or not at all.

    Raises:
        MissingExtraError: the packages of the extra ``export`` are not installed.
        UsageError: see `plan`; also an output folder that is not empty.
    """
    start = time.monotonic()
    report = reporter or SilentReporter()
    for package in TORCH_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "export")
    planned = plan(request)
    _check_size(planned)
    if request.restart:
        _forget(work_folder(request))
    with new_bundle(
        request.output, overwrite=request.overwrite, source=planned.checkpoint.folder
    ) as folder:
        manifest = _write_bundle(request, planned, folder, report)
    if _keeps_work(planned):
        _forget(work_folder(request))
    return ExportResult(request.output, manifest, time.monotonic() - start)


def _keeps_work(planned: Plan) -> bool:
    """Whether calibration needs a work folder: it trains, or chooses formats."""
    return bool(planned.recipe.search) or isinstance(planned.method.rounding, AdaRound)


def _forget(work: Path) -> None:
    """Delete a work folder; anything else is left alone, whatever the user called it."""
    if (work / WORK_MANIFEST).is_file():
        shutil.rmtree(work, ignore_errors=True)


def _check_size(planned: Plan) -> None:
    """The traced graph holds the float weights in one protobuf message, which ends at 2 GiB."""
    size = planned.totals["transformer_bytes_float32"]
    if size >= LARGEST_MODEL:
        raise UsageError(
            f"the transformer of {planned.checkpoint.folder} takes {size / 2**30:.1f} GiB in "
            f"float32: this version exports up to {LARGEST_MODEL / 2**30:.1f} GiB; --dry-run works"
        )


def _write_bundle(
    request: ExportRequest, planned: Plan, folder: Path, report: Reporter
) -> dict[str, Any]:
    from fp4dit_onnx import components
    from fp4dit_onnx.calibration.sampling import load_pipeline

    checkpoint = planned.checkpoint
    with report.stage("loading the model", 1) as advance:
        pipeline = load_pipeline(checkpoint)
        advance(1)
    result = _calibrate(request, planned, pipeline, report)
    state = result.state
    model, reports = _quantized_graph(request, planned, pipeline.transformer, state, report)
    rows = [
        {
            **row,
            "weight_format": state.layers[row["name"]].spec.weight,
            "bytes": state.layers[row["name"]].nbytes,
            "weight_sqnr_db": result.errors[row["name"]].weight,
            "output_sqnr_db": result.errors[row["name"]].output,
        }
        for row in planned.layers
    ]
    _annotate(model, rows)
    with report.stage("writing the bundle", 4) as advance:
        (folder / "transformer").mkdir()
        save_model(model, folder / "transformer" / "model.onnx")
        advance(1)
        components.export_text_encoder(checkpoint.folder, folder / "text_encoder")
        advance(1)
        components.export_vae_decoder(checkpoint.folder, folder / "vae_decoder")
        advance(1)
        components.copy_settings(checkpoint.folder, folder)
        if request.state is not None:
            save_state(state, request.state)
        advance(1)
    measured = {
        "model_sqnr_db": result.model_sqnr_db,
        "case_sqnr_db": _case_errors(planned, pipeline.transformer, state),
    }
    return write_manifest(folder, {**_manifest(planned, rows, reports), **measured})


def _calibrate(
    request: ExportRequest, planned: Plan, pipeline: Any, report: Reporter
) -> Calibration:
    from fp4dit_onnx.calibration.run import calibrate
    from fp4dit_onnx.calibration.sampling import pipeline_sampler
    from fp4dit_onnx.calibration.work import Work

    seeds = [request.seed + i for i in range(len(planned.prompts))]
    candidates = planned.recipe.candidates(tuple(planned.specs))
    work = None
    if _keeps_work(planned):
        fingerprint = _fingerprint(request, planned, pipeline.transformer)
        work = Work(work_folder(request), fingerprint)
    try:
        return calibrate(
            pipeline.transformer,
            planned.specs,
            planned.method,
            pipeline_sampler(pipeline, planned.family, planned.prompts, seeds, planned.sampling),
            seed=request.seed,
            provenance={
                "recipe": planned.recipe.to_json(),
                "method": asdict(planned.method),
                "model": planned.checkpoint.folder.name,
            },
            reporter=report,
            attention=planned.attention,
            candidates=candidates,
            work=work,
            max_ram=request.max_ram,
        )
    except BaseException:
        if work is not None and not work.recorded:
            work.remove()
        raise


def _fingerprint(request: ExportRequest, planned: Plan, network: Any) -> dict[str, Any]:
    """All that a calibration depends on."""
    from fp4dit_onnx.calibration.work import model_digest

    prompts = hashlib.sha256("\n".join(planned.prompts).encode()).hexdigest()
    return {
        "model": {"name": planned.checkpoint.folder.name, "sha256": model_digest(network)},
        "data": {"prompts": len(planned.prompts), "sha256": prompts, "seed": request.seed},
        "sampling": asdict(planned.sampling),
        "recipe": planned.recipe.to_json(),
        "method": asdict(planned.method),
        "versions": {p: importlib.metadata.version(p) for p in ("fp4dit-onnx", "torch")},
    }


def _case_errors(planned: Plan, network: Any, state: QuantizedState) -> list[float]:
    """Simulation against float on the inputs that verification uses, in dB."""
    from fp4dit_onnx.calibration.parity import network_runner
    from fp4dit_onnx.calibration.simulate import simulated

    config = planned.checkpoint.transformer_config
    feeds = [case_inputs(planned.family, config, i) for i in range(len(CASES))]
    run = network_runner(network, planned.family)
    signals = [run(feed) for feed in feeds]
    with simulated(network, state):
        return [sqnr_db(s, run(feed)) for s, feed in zip(signals, feeds, strict=True)]


def _quantized_graph(
    request: ExportRequest, planned: Plan, network: Any, state: QuantizedState, report: Reporter
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    from fp4dit_onnx.passes.pipeline import float_passes, quantize_passes, run_passes
    from fp4dit_onnx.torch_export import export_float

    with report.stage("tracing the transformer", 1) as advance:
        model = export_float(network, planned.family, planned.checkpoint.transformer_config)
        advance(1)
    parameters = frozenset(t.name for t in model.graph.initializer)
    passes = (*float_passes(parameters), *quantize_passes(state, parameters, request.form))
    with report.stage("rewriting the graph", len(passes)) as advance:
        model, reports = run_passes(model, passes, lambda: advance(1))
    return model, reports


def _annotate(model: onnx.ModelProto, rows: list[dict[str, Any]]) -> None:
    """Give every quantized layer's node its measured errors, for viewers to show."""
    by_name = {row["name"]: row for row in rows}
    for node in model.graph.node:
        row = by_name.get(node.name)
        if row is None:
            continue
        for key in ("weight_sqnr_db", "output_sqnr_db"):
            node.metadata_props.add(key=f"fp4dit.{key}", value=f"{row[key]:.2f}")
    model.producer_name = "fp4dit-onnx"
    model.producer_version = importlib.metadata.version("fp4dit-onnx")


def _manifest(
    planned: Plan, rows: list[dict[str, Any]], reports: tuple[PassReport, ...]
) -> dict[str, Any]:
    packages = ("fp4dit-onnx", "numpy", "onnx", "onnx-graphsurgeon", "onnxscript", "torch")
    versions = {p: importlib.metadata.version(p) for p in (*packages, "diffusers", "transformers")}
    checkpoint = planned.checkpoint
    return {
        "format_version": FORMAT_VERSION,
        "recipe": planned.recipe.to_json(),
        "method": asdict(planned.method),
        "sampling": asdict(planned.sampling),
        "layers": rows,
        "totals": totals(checkpoint, rows),
        "skipped": list(planned.skipped),
        "attention": dict(planned.attention),
        "passes": [r.to_json() for r in reports],
        "versions": {"python": platform.python_version(), **versions},
        "source": {
            "name": checkpoint.folder.name,
            "pipeline": checkpoint.pipeline_class,
            "transformer": checkpoint.transformer_class,
            "family": planned.family.name,
        },
    }
