"""The manifest as a report reads it: typed, with an error that names an entry at fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.bundle import EVIDENCE, MANIFEST, REPORT, Bundle
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import WrongType, decoded
from fp4dit_onnx.report.data import Evidence, read_evidence
from fp4dit_onnx.runtime.sampling import Sampling

__all__ = ["Facts", "Layer", "Subject", "open_subject"]


@dataclass(frozen=True)
class Layer:
    """A quantized linear; see docs/design.md, quantization.json."""

    name: str
    weight_format: str
    activation_format: str | None
    group_size: int
    shape: tuple[int, ...]
    weights: int
    bytes: int
    bytes_float32: int
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None

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
    """Sums over the layers, and the whole transformer."""

    weights: int
    bytes: int
    bytes_float32: int
    bits_per_weight: float
    transformer_bytes: int
    transformer_bytes_float32: int


@dataclass(frozen=True)
class Left:
    """Something that stays as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Pass:
    """What a graph pass did."""

    name: str
    rewritten: int
    skipped: tuple[Left, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Rule:
    """Formats by layer name."""

    pattern: str
    weight: str
    activation: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What was asked for."""

    bits: str
    method: str
    activation: str | None
    attention: str | None
    group_size: int
    rules: tuple[Rule, ...]
    search: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The float pipeline."""

    name: str
    pipeline: str
    transformer: str
    family: str


@dataclass(frozen=True)
class Facts:
    """The manifest's entries that a report shows."""

    recipe: Recipe
    sampling: Sampling
    layers: tuple[Layer, ...]
    totals: Totals
    skipped: tuple[Left, ...]
    passes: tuple[Pass, ...]
    source: Source
    versions: Mapping[str, str]
    files: Mapping[str, File]
    attention: Mapping[str, str] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    text_encoders: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    model_sqnr_db: float | None = None
    target: str = ""

    @property
    def own_files(self) -> dict[str, File]:
        """All files but the report's."""
        return {k: v for k, v in self.files.items() if k not in (REPORT, EVIDENCE)}


@dataclass(frozen=True)
class Subject:
    """A bundle to report on.

    Attributes:
        name: as the page calls it.
        facts: from its manifest.
        evidence: what was measured; None if nothing was.
        whole: whether it can draw.
    """

    name: str
    facts: Facts
    evidence: Evidence | None
    whole: bool


def open_subject(bundle: Bundle, name: str, evidence: Evidence | None = None) -> Subject:
    """The facts and the evidence of a bundle.

    Args:
        bundle: the bundle.
        name: as the page calls it.
        evidence: in place of what the bundle keeps.

    Raises:
        BundleError: an entry of the manifest or of the evidence is absent or of another type.
    """
    try:
        facts = decoded(Facts, bundle.manifest)
    except WrongType as error:
        raise BundleError(
            f"{bundle.folder / MANIFEST}: {error}; export the bundle again"
        ) from None
    kept = read_evidence(bundle.folder / EVIDENCE) if evidence is None else evidence
    return Subject(name, facts, kept, bundle.whole)
