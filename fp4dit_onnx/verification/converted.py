"""Checks of a bundle whose linears are an operator of ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx.bundle.names import WEIGHT
from fp4dit_onnx.numbers.compare import within
from fp4dit_onnx.runtime.providers import Placement
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.targets import Target
from fp4dit_onnx.verification.cases import CASES, case_inputs
from fp4dit_onnx.verification.subject import Check, Subject, float_copies

__all__ = ["converted_checks"]

Array = npt.NDArray[Any]
NAME = "stock ONNX Runtime linears"
BOUND = "its numpy reference to a derived bound"


def converted_checks(
    subject: Subject, target: Target, cases: int, placed: Placement
) -> Iterator[Check]:
    """The graph's structure, and ONNX Runtime's linears against their numpy reference.

    Args:
        subject: the bundle.
        target: one with references.
        cases: how many of `CASES`.
        placed: where ONNX Runtime runs it.
    """
    nodes = [n for n in subject.model.graph.node if (n.domain, n.op_type) in target.references]
    yield _structure(subject, nodes)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(subject.model)
    known = {tensor.name: tensor for tensor in subject.model.graph.initializer}
    given = {value.name for value in subject.model.graph.input}
    touched = {name for node in nodes for name in (*node.input, *node.output)}
    names = sorted(touched - known.keys() - given)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with scratch_folder() as folder:
        path = Path(folder) / "exposed.onnx"
        onnx.save(exposed, path)
        runtime = session(path, device=placed, library=False)
        for index in range(cases):
            feed = case_inputs(subject.family, subject.config, index)
            tensors = {**feed, **dict(zip(names, runtime.run(names, feed), strict=True))}
            check = _compared(nodes, target, known, tensors, str(CASES[index]))
            yield check if placed.on_cpu else replace(check, name=f"{NAME} on {placed.name}")


def _structure(subject: Subject, nodes: Iterable[onnx.NodeProto]) -> Check:
    """Every layer is such a node, but those that the manifest names, and has no float copy."""
    manifest = subject.bundle.manifest
    of_node = {name for node in nodes for name in node.input[1:]}
    kept = manifest.converted["transformer"].kept if manifest.converted else {}
    rest = [t for t in subject.model.graph.initializer if t.name not in of_node]
    copies = float_copies(manifest, rest)
    absent = [
        r.name for r in manifest.layers if r.name + WEIGHT not in of_node and r.name not in kept
    ]
    at_fault = [*copies, *absent]
    return Check(
        "packed weights",
        ok=not at_fault,
        detail=at_fault[0]
        if at_fault
        else f"{len(manifest.layers)} layers, {len(kept)} as bodies",
        bound="a packed weight for every layer, no float copy",
        found=f"{len(copies)} float copies, {len(absent)} layers without a packed weight",
    )


def _compared(
    nodes: Iterable[onnx.NodeProto],
    target: Target,
    known: Mapping[str, onnx.TensorProto],
    tensors: Mapping[str, Array],
    label: str,
) -> Check:
    """One case; the first node that fails, in graph order, is named."""
    worst, count = 0.0, 0
    for node in nodes:
        inputs = [
            numpy_helper.to_array(known[name]) if name in known else tensors[name]
            for name in node.input
        ]
        expected, bound = target.references[node.domain, node.op_type](node, inputs)
        found = tensors[node.output[0]].astype(np.float64)
        outcome = within(expected, found, bound)
        if not outcome.ok:
            detail = f"{label}: first at node {node.name}: {outcome.detail}"
            return Check(NAME, ok=False, detail=detail, bound=BOUND, found="diverges")
        worst, count = max(worst, outcome.worst), count + 1
    found_text = f"largest share of the bound {worst:.2f}"
    return Check(NAME, ok=True, detail=f"{label}: {count} nodes", bound=BOUND, found=found_text)
