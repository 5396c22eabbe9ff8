"""What an export will do, resolved from a request without loading a weight."""

from __future__ import annotations

import importlib.resources
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp4dit_onnx.checkpoint import Checkpoint, open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.layers import layer_size, linear_layers, totals
from fp4dit_onnx.methods import Method, method_by_name
from fp4dit_onnx.models import Family, family_of
from fp4dit_onnx.prompts import demo_prompts, general_prompts, read_prompts
from fp4dit_onnx.recipe import DEFAULT_GROUP_SIZE, FORMS, LayerSpec, Recipe, make_recipe
from fp4dit_onnx.runtime.pipeline import Sampling

__all__ = ["WORK_MANIFEST", "ExportRequest", "Plan", "plan", "work_folder"]

SMALLEST_RAM = 2**26
WORK_MANIFEST = "calibration.json"
"""Tells a work folder from any other."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how; the defaults are those of the command line.

    Attributes:
        output: the bundle's folder, made by the export.
        model: a diffusers pipeline folder; None is the embedded demo pipeline.
        bits: weight and activation bits, such as ``w4a6``.
        method: one of `methods.METHODS`.
        preset: effort of the methods that train, one of `methods.PRESETS`.
        range: how the scale of a group is found, one of `methods.RANGES`.
        iterations: optimizer steps a block in place of the preset's.
        samples: recorded samples in place of the preset's.
        weight_format: one format for all weights, or ``auto`` for a choice by layer; None is the
            paper's assignment for the family.
        activation_format: in place of the default for the bits.
        attention_format: of q, k and v in attention, ``none`` for float; None is the activations'.
        group_size: input channels that share one weight scale.
        rules: ``PATTERN=FORMAT`` texts, first match wins.
        form: ``fused`` or ``qdq``.
        prompts: text file to calibrate with, one a line.
        calibration_prompts: pictures to draw with them, again from new noise where there are fewer;
            None is the preset's number.
        steps: sampler steps; None is the pipeline's default.
        guidance: classifier-free guidance; None is the pipeline's default.
        seed: of the noise and of the choice of rows.
        overwrite: replace an existing output.
        state: also write the quantized state to this safetensors file.
        work: folder for what calibration records and has finished; None is beside the output. It is
            removed once the bundle is there.
        restart: forget what an earlier run left in the work folder.
        max_ram: bytes of recorded activations that may be in memory at a time.
    """

    output: Path
    model: Path | None = None
    bits: str = "w4a6"
    method: str = "fp4dit"
    preset: str = "balanced"
    range: str = "absmax"
    iterations: int | None = None
    samples: int | None = None
    weight_format: str | None = None
    activation_format: str | None = None
    attention_format: str | None = None
    group_size: int = DEFAULT_GROUP_SIZE
    rules: tuple[str, ...] = ()
    form: str = "fused"
    prompts: Path | None = None
    calibration_prompts: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    overwrite: bool = False
    state: Path | None = None
    work: Path | None = None
    restart: bool = False
    max_ram: int = 2 * 2**30

    def resolved_method(self) -> Method:
        """The method with its settings.

        Raises:
            UsageError: unknown method, preset or range.
        """
        changes = {"iterations": self.iterations, "samples": self.samples}
        given = {name: value for name, value in changes.items() if value is not None}
        return method_by_name(self.method, self.preset, self.range, **given)


@dataclass(frozen=True)
class Plan:
    """What an export will do, known without loading a weight.

    Attributes:
        layers: a row for each quantized layer.
        skipped: name and reason of each linear that stays in float.
        attention: format of q, k and v of each attention where they are quantized.
        totals: sums; bytes before and after.
        recipe: the resolved request.
        sampling: how calibration samples.
        method: with its settings.
    """

    layers: tuple[Mapping[str, Any], ...]
    skipped: tuple[Mapping[str, str], ...]
    attention: Mapping[str, str]
    totals: Mapping[str, float]
    recipe: Recipe
    sampling: Sampling
    family: Family
    checkpoint: Checkpoint
    specs: Mapping[str, LayerSpec]
    prompts: tuple[str, ...]
    method: Method

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "layers": list(self.layers),
            "skipped": list(self.skipped),
            "attention": dict(self.attention),
            "totals": dict(self.totals),
            "recipe": self.recipe.to_json(),
            "method": asdict(self.method),
            "sampling": asdict(self.sampling),
        }


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
        attention_format=request.attention_format,
        group_size=request.group_size,
        rules=request.rules,
    )
    sizes = linear_layers(checkpoint)
    specs, skipped = recipe.assign(tuple(sizes))
    rows = [_row(name, *sizes[name], spec) for name, spec in specs.items()]
    return Plan(
        layers=tuple(rows),
        skipped=tuple({"name": name, "reason": reason} for name, reason in skipped),
        attention=recipe.attentions(tuple(sizes)),
        totals=totals(checkpoint, rows),
        recipe=recipe,
        sampling=_sampling(request, family, checkpoint),
        family=family,
        checkpoint=checkpoint,
        specs=specs,
        prompts=_prompts(request),
        method=request.resolved_method(),
    )


def work_folder(request: ExportRequest) -> Path:
    """Where the calibration of a request keeps what it may need again."""
    if request.work is not None:
        return request.work
    output = request.output.absolute()
    return output.with_name(f"{output.name}.calibration")


def _check_choices(request: ExportRequest) -> None:
    request.resolved_method()
    if request.form not in FORMS:
        raise UsageError(f"unknown form {request.form!r}: expected one of {', '.join(FORMS)}")
    for what in ("calibration_prompts", "steps", "iterations", "samples"):
        value = getattr(request, what)
        if value is not None and value < 1:
            raise UsageError(f"{what.replace('_', ' ')} {value}: expected at least 1")
    if request.max_ram < SMALLEST_RAM:
        raise UsageError(f"max RAM {request.max_ram}: expected at least {SMALLEST_RAM} bytes")
    if request.seed < 0:
        raise UsageError(f"seed {request.seed}: expected 0 or more")
    if request.state is not None and not request.state.parent.is_dir():
        raise UsageError(f"state file {request.state}: its folder does not exist; make it first")


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
    count = request.calibration_prompts or request.resolved_method().rounding.prompts
    return tuple(itertools.islice(itertools.cycle(prompts), count))
