"""What is verified, and the lines of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.bundle.names import WEIGHT, part_of
from fp4dit_onnx.bundle.probe import load_model
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.files import BUNDLE
from fp4dit_onnx.files.settings import transformer_settings
from fp4dit_onnx.spec.low_rank import LowRank, branch_name, slot_name
from fp4dit_onnx.spec.transforms import tensor_name

__all__ = ["Check", "Subject", "Verification", "float_copies"]

FLOAT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was compared.
        ok: whether it holds.
        detail: what it covered or, if it does not hold, the first node at fault.
        bound: what was required.
        found: what was measured.
    """

    name: str
    ok: bool
    detail: str
    bound: str
    found: str


@dataclass(frozen=True)
class Verification:
    """All checks of a bundle."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


@dataclass(frozen=True)
class Subject:
    """A bundle's transformer and what is known about it."""

    bundle: Bundle
    model: onnx.ModelProto
    family: Family
    config: Mapping[str, Any]

    @classmethod
    def load(cls, bundle: Bundle) -> Subject:
        """Read it; raises BundleError where it is none."""
        source = bundle.manifest.source
        path = bundle.folder / "transformer" / "config.json"
        config = transformer_settings(path, BUNDLE)
        family = family_of(source.pipeline, source.transformer)
        return cls(bundle, load_model(bundle.transformer), family, config)

    @property
    def fused(self) -> bool:
        """Whether linears are one node each."""
        return any(ops.has_role(node, "linear") for node in self.model.graph.node)


def float_copies(manifest: Manifest, tensors: Iterable[onnx.TensorProto]) -> list[str]:
    """Names of a graph's float tensors that have the shape of a quantized weight, and are none of ours.

    Under whatever name: a folded transpose is a copy too.
    """
    rows = manifest.layers
    shapes = [shape for row in rows for shape in (row.shape, row.shape[::-1])]
    kept = {row.name + WEIGHT for row in manifest.skipped}
    kept |= {part_of(row.name, "scale") for row in rows}
    kept |= {slot_name(row.name, role) for row in rows for role in LowRank.roles}
    kept |= {branch_name(row.name, role) for row in rows if row.branch for role in LowRank.roles}
    kept |= {tensor_name(o.owner, role) for row in rows for o in row.input_ops for role in o.roles}
    return [
        t.name
        for t in tensors
        if t.data_type in FLOAT_TYPES and tuple(t.dims) in shapes and t.name not in kept
    ]
