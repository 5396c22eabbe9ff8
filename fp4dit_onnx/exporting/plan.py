"""What an export will do, resolved from a request without loading a weight."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.calibration_notes import Calibrated
from fp4dit_onnx.bundle.manifest import Kept, Layer, Sampling, Totals
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, open_checkpoint, scheduler_settings
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.budget import (
    PlannedBudget,
    planned_budget,
    searched_groups,
    with_own_bits,
)
from fp4dit_onnx.exporting.calibration_data import OwnData, asked_data
from fp4dit_onnx.exporting.checks import (
    check_choices,
    check_packages,
    check_pipeline,
    check_ram,
)
from fp4dit_onnx.exporting.components import check_parts, check_vae
from fp4dit_onnx.exporting.layers import layer_size, linear_layers, totals
from fp4dit_onnx.exporting.recipe_files import with_recipe
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.exporting.sampling_plan import (
    at_size,
    calibration_prompts,
    check_size,
    latent_pixels,
    usual_sampling,
)
from fp4dit_onnx.exporting.slots import asked_slots
from fp4dit_onnx.exporting.sources import with_folder
from fp4dit_onnx.exporting.text_encoders import check_encoders, encoder_bytes, encoder_recipe
from fp4dit_onnx.families import Family, family_of, family_of_pipeline
from fp4dit_onnx.families.table import largest_side
from fp4dit_onnx.files import plain
from fp4dit_onnx.runtime.runs import start_run
from fp4dit_onnx.runtime.schedulers import scheduler_from_config
from fp4dit_onnx.spec.recipe import Recipe, make_recipe
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.system.texts import clean
from fp4dit_onnx.targets.table import target_by_name

__all__ = ["ExportRequest", "Plan", "format_row", "plan", "work_beside", "work_folder"]

MEASURED_BELOW = 2**30
"""Bytes in float32."""


@dataclass(frozen=True)
class Plan:
    """What an export will do, known without loading a weight.

    Attributes:
        layers: a row for each quantized layer.
        skipped: name and reason of each linear that stays in float.
        attention: format of q, k and v of each attention where they are quantized.
        totals: sums; bytes before and after.
        recipe: the resolved request.
        sampling: how the bundle generates images unless told otherwise.
        method: with its settings.
        calibrated: where the float pipeline is loaded and run, None where it is not.
        illustrated: whether it is run for the images of the report too.
        encoders: recipe of each text encoder, None where it stays in float.
        request: what was asked for, its recipe file included.
        undrawable: why `generate` cannot make images with the bundle, a line each.
        budget: what layers' precisions are chosen among; None for those of `layers`.
        searched: what each layer's weight may be where group sizes are searched.
        data: the user's own, None for images that the float pipeline generates.
        slots: rank of the LoRA that each of some layers can take at run time.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Kept, ...]
    attention: Mapping[str, str]
    totals: Totals
    recipe: Recipe
    sampling: Sampling
    family: Family
    checkpoint: Checkpoint
    specs: Mapping[str, LayerSpec]
    prompts: tuple[str, ...]
    method: Method
    calibrated: Calibrated | None
    encoders: Mapping[str, Recipe | None]
    request: ExportRequest
    undrawable: tuple[str, ...]
    illustrated: bool
    budget: PlannedBudget | None = None
    searched: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    data: OwnData | None = None
    slots: Mapping[str, int] = field(default_factory=dict)

    @property
    def recorded(self) -> Sampling:
        """How calibration samples: as the bundle does, in images of the size asked for."""
        if self.data is not None:
            return self.data.sampling(self.sampling, self.family, self.checkpoint)
        return at_size(self.sampling, self.request.calibration_size)

    @property
    def resizes(self) -> bool:
        """Whether the size of calibration's images is open."""
        fixed = self.data is not None or self.request.calibration_size is not None
        return bool(self.family.encoders) and not fixed

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing before any work, a line each."""
        return (*self.checkpoint.notes, *self.undrawable, *self._timed)

    @property
    def _timed(self) -> tuple[str, ...]:
        """What a time leaves open."""
        if self.request.time is None:
            return ()
        return (
            f"time {self.request.time}: how much is calibrated is picked once this machine was timed",
        )

    @property
    def bundle_bytes(self) -> int:
        """About what the bundle's tensors will take."""
        parts = self.checkpoint.components
        encoders = sum(encoder_bytes(parts[name], r) for name, r in self.encoders.items())
        vae = parts["vae"].nbytes if "vae" in parts else 0
        return self.totals.transformer_bytes + self._more_bytes + encoders + vae

    @property
    def _more_bytes(self) -> int:
        """What the weights may take beyond `totals` under a budget."""
        if self.budget is None:
            return 0
        bits = self.budget.target_bits or self.budget.most_bits
        return max(0, int(bits * self.totals.weights / 8) - self.totals.bytes)

    @property
    def precisions(self) -> Mapping[str, tuple[TensorSpec, ...]]:
        """What each layer's weight may be under a budget, or where group sizes are searched."""
        return self.budget.precisions if self.budget else self.searched

    @property
    def largest_size(self) -> int | None:
        """Pixels along a side that the transformer's stored positions reach; None for any number."""
        side = largest_side(self.checkpoint.transformer_config)
        return None if side is None else side * latent_pixels(self.checkpoint)

    @property
    def measured(self) -> bool:
        """Whether the float pipeline is loaded and run."""
        return self.calibrated is not None

    @property
    def trains(self) -> bool:
        """Whether calibration looks at what layers receive, and so needs data and a work folder."""
        return self.method.needs_data

    @property
    def bits(self) -> str:
        """See `Method.label`."""
        return self.method.label(self.recipe.bits)

    @property
    def summary(self) -> dict[str, str]:
        """What the graph itself says of how it was made."""
        return {
            "bits": self.bits,
            "method": self.recipe.method,
            "source": f"{clean(self.checkpoint.folder.name)} ({self.checkpoint.pipeline_class})",
            "paper": "FP4DiT, arXiv 2503.15465",
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "layers": plain(self.layers),
            "skipped": plain(self.skipped),
            "attention": plain(self.attention),
            "totals": plain(self.totals),
            "recipe": plain(self.recipe),
            "method": self.method.to_json(),
            "sampling": plain(self.sampling),
            "recorded": plain(self.recorded),
            "measured": self.measured,
            "calibrated": plain(self.calibrated),
            "bundle_bytes": self.bundle_bytes,
            "text_encoders": plain(self.encoders),
            "notes": list(self.notes),
            "budget": plain(self.budget),
        }


def plan(request: ExportRequest) -> Plan:
    """Resolve a request: the checkpoint is read, its weights are not.

    Raises:
        MissingExtraError: the packages of the extra ``export`` are not installed.
        CheckpointError: the model folder is unusable.
        UsageError: bits, formats, method, form, target, rules or prompts are unusable.
    """
    request = with_recipe(request)
    check_choices(request)
    check_packages(report=request.report)
    request = with_folder(request)
    from fp4dit_onnx.network.configs import check_networks
    from fp4dit_onnx.network.execution import execution_of
    from fp4dit_onnx.network.stored import fitted

    execution = execution_of(request.device, request.precision)
    calibrated = Calibrated(str(execution.device), execution.precision)

    checkpoint = open_checkpoint(request.model, only=_only(request), lora=request.lora)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    if request.components == "all":
        check_parts(checkpoint)
    check_encoders(checkpoint.components)
    if "vae" in checkpoint.components:
        check_vae(checkpoint.components["vae"])
    check_networks(checkpoint, family)
    target, method = target_by_name(request.resolved_target), request.resolved_method()
    recipe = make_recipe(
        request.resolved_bits,
        method=method,
        paper_rules=target.formats or family.paper_rules,
        skip=family.skip,
        weight_format=request.weight_format,
        activation_format=request.activation_format,
        attention_format=request.attention_format,
        group_size=request.resolved_group_size,
        scale=request.resolved_scale,
        rules=request.rules,
        activation_group_size=request.activation_group_size,
        outer_layers=request.outer_layers,
        outer=itertools.chain.from_iterable(family.outer.values()),
    )
    trains = method.needs_data
    if (trains or request.measure) and not family.generates:
        raise UsageError(
            f"{family.name} cannot be calibrated yet, and method {request.method} needs data: "
            "round to nearest with --method fp-rtn or int-rtn, without --measure"
        )
    if trains and _only(request) is not None:
        check_pipeline(request)
    checkpoint = fitted(checkpoint)
    sizes = linear_layers(checkpoint)
    joined = family.joined(sizes)
    specs, skipped = recipe.assign(sizes, joined)
    check_ram(request, sizes)
    target.check({spec.weight.format for spec in specs.values()} | set(recipe.search))
    expected = {name: method.branched(spec, *sizes[name]) for name, spec in specs.items()}
    method = with_own_bits(method, recipe, expected, sizes, target)
    rows = [_row(name, *sizes[name], spec) for name, spec in expected.items()]
    sampling = usual_sampling(request, family, checkpoint)
    check_size(request.calibration_size, sampling, family, checkpoint)
    data = asked_data(request, method)
    if data is not None:
        data.sampling(sampling, family, checkpoint)
    captions = None if data is None else data.captions
    attentions = family.attentions(specs, (name for name, _ in skipped))
    runs = trains or (family.generates and _measures(request, checkpoint))
    return Plan(
        layers=tuple(rows),
        skipped=tuple(Kept(name, reason) for name, reason in skipped),
        attention=dict.fromkeys(attentions, recipe.attention) if recipe.attention else {},
        totals=totals(checkpoint, rows),
        recipe=recipe,
        sampling=sampling,
        family=family,
        checkpoint=checkpoint,
        specs=specs,
        prompts=calibration_prompts(request, family, checkpoint, sampling, method, captions),
        method=method,
        calibrated=calibrated if runs else None,
        illustrated=_measures(request, checkpoint),
        encoders=_encoders(request, checkpoint),
        request=request,
        undrawable=_undrawable(checkpoint, sampling),
        budget=planned_budget(method, recipe, expected, sizes, joined, target),
        searched=searched_groups(method, recipe, specs, sizes, joined, target),
        data=data,
        slots=asked_slots(request, specs),
    )


def _undrawable(checkpoint: Checkpoint, sampling: Sampling) -> tuple[str, ...]:
    """What keeps `generate` from making images with a bundle of all components."""
    if "scheduler" not in checkpoint.components:
        return ()
    settings = scheduler_settings(checkpoint.components["scheduler"])
    try:
        index = checkpoint.folder / "model_index.json"
        family = family_of_pipeline(checkpoint.pipeline_class, index)
        start_run(family, scheduler_from_config(settings), sampling.steps, tokens=1)
    except UsageError as error:
        return (f"generate will not make images with this bundle: {error}",)
    return ()


def _encoders(request: ExportRequest, checkpoint: Checkpoint) -> dict[str, Recipe | None]:
    return {
        name: encoder_recipe(
            part, request.text_encoder_bits, request.resolved_group_size, request.resolved_scale
        )
        for name, part in checkpoint.components.items()
        if name.startswith("text_encoder")
    }


def _only(request: ExportRequest) -> tuple[str, ...] | None:
    """The components that a request reads; None for all."""
    return None if request.components == "all" else ("transformer",)


def _measures(request: ExportRequest, checkpoint: Checkpoint) -> bool:
    """Whether the float pipeline is run where only a measurement or the report asks for it."""
    if request.components != "all":
        return False
    if request.measure is not None:
        return request.measure
    elements = (t for c in checkpoint.components.values() for t in c.tensors.values())
    return sum(4 * prod(t.shape) for t in elements) < MEASURED_BELOW


def work_folder(request: ExportRequest) -> Path:
    """Where the calibration of a request keeps what it may need again."""
    return work_beside(request.output) if request.work is None else request.work


def work_beside(bundle: Path) -> Path:
    """The usual work folder of a bundle's export."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}.calibration")


def format_row(spec: LayerSpec) -> dict[str, Any]:
    """What the manifest says of a layer's formats."""
    weight, activation = spec.formats
    return {
        "weight_format": weight,
        "activation_format": activation,
        "group_size": spec.group_size,
        "scale_format": spec.weight.scale,
        "activation_group_size": spec.activation_group_size,
        "input_ops": spec.input_ops,
        "largest": spec.largest,
        "branch": spec.branch.rank if spec.branch else None,
        "wide": spec.wide,
    }


def _row(name: str, n: int, k: int, spec: LayerSpec) -> Layer:
    size = layer_size(n, k, spec)
    return Layer(name=name, **format_row(spec), weights=size.weights, **vars(size))
