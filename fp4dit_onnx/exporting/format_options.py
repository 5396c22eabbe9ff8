"""Options of an export that say in which formats numbers are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fp4dit_onnx.calibration.methods import range_names
from fp4dit_onnx.exporting.options import FORMATS, Option
from fp4dit_onnx.numbers.formats import FORMATS as ELEMENT_FORMATS
from fp4dit_onnx.numbers.scale_formats import SCALE_FORMATS
from fp4dit_onnx.spec.recipe import ACTIVATION_FORMATS, AUTO, FLOAT, PAPER, WEIGHT_FORMATS
from fp4dit_onnx.targets.table import TARGETS

__all__ = ["FormatOptions"]

DEFAULT_BITS = "w4a6"
BITS = "w<{}>a<{}>".format(
    *("|".join(map(str, table["fp"])) for table in (WEIGHT_FORMATS, ACTIVATION_FORMATS))
)


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """Each field's option says what it is."""

    bits: Annotated[
        str | None,
        Option(
            f"Bits of weights and activations, {BITS}; by default those of the method, else "
            f"{DEFAULT_BITS}.",
            FORMATS,
            unit="BITS",
        ),
    ] = None
    range: Annotated[
        str | None,
        Option(
            "How the scale of a group is computed: absmax maps the group's largest weight to the "
            "format's largest value, mse minimizes the squared error; by default the method's.",
            FORMATS,
            unit="RULE",
            choices=range_names(),
        ),
    ] = None
    scale: Annotated[
        str | None,
        Option(
            "How a scale is stored: "
            + "; ".join(f"{name}, {fmt.summary}" for name, fmt in SCALE_FORMATS.items())
            + "; by default "
            + ", ".join(f"{t.scale} ({name})" for name, t in TARGETS.items())
            + ", by target.",
            FORMATS,
            unit="FORMAT",
            choices=SCALE_FORMATS,
        ),
    ] = None
    target_bits: Annotated[
        float | None,
        Option(
            "Mixed precision: the most bits per weight over all quantized layers of the transformer, "
            "scales included. Layers get 4 or 8 bits and long or short groups where that saves "
            "the most error, by measured sensitivity. For methods that measure second moments, such as "
            "tuned.",
            FORMATS,
            unit="BITS",
        ),
    ] = None
    min_sqnr: Annotated[
        float | None,
        Option(
            "Mixed precision: the fewest bits with which the guided prediction of the whole network, "
            "activations quantized, keeps this SQNR against the float network, on recorded calls of "
            "its trajectory weighted by importance; in place of --target-bits.",
            FORMATS,
            unit="DB",
        ),
    ] = None
    weight_format: Annotated[
        str | None,
        Option(
            "One format for all weights, or auto: e2m1, e1m2 or e3m0 per layer, by measured output "
            "error; by default the target's, or FP4DiT's assignment (paper).",
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
    activation_group_size: Annotated[
        int | None,
        Option(
            "Inputs of a token that share one activation scale; by default all.",
            FORMATS,
            unit="CHANNELS",
        ),
    ] = None
    outer_layers: Annotated[
        str | None,
        Option(
            "WEIGHT/ACTIVATION for the layers outside of the blocks that the family's record names: "
            "time embedder, adaLN, text projection, final linear; by default as all others.",
            FORMATS,
            unit="FORMATS",
        ),
    ] = None
    rules: Annotated[
        tuple[str, ...],
        Option(
            "Formats of single layers: PATTERN=WEIGHT or PATTERN=WEIGHT/ACTIVATION, where PATTERN is "
            "a layer name with shell wildcards; none keeps float. Repeatable; the first match wins.",
            FORMATS,
            unit="RULE",
            flags=("--rule",),
        ),
    ] = ()
    text_encoder_bits: Annotated[
        str | None,
        Option(
            "Bits of the text encoders' linear layers, such as w4a16, or none for float; by default "
            "w4a16 from 1 GiB in float32 on.",
            FORMATS,
            unit="BITS",
        ),
    ] = None

    @property
    def resolved_bits(self) -> str:
        """Bits of weights and activations."""
        return DEFAULT_BITS if self.bits is None else self.bits
