"""quantization.json as dataclasses: the description of a bundle, read, checked and written here.

`docs/design.md` section 4 has the keys. A number that JSON lacks, such as the SQNR of an exact
layer, is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fp4dit_onnx.bundle.calibration_notes import Calibrated, Compared, Spent
from fp4dit_onnx.bundle.names import EVIDENCE, REPORT
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import (
    BUNDLE,
    Count,
    Positive,
    checked,
    json_text,
    plain,
    read_json,
    shown,
)
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.spec.recipe import Recipe
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import AS_KEYS
from fp4dit_onnx.system.resources import Used
from fp4dit_onnx.values import real, whole

__all__ = [
    "DEFAULT_TARGET",
    "FORMAT_VERSION",
    "Converted",
    "Encoder",
    "File",
    "Kept",
    "Layer",
    "Manifest",
    "Outliers",
    "PassNote",
    "Sampling",
    "Source",
    "Totals",
    "Weight",
    "manifest_text",
    "read_manifest",
]

FORMAT_VERSION = 1
DEFAULT_TARGET = "fp4dit"
"""Of bundles as export writes them."""
LARGEST_GUIDANCE = 1000.0


@dataclass(frozen=True)
class Sampling:
    """How to sample; checks itself.

    Attributes:
        steps: calls of the transformer, from 1.
        guidance: weight of classifier-free guidance, 0 to `LARGEST_GUIDANCE`; at most 1 means none.
        height: of the image, in pixels, from 1.
        width: of the image, in pixels, from 1.
        max_sequence_length: tokens that a prompt is padded or cut to, where the family lets one
            choose: PixArt; 0 where there is no text.

    Raises:
        UsageError: a value of another type or out of its range.
    """

    steps: int
    guidance: float
    height: int
    width: int
    max_sequence_length: int

    def __post_init__(self) -> None:
        """Refuse what no image can be made with, whatever the model."""
        for name, least in (("steps", 1), ("height", 1), ("width", 1), ("max_sequence_length", 0)):
            whole(name, getattr(self, name), least)
        real("guidance", self.guidance, 0, LARGEST_GUIDANCE)


@dataclass(frozen=True)
class Weight:
    """What a quantized weight takes and loses.

    Attributes:
        shape: (N, K).
        bytes: of packed codes and scales.
        bytes_float32: of the float32 weight.
        weight_sqnr_db: signal over quantization noise of the weight.
        output_sqnr_db: the same of the layer's output; None where nothing was run.
    """

    shape: tuple[Positive, Positive]
    bytes: Count
    bytes_float32: Count
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None

    @property
    def weights(self) -> int:
        """N * K."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Outliers:
    """What makes a layer's inputs hard to quantize, on rows of them that were recorded while sampling.

    Attributes:
        input_kurtosis: see `numbers.outliers.kurtosis`; of a row over its channels.
        output_kurtosis: the same of the float layer's output.
        channels: of the inputs that are outliers, see `numbers.outliers.outlier_channels`.
        gains_db: what would help -> how far it raises the SQNR of the layer's output where weight and
            activations are rounded to nearest in the layer's formats.
    """

    input_kurtosis: float
    output_kurtosis: float
    channels: tuple[Count, ...] = ()
    gains_db: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A quantized linear of the transformer; see `Weight`.

    Attributes:
        name: torch name.
        weight_format: of the codes.
        activation_format: None for float.
        group_size: input channels that share a scale.
        scale_format: of the weight's scales.
        activation_group_size: inputs of a token that share a scale, None for all.
        input_ops: what is done to its inputs before, a key each.
        wide: how many of its first inputs, after `input_ops`, have codes of the weight format; those
            after them have a sign alone. None for all.
        weight_kurtosis: of the float weight's rows, see `numbers.outliers.kurtosis`.
        outliers: of its inputs; None where nothing was run.
        largest: of its inputs, where they have one constant scale; see `TensorSpec`.
        branch: rank of the branch beside it, None for none; its bytes are counted.
    """

    name: str
    weight_format: str
    activation_format: str | None
    group_size: Positive
    shape: tuple[Positive, Positive]
    weights: Count
    bytes: Count
    bytes_float32: Count
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    scale_format: str = DEFAULT_SCALE
    activation_group_size: Positive | None = None
    input_ops: tuple[Transform, ...] = field(default=(), metadata=AS_KEYS)
    wide: Positive | None = None
    weight_kurtosis: float | None = None
    outliers: Outliers | None = None
    largest: float | None = None
    branch: Positive | None = None

    @property
    def formats(self) -> str:
        """Of weights and activations."""
        return f"{self.weight_format} / {self.activation_format or 'float'}"

    @property
    def bits(self) -> float:
        """Of a weight, scales included."""
        return 8 * self.bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Totals:
    """Sums over the quantized layers, and the whole transformer before and after."""

    layers: Count
    weights: Count
    bytes: Count
    bytes_float32: Count
    bits_per_weight: float
    transformer_bytes: Count
    transformer_bytes_float32: Count


@dataclass(frozen=True)
class Kept:
    """Something that stays as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PassNote:
    """What a graph pass did: places rewritten, and those left alone."""

    name: str
    rewritten: Count
    skipped: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of the bundle."""

    sha256: str
    bytes: Count


@dataclass(frozen=True)
class Source:
    """The float pipeline.

    Attributes:
        name: of its folder.
        pipeline: class of diffusers.
        transformer: class of diffusers.
        family: of the transformer.
        lora: names of the files that were added to its weights, with their scales.
        repository: of a model hub, OWNER/NAME, where the folder is in its cache.
        licence: what its model card says of it, see `card.licence_of`.
    """

    name: str
    pipeline: str
    transformer: str
    family: str
    lora: tuple[str, ...] = ()
    repository: str | None = None
    licence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoder:
    """A text encoder.

    Attributes:
        class_name: transformers' class.
        recipe: of its linears; None where they stay in float.
        layers: by torch name.
        worst_weight_sqnr_db: of its layers.
    """

    class_name: str = field(metadata={"key": "class"})
    recipe: Recipe | None
    layers: Mapping[str, Weight]
    worst_weight_sqnr_db: float | None = None


@dataclass(frozen=True)
class Converted:
    """A model that was rewritten for another target.

    Attributes:
        bytes: with its data.
        activations: how they are quantized, in words.
        ranges: largest magnitude of each activation that has a fixed scale.
        kept: layers that keep their function bodies, and why.
    """

    bytes: Count
    activations: str = "as exported"
    ranges: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """All of quantization.json.

    Attributes:
        recipe: what was asked for.
        method: as a recipe file has it, with all settings.
        sampling: the bundle's defaults.
        layers: the quantized linears.
        totals: sums over them.
        skipped: linears that stay in float.
        passes: in their order.
        source: the float pipeline.
        versions: Python and packages of the export.
        case_sqnr_db: of the simulation against the float model on the inputs of `verify`; empty
            where the float model was not run.
        files: by path, every other file.
        attention: format of q, k and v by attention.
        text_encoders: by folder.
        model_sqnr_db: as `case_sqnr_db`, on calls of the sampler.
        calibrated: where the float model was run, None where it was not.
        resources: what the export took.
        largest_size: of a side of an image, in pixels; None where there is no limit.
        target: what the graphs are made of.
        converted: by folder, the models that were rewritten for it.
        choices: sets of choices that calibration compared with each other.
        budget: of bits or quality, None for none.
        format_version: of this format.
    """

    recipe: Recipe
    sampling: Sampling
    layers: tuple[Layer, ...]
    totals: Totals
    skipped: tuple[Kept, ...]
    passes: tuple[PassNote, ...]
    source: Source
    versions: Mapping[str, str]
    case_sqnr_db: tuple[float | None, ...]
    files: Mapping[str, File]
    method: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[str, str] = field(default_factory=dict)
    text_encoders: Mapping[str, Encoder] = field(default_factory=dict)
    model_sqnr_db: float | None = None
    calibrated: Calibrated | None = None
    resources: Used = field(default_factory=Used)
    largest_size: Positive | None = None
    target: str = DEFAULT_TARGET
    converted: Mapping[str, Converted] = field(default_factory=dict)
    choices: tuple[Compared, ...] = ()
    budget: Spent | None = None
    format_version: int = FORMAT_VERSION

    @property
    def own_files(self) -> dict[str, File]:
        """All files but the report's."""
        return {k: v for k, v in self.files.items() if k not in (REPORT, EVIDENCE)}


def manifest_text(manifest: Manifest) -> bytes:
    """The content of quantization.json."""
    content = plain(manifest)
    return json_text({"format_version": content.pop("format_version"), **content})


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`.

    Raises:
        BundleError: unreadable, of another version, or with an entry that is absent, of another
            type or out of range; names the first one at fault.
    """
    content = read_json(path, "the bundle's manifest", BUNDLE)
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{path} has format_version {shown(version)}: this program reads {FORMAT_VERSION}; make it "
            "again with  fp4dit-onnx export PIPELINE -o DIR, or install the version that made it"
        )
    manifest = checked(Manifest, content, str(path), BUNDLE)
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
            raise BundleError(f"{path}: file {name!r} lies outside the bundle; {BUNDLE.cure}")
    return manifest
