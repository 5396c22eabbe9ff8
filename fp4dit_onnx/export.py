"""From a checkpoint to a bundle: calibrate in torch, trace to ONNX, run the passes, write."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from fp4dit_onnx.bundle import FORMAT_VERSION, new_bundle, write_manifest
from fp4dit_onnx.cases import CASES, case_inputs
from fp4dit_onnx.checkpoint import Checkpoint, open_checkpoint
from fp4dit_onnx.compare import sqnr_db
from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.layers import layer_size, linear_layers, totals
from fp4dit_onnx.methods import method_by_name
from fp4dit_onnx.model_file import save_model
from fp4dit_onnx.models import Family, family_of
from fp4dit_onnx.progress import Reporter, SilentReporter
from fp4dit_onnx.prompts import demo_prompts, general_prompts, read_prompts
from fp4dit_onnx.recipe import DEFAULT_GROUP_SIZE, FORMS, LayerSpec, Recipe, make_recipe
from fp4dit_onnx.runtime.pipeline import Sampling
from fp4dit_onnx.state import QuantizedState, save_state

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.run import Calibration
    from fp4dit_onnx.passes.base import PassReport

__all__ = ["ExportRequest", "ExportResult", "Plan", "export", "plan"]

LARGEST_MODEL = 2**31 - 2**26
TORCH_PACKAGES = ("torch", "diffusers", "transformers", "onnx_graphsurgeon", "onnxscript")


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how; the defaults are those of the command line.

    Attributes:
        output: the bundle's folder, made by the export.
        model: a diffusers pipeline folder; None is the embedded demo pipeline.
        bits: weight and activation bits, such as ``w4a6``.
        method: rounding method.
        weight_format: one format for all weights; None is the paper's assignment for the family.
        activation_format: in place of the default for the bits.
        group_size: input channels that share one weight scale.
        rules: ``PATTERN=FORMAT`` texts, first match wins.
        form: ``fused`` or ``qdq``.
        prompts: text file to calibrate with, one a line.
        calibration_prompts: how many of them to use.
        steps: sampler steps; None is the pipeline's default.
        guidance: classifier-free guidance; None is the pipeline's default.
        seed: of the noise and of the choice of rows.
        overwrite: replace an existing output.
        state: also write the quantized state to this safetensors file.
    """

    output: Path
    model: Path | None = None
    bits: str = "w4a6"
    method: str = "rtn"
    weight_format: str | None = None
    activation_format: str | None = None
    group_size: int = DEFAULT_GROUP_SIZE
    rules: tuple[str, ...] = ()
    form: str = "fused"
    prompts: Path | None = None
    calibration_prompts: int = 16
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    overwrite: bool = False
    state: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What an export will do, known without loading a weight.

    Attributes:
        layers: a row for each quantized layer.
        skipped: name and reason of each linear that stays in float.
        totals: sums; bytes before and after.
        recipe: the resolved request.
        sampling: how calibration samples.
    """

    layers: tuple[Mapping[str, Any], ...]
    skipped: tuple[Mapping[str, str], ...]
    totals: Mapping[str, float]
    recipe: Recipe
    sampling: Sampling
    family: Family
    checkpoint: Checkpoint
    specs: Mapping[str, LayerSpec]
    prompts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "layers": list(self.layers),
            "skipped": list(self.skipped),
            "totals": dict(self.totals),
            "recipe": self.recipe.to_json(),
            "sampling": asdict(self.sampling),
        }


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


def plan(request: ExportRequest) -> Plan:
    """Resolve a request: the checkpoint is read, its weights are not.

    Raises:
        CheckpointError: the model folder is unusable.
        UsageError: bits, formats, method, form, rules or prompts are unusable.
    """
    _check_choices(request)
    checkpoint = open_checkpoint(request.model)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    recipe = make_recipe(
        request.bits,
        method=request.method,
        paper_rules=family.paper_rules,
        skip=family.skip,
        weight_format=request.weight_format,
        activation_format=request.activation_format,
        group_size=request.group_size,
        rules=request.rules,
    )
    sizes = linear_layers(checkpoint)
    specs, skipped = recipe.assign(tuple(sizes))
    rows = [_row(name, *sizes[name], spec) for name, spec in specs.items()]
    return Plan(
        layers=tuple(rows),
        skipped=tuple({"name": name, "reason": reason} for name, reason in skipped),
        totals=totals(checkpoint, rows),
        recipe=recipe,
        sampling=_sampling(request, family, checkpoint),
        family=family,
        checkpoint=checkpoint,
        specs=specs,
        prompts=_prompts(request),
    )


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
    with new_bundle(
        request.output, overwrite=request.overwrite, source=planned.checkpoint.folder
    ) as folder:
        manifest = _write_bundle(request, planned, folder, report)
    return ExportResult(request.output, manifest, time.monotonic() - start)


def _check_choices(request: ExportRequest) -> None:
    method_by_name(request.method)
    if request.form not in FORMS:
        raise UsageError(f"unknown form {request.form!r}: expected one of {', '.join(FORMS)}")
    if request.calibration_prompts < 1 or (request.steps is not None and request.steps < 1):
        raise UsageError("calibration needs at least one prompt and one step")
    if request.seed < 0:
        raise UsageError(f"seed {request.seed}: expected 0 or more")
    if request.state is not None and not request.state.parent.is_dir():
        raise UsageError(f"state file {request.state}: its folder does not exist; make it first")


def _check_size(planned: Plan) -> None:
    """The traced graph holds the float weights in one protobuf message, which ends at 2 GiB."""
    size = planned.totals["transformer_bytes_float32"]
    if size >= LARGEST_MODEL:
        raise UsageError(
            f"the transformer of {planned.checkpoint.folder} takes {size / 2**30:.1f} GiB in "
            f"float32: this version exports up to {LARGEST_MODEL / 2**30:.1f} GiB; --dry-run works"
        )


def _row(name: str, n: int, k: int, spec: LayerSpec) -> dict[str, Any]:
    size = asdict(layer_size(n, k, spec))
    return {
        "name": name,
        "weight_format": spec.weight,
        "activation_format": spec.activation,
        "group_size": spec.group_size,
        **size,
        "shape": list(size["shape"]),
    }


def _sampling(request: ExportRequest, family: Family, checkpoint: Checkpoint) -> Sampling:
    defaults = dict(family.sampling)
    if request.model is None:
        demo = importlib.resources.files("fp4dit_onnx") / "demo" / "sampling.json"
        defaults |= json.loads(demo.read_text())
    vae = json.loads((checkpoint.folder / "vae" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = int(checkpoint.transformer_config["sample_size"]) * factor
    return Sampling(
        steps=request.steps or int(defaults["steps"]),
        guidance=defaults["guidance"] if request.guidance is None else request.guidance,
        height=pixels,
        width=pixels,
        max_sequence_length=int(defaults["max_sequence_length"]),
    )


def _prompts(request: ExportRequest) -> tuple[str, ...]:
    if request.prompts is not None:
        prompts = read_prompts(request.prompts)
    else:
        prompts = demo_prompts("calibration") if request.model is None else general_prompts()
    return tuple(prompts[: request.calibration_prompts])


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
    from fp4dit_onnx.calibration.sampling import network_calls, sample_latents

    prompts = planned.prompts
    seeds = [request.seed + i for i in range(len(prompts))]
    return calibrate(
        pipeline.transformer,
        planned.specs,
        method_by_name(request.method),
        lambda on_call: sample_latents(
            pipeline, planned.family, prompts, seeds, planned.sampling, on_call
        ),
        calls=network_calls(len(prompts), planned.sampling.steps),
        seed=request.seed,
        provenance={"recipe": planned.recipe.to_json(), "model": planned.checkpoint.folder.name},
        reporter=report,
    )


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
        "sampling": asdict(planned.sampling),
        "layers": rows,
        "totals": totals(checkpoint, rows),
        "skipped": list(planned.skipped),
        "passes": [r.to_json() for r in reports],
        "versions": {"python": platform.python_version(), **versions},
        "source": {
            "name": checkpoint.folder.name,
            "pipeline": checkpoint.pipeline_class,
            "transformer": checkpoint.transformer_class,
            "family": planned.family.name,
        },
    }
