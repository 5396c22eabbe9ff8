"""What an export is asked for: the command and `fp4dit_onnx.export` are made from this dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fp4dit_onnx.calibration.methods import (
    INPUTS_FROM,
    Method,
    method_by_name,
    preset_names,
    read_method,
)
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.exporting.budgeted import budgeted
from fp4dit_onnx.exporting.format_options import FormatOptions
from fp4dit_onnx.exporting.machine_options import MachineOptions
from fp4dit_onnx.exporting.options import CALIBRATION, INPUT, OUTPUT, Option
from fp4dit_onnx.exporting.slots import SlotOptions
from fp4dit_onnx.exporting.source_options import SourceOptions
from fp4dit_onnx.spec.recipe import AUTO, FORMS
from fp4dit_onnx.targets.table import TARGETS, target_by_name
from fp4dit_onnx.targets.target import DEFAULT_TARGET

__all__ = ["COMPONENTS", "ExportRequest"]

COMPONENTS = ("all", "transformer")
DEFAULT_FORM = FORMS[0]


@dataclass(frozen=True)
class ExportRequest(FormatOptions, MachineOptions, SourceOptions, SlotOptions):
    """What to export and how; each field's option says what it is."""

    output: Annotated[
        Path,
        Option("Folder of the bundle to write.", OUTPUT, unit="BUNDLE", flags=("--output", "-o")),
    ]
    model: Annotated[
        Path | None,
        Option(
            "Diffusers pipeline folder, or a transformer in one safetensors or GGUF file, in the "
            "layout of its authors, ComfyUI or diffusers; without it, the embedded demo pipeline.",
            INPUT,
            unit="MODEL",
            positional=True,
        ),
    ] = None
    method: Annotated[
        str,
        Option(
            "How weights are rounded; the -rtn methods round to nearest and need no calibration data.",
            CALIBRATION,
            unit="METHOD",
            choices=method_names(),
        ),
    ] = "fp4dit"
    recipe: Annotated[
        Path | None,
        Option(
            "Your own recipe file in place of --method, in the form that --save-recipe writes; other "
            "options override it, unless they have their default value.",
            CALIBRATION,
            unit="TOML",
        ),
    ] = None
    save_recipe: Annotated[
        Path | None,
        Option(
            "Also write the resolved method and formats to this recipe file.",
            OUTPUT,
            unit="TOML",
        ),
    ] = None
    preset: Annotated[
        str,
        Option("Calibration effort.", CALIBRATION, unit="PRESET", choices=preset_names()),
    ] = "balanced"
    time: Annotated[
        str | None,
        Option(
            "How long the export may take, such as 90s, 30m or 2h, in place of --preset: images, "
            "denoising steps and size of the calibration, samples and optimizer steps are picked once "
            "this machine was timed; those that are given stay.",
            CALIBRATION,
            unit="DURATION",
        ),
    ] = None
    iterations: Annotated[
        int | None,
        Option("Training steps per block; by default the preset's.", CALIBRATION, unit="STEPS"),
    ] = None
    samples: Annotated[
        int | None,
        Option(
            "Recorded inputs to calibrate with; by default the preset's.",
            CALIBRATION,
            unit="SAMPLES",
        ),
    ] = None
    inputs: Annotated[
        str | None,
        Option(
            "Which network a block that is trained receives its inputs from: sequential, the one "
            "quantized so far, so that it makes up for earlier blocks' errors; parallel, the float one, "
            "so that no block waits for another; by default the method's choice.",
            CALIBRATION,
            unit="NETWORK",
            choices=INPUTS_FROM,
        ),
    ] = None
    form: Annotated[
        str | None,
        Option(
            "fused, the default: one FpLinear per layer, computing on integers; qdq: quantize and "
            "dequantize nodes with plain MatMuls.",
            OUTPUT,
            unit="FORM",
            choices=FORMS,
        ),
    ] = None
    lora: Annotated[
        tuple[str, ...],
        Option(
            "LoRA to add to the weights before anything else, FILE or FILE:SCALE: safetensors with "
            "the names of diffusers, peft or kohya. Repeatable.",
            INPUT,
            unit="LORA",
        ),
    ] = ()
    prompts: Annotated[
        Path | None,
        Option(
            "Text file of calibration prompts, one per line; by default built-in ones.",
            INPUT,
            unit="FILE",
        ),
    ] = None
    calibration_data: Annotated[
        Path | None,
        Option(
            "Folder of your own data in place of generated images: images, or latents NAME.npy or "
            "NAME.safetensors, and captions NAME.txt. They get the noise of each denoising step.",
            INPUT,
            unit="FOLDER",
        ),
    ] = None
    calibration_prompts: Annotated[
        int | None,
        Option(
            "Images to generate for calibration; prompts are repeated with new noise if there are "
            "fewer; by default the preset's.",
            CALIBRATION,
            unit="IMAGES",
        ),
    ] = None
    calibration_size: Annotated[
        int | None,
        Option(
            "Side of the images that are generated for calibration; smaller ones take less time. By "
            "default the model's own size.",
            CALIBRATION,
            unit="PIXELS",
        ),
    ] = None
    steps: Annotated[
        int | None,
        Option(
            "Denoising steps for calibration, and the bundle's default; by default the pipeline's.",
            CALIBRATION,
            unit="STEPS",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        Option(
            "Scale of classifier-free guidance for calibration, and the bundle's default; by default "
            "the pipeline's.",
            CALIBRATION,
            unit="SCALE",
        ),
    ] = None
    seed: Annotated[
        int, Option("Seed of the noise and of the choice of samples.", CALIBRATION, unit="SEED")
    ] = 0
    overwrite: Annotated[
        bool,
        Option("Replace an existing bundle, and the files of --state and --save-recipe.", OUTPUT),
    ] = False
    state: Annotated[
        Path | None,
        Option("Also write the quantized weights to this safetensors file.", OUTPUT, unit="FILE"),
    ] = None
    measure: Annotated[
        bool | None,
        Option(
            "For methods without calibration data: also run the float pipeline to measure output "
            "errors, which takes longer than the rest; by default if it takes less than 1 GiB in "
            "float32.",
            OUTPUT,
        ),
    ] = None
    components: Annotated[
        str,
        Option(
            "What to export; transformer leaves out text encoders and VAE.",
            INPUT,
            unit="PARTS",
            choices=COMPONENTS,
        ),
    ] = COMPONENTS[0]
    target: Annotated[
        str | None,
        Option(
            f"What the graphs are made of, by default {DEFAULT_TARGET}; "
            + "; ".join(f"{name}: {t.summary}" for name, t in TARGETS.items())
            + ".",
            OUTPUT,
            unit="TARGET",
            choices=TARGETS,
        ),
    ] = None
    report: Annotated[
        bool,
        Option(
            "Write report.html into the bundle, with images and times if the float pipeline is run "
            "anyway.",
            OUTPUT,
        ),
    ] = True

    @property
    def resolved_form(self) -> str:
        """One of `FORMS`."""
        return DEFAULT_FORM if self.form is None else self.form

    @property
    def resolved_target(self) -> str:
        """One of `TARGETS`."""
        return DEFAULT_TARGET if self.target is None else self.target

    @property
    def resolved_group_size(self) -> int:
        """The group size, where none is given the target's."""
        usual = target_by_name(self.resolved_target).group_size
        return usual if self.group_size is None else self.group_size

    @property
    def resolved_scale(self) -> str:
        """The scale format, where none is given the target's."""
        usual = target_by_name(self.resolved_target).scale
        return usual if self.scale is None else self.scale

    def resolved_method(self) -> Method:
        """The method with its settings.

        Raises:
            UsageError: unknown method, preset or range.
        """
        changes = {name: getattr(self, name) for name in ("iterations", "samples", "inputs")}
        given = {name: value for name, value in changes.items() if value is not None}
        if self.recipe is None:
            method = method_by_name(self.method, self.preset, self.range, **given)
        else:
            method = read_method(self.recipe, self.preset, self.range, **given)
        choosing = self.weight_format != AUTO or any(s.kind == "choice" for s in method.stages)
        method = method if choosing else method.with_stage("choose-format")
        return budgeted(method, self.target_bits, self.min_sqnr)
