"""A bundle as a report reads it: its manifest and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from fp4dit_onnx.bundle.bundle import EVIDENCE, Bundle
from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.report.data import Evidence, read_evidence

__all__ = ["Subject", "open_subject"]


@dataclass(frozen=True)
class Subject:
    """A bundle to report on.

    Attributes:
        name: as the page calls it.
        facts: from its manifest.
        evidence: what was measured; None if nothing was.
        whole: whether it can generate images.
    """

    name: str
    facts: Manifest
    evidence: Evidence | None
    whole: bool


def open_subject(bundle: Bundle, name: str, evidence: Evidence | None = None) -> Subject:
    """The facts and the evidence of a bundle.

    Args:
        bundle: the bundle.
        name: as the page calls it.
        evidence: in place of what the bundle keeps.

    Raises:
        BundleError: an entry of the evidence is absent or of another type.
    """
    kept = read_evidence(bundle.folder / EVIDENCE) if evidence is None else evidence
    return Subject(name, bundle.manifest, kept, bundle.whole)
