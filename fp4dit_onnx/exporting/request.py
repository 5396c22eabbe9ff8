"""What an export is asked for: the command and `fp4dit_onnx.export` are made from this dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fp4dit_onnx.calibration.methods import (
    Method,
    method_by_name,
    method_names,
    preset_names,
    range_names,
    read_method,
)
from fp4dit_onnx.exporting.options import CALIBRATION, FORMATS, INPUT, MACHINE, OUTPUT, Option
from fp4dit_onnx.numbers.formats import FORMATS as ELEMENT_FORMATS
from fp4dit_onnx.numbers.scale_formats import SCALE_FORMATS
from fp4dit_onnx.spec.recipe import ACTIVATION_FORMATS, AUTO, FLOAT, FORMS, PAPER, WEIGHT_FORMATS
from fp4dit_onnx.targets.table import TARGETS, target_by_name
from fp4dit_onnx.targets.target import DEFAULT_TARGET

__all__ = ["COMPONENTS", "ExportRequest"]

COMPONENTS = ("all", "transformer")
BITS = "w<{}>a<{}>".format(
    *("|".join(map(str, table["fp"])) for table in (WEIGHT_FORMATS, ACTIVATION_FORMATS))
)


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how; each field's option says what it is."""

    output: Annotated[
        Path,
        Option("Folder of the bundle to write.", OUTPUT, unit="BUNDLE", flags=("--output", "-o")),
    ]
    model: Annotated[
        Path | None,
        Option(
            "Diffusers pipeline folder; without it, the embedded demo pipeline.",
            INPUT,
            unit="PIPELINE",
            positional=True,
        ),
    ] = None
    bits: Annotated[
        str, Option(f"Bits of weights and activations, {BITS}.", FORMATS, unit="BITS")
    ] = "w4a6"
    method: Annotated[
        str,
        Option(
            "How weights are rounded; the -rtn ones (round to nearest) train nothing and need no "
            "data.",
            CALIBRATION,
            unit="METHOD",
            choices=method_names(),
        ),
    ] = "fp4dit"
    recipe: Annotated[
        Path | None,
        Option(
            "Recipe file of your own in place of the method, as --save-recipe writes it; what is "
            "asked for beside it, and is not the default, wins over the file.",
            CALIBRATION,
            unit="TOML",
        ),
    ] = None
    save_recipe: Annotated[
        Path | None,
        Option(
            "Also write method and formats, as they were resolved, to this recipe file.",
            OUTPUT,
            unit="TOML",
        ),
    ] = None
    preset: Annotated[
        str,
        Option(
            "Effort of the methods that train.", CALIBRATION, unit="PRESET", choices=preset_names()
        ),
    ] = "balanced"
    range: Annotated[
        str | None,
        Option(
            "How the scale of a group is found: absmax maps the group's largest weight to the "
            "format's largest value, mse takes the scale of least squared error; by default the "
            "method's.",
            FORMATS,
            unit="RULE",
            choices=range_names(),
        ),
    ] = None
    scale: Annotated[
        str | None,
        Option(
            "What a scale may be: "
            + "; ".join(f"{name}, {fmt.summary}" for name, fmt in SCALE_FORMATS.items())
            + "; by default "
            + ", ".join(f"{t.scale} ({name})" for name, t in TARGETS.items())
            + ", by target.",
            FORMATS,
            unit="FORMAT",
            choices=SCALE_FORMATS,
        ),
    ] = None
    iterations: Annotated[
        int | None,
        Option("Training steps a block; by default the preset's.", CALIBRATION, unit="STEPS"),
    ] = None
    samples: Annotated[
        int | None,
        Option(
            "Recorded inputs to train on; by default the preset's.", CALIBRATION, unit="SAMPLES"
        ),
    ] = None
    weight_format: Annotated[
        str | None,
        Option(
            "One format for all weights; auto chooses e2m1, e1m2 or e3m0 layer by layer, by "
            "measured output error; by default the target's, or FP4DiT's assignment (paper).",
            FORMATS,
            unit="FORMAT",
            choices=(*ELEMENT_FORMATS, AUTO, PAPER),
        ),
    ] = None
    activation_format: Annotated[
        str | None,
        Option(
            "One format for all activations; by default that of the bits.",
            FORMATS,
            unit="FORMAT",
            choices=(*ELEMENT_FORMATS, FLOAT),
        ),
    ] = None
    attention_format: Annotated[
        str | None,
        Option(
            "Format of q, k and v in attention, none for float; by default that of the "
            "activations.",
            FORMATS,
            unit="FORMAT",
            choices=(*ELEMENT_FORMATS, FLOAT),
        ),
    ] = None
    group_size: Annotated[
        int | None,
        Option(
            "Input channels that share one weight scale; by default "
            + ", ".join(f"{t.group_size} ({name})" for name, t in TARGETS.items())
            + ", by target.",
            FORMATS,
            unit="CHANNELS",
        ),
    ] = None
    rules: Annotated[
        tuple[str, ...],
        Option(
            "PATTERN=WEIGHT or PATTERN=WEIGHT/ACTIVATION for layers by name with shell wildcards; "
            "none keeps them in float. Repeatable, the first that matches wins.",
            FORMATS,
            unit="RULE",
            flags=("--rule",),
        ),
    ] = ()
    form: Annotated[
        str,
        Option(
            "fused: one FpLinear a layer, computing on integers; qdq: quantize and dequantize "
            "nodes beside plain MatMuls.",
            OUTPUT,
            unit="FORM",
            choices=FORMS,
        ),
    ] = FORMS[0]
    prompts: Annotated[
        Path | None,
        Option(
            "Text file to calibrate with, a prompt a line; by default built-in ones.",
            INPUT,
            unit="FILE",
        ),
    ] = None
    calibration_prompts: Annotated[
        int | None,
        Option(
            "Images to calibrate with, repeating prompts from new noise where there are fewer; by "
            "default the preset's.",
            CALIBRATION,
            unit="IMAGES",
        ),
    ] = None
    steps: Annotated[
        int | None,
        Option(
            "Denoising steps, of calibration and kept as the bundle's default; by default the "
            "pipeline's.",
            CALIBRATION,
            unit="STEPS",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        Option(
            "Weight of classifier-free guidance, likewise; by default the pipeline's.",
            CALIBRATION,
            unit="SCALE",
        ),
    ] = None
    seed: Annotated[
        int, Option("Seed of the noise and of the choice of samples.", CALIBRATION, unit="SEED")
    ] = 0
    overwrite: Annotated[
        bool,
        Option(
            "Replace a bundle that is there, and the files of --state and --save-recipe.", OUTPUT
        ),
    ] = False
    state: Annotated[
        Path | None,
        Option("Also write the quantized weights to this safetensors file.", OUTPUT, unit="FILE"),
    ] = None
    work: Annotated[
        Path | None,
        Option(
            "Folder for recorded activations and finished blocks, from which a killed run goes on; "
            "by default OUTPUT.calibration. Removed once the bundle is there.",
            MACHINE,
            unit="DIR",
        ),
    ] = None
    restart: Annotated[
        bool, Option("Forget what a killed run left in the work folder.", MACHINE)
    ] = False
    max_ram: Annotated[
        float,
        Option(
            "Memory that recorded activations may take at a time, and quantizing a layer.",
            MACHINE,
            unit="GiB",
            scale=2**30,
        ),
    ] = 2 * 2**30
    measure: Annotated[
        bool | None,
        Option(
            "With methods that need no data: run the float pipeline to measure the errors of "
            "outputs, which takes longer than the rest; by default where it takes less than 1 GiB "
            "in float32.",
            CALIBRATION,
        ),
    ] = None
    components: Annotated[
        str,
        Option(
            "What to export: transformer leaves out text encoders and VAE.",
            INPUT,
            unit="PARTS",
            choices=COMPONENTS,
        ),
    ] = COMPONENTS[0]
    text_encoder_bits: Annotated[
        str | None,
        Option(
            "Bits of the text encoders' linears, such as w4a16, or none for float; by default "
            "w4a16 from 1 GiB in float32 on.",
            FORMATS,
            unit="BITS",
        ),
    ] = None
    target: Annotated[
        str,
        Option(
            "What the graphs are made of: "
            + "; ".join(f"{name}: {t.summary}" for name, t in TARGETS.items())
            + ".",
            OUTPUT,
            unit="TARGET",
            choices=TARGETS,
        ),
    ] = DEFAULT_TARGET
    report: Annotated[
        bool,
        Option(
            "Write report.html into the bundle; images and times are in it where the float "
            "pipeline is run anyway.",
            OUTPUT,
        ),
    ] = True

    @property
    def resolved_group_size(self) -> int:
        """The group size, where none is given the target's."""
        usual = target_by_name(self.target).group_size
        return usual if self.group_size is None else self.group_size

    @property
    def resolved_scale(self) -> str:
        """The scale format, where none is given the target's."""
        return self.scale or target_by_name(self.target).scale

    def resolved_method(self) -> Method:
        """The method with its settings.

        Raises:
            UsageError: unknown method, preset or range.
        """
        changes = {"iterations": self.iterations, "samples": self.samples}
        given = {name: value for name, value in changes.items() if value is not None}
        if self.recipe is None:
            method = method_by_name(self.method, self.preset, self.range, **given)
        else:
            method = read_method(self.recipe, self.preset, self.range, **given)
        return method.with_stage("choose-format") if self.weight_format == AUTO else method
