"""Checks that a bundle computes what its state says, by every evaluator.

Nodes are compared on the same recorded inputs, so codes must be equal bit for bit and linears equal
up to float32 rounding. Whole models cannot be compared this way: a float32 rounding difference can
move a value across a rounding threshold of a quantizer; it then differs by a grid step, and moves
later values across theirs. In the worst case the quantization errors of two evaluators are
independent, and their distance is sqrt(2) times one error: whole models may differ by at most that,
3 dB less than the simulation's distance from the float model on the same inputs, which the export
stored in the manifest. If the export never ran the float model, the bound is found here from the
simulation with float activations, since only activations are rounded at run time.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.manifest import DEFAULT_TARGET
from fp4dit_onnx.bundle.names import codes_of
from fp4dit_onnx.bundle.probe import (
    attention_formats,
    attributes,
    custom_nodes,
    exposed,
    node_feed,
    node_model,
    read_state,
)
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.numbers.compare import Comparison, sqnr_db
from fp4dit_onnx.runtime.library import Library
from fp4dit_onnx.runtime.providers import Placement, placed_on
from fp4dit_onnx.runtime.session import session, with_library
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.progress import Reporter, SilentReporter
from fp4dit_onnx.targets import target_by_name
from fp4dit_onnx.verification.cases import CASES, case_inputs
from fp4dit_onnx.verification.converted import converted_checks
from fp4dit_onnx.verification.node_checks import LIBRARY, TORCH, NodeChecks
from fp4dit_onnx.verification.subject import Check, Subject, Verification, float_copies

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.parity import Simulation

__all__ = ["Check", "Verification", "verify"]

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], list[Array]]
INDEPENDENT_DB = 20 * math.log10(math.sqrt(2))
NOTHING_QUANTIZED_DB = 90.0
"""Where no layer is quantized evaluators differ by float32 rounding alone: 2^-24 is 144 dB per node."""


def verify(
    bundle: Path | str,
    *,
    quick: bool = False,
    device: str | Placement = CPU,
    reporter: Reporter | None = None,
) -> Verification:
    """Check a bundle.

    Args:
        bundle: its folder.
        quick: one case instead of several, and no ONNX reference evaluation of the whole model.
        device: where ONNX Runtime runs the models without the library, and with it too if it has
            kernels for the device, see `session`; the kernels of the CPU are compared with both.
        reporter: progress.

    Raises:
        BundleError: no bundle, or files that do not fit its manifest.
        OutOfMemoryError: the device has too little memory.
        UsageError: it cannot be used.
    """
    report = reporter or SilentReporter()
    placed = placed_on(device)
    opened = Bundle.open(bundle)
    target = target_by_name(opened.manifest.target)
    if target.name != DEFAULT_TARGET and not target.references:
        raise BundleError(
            f"{opened.folder} is for the target {target.name}: expected a bundle of our operators, "
            "whose nodes are checked one by one; verify the original bundle"
        )
    opened.check_files(deep=True)
    checks = [Check("files", ok=True, detail="sizes and sha256", bound="equal", found="equal")]
    subject = Subject.load(opened)
    cases = CASES[:1] if quick else CASES
    if target.references:
        return Verification((*checks, *converted_checks(subject, target, len(cases), placed)))
    checks += _structure(subject)
    with (
        scratch_folder() as folder,
        report.stage("verifying", len(cases), "cases") as advance,
    ):
        evaluators = _Evaluators(subject, Path(folder), placed, whole_reference=not quick)
        for index in range(len(cases)):
            checks += evaluators.checks(index)
            advance(1)
        checks.append(evaluators.counters())
    return Verification(tuple(checks))


def _structure(subject: Subject) -> Iterator[Check]:
    """The file holds packed weights and no float copy, its attentions' pairs, its operators' meaning."""
    manifest = subject.bundle.manifest
    rows = {row.name: row for row in manifest.layers}
    copies = float_copies(manifest, subject.model.graph.initializer)
    names = {t.name for t in subject.model.graph.initializer}
    absent = [name for name in rows if codes_of(name) not in names]
    at_fault = [*copies, *absent]
    yield Check(
        "packed weights",
        ok=not at_fault,
        detail=at_fault[0] if at_fault else f"{len(rows)} layers",
        bound="codes for every layer, no float copy",
        found=f"{len(copies)} float copies, {len(absent)} layers without codes",
    )
    attention, found = manifest.attention, attention_formats(subject.model.graph)
    differing = sorted(m for m in {*attention, *found} if attention.get(m) != found.get(m))
    yield Check(
        "attention",
        ok=not differing,
        detail=differing[0] if differing else f"{len(found)} modules",
        bound="q, k and v in the manifest's formats",
        found=f"{len(differing)} others",
    )
    used = {n.op_type for n in subject.model.graph.node if n.domain == ops.DOMAIN}
    bodies = {f.name for f in subject.model.functions}
    yield Check(
        "function bodies",
        ok=used <= bodies,
        detail=", ".join(sorted(used)),
        bound="one for each operator used",
        found=", ".join(sorted(used - bodies)) or "all",
    )


class _Evaluators:
    """Every way to run the model, each built once."""

    def __init__(
        self, subject: Subject, folder: Path, placed: Placement, *, whole_reference: bool
    ) -> None:
        self._subject = subject
        everything, nodes = exposed(subject.model), node_model(subject.model)
        onnx.save(everything, folder / "exposed.onnx")
        onnx.save(nodes, folder / "nodes.onnx")
        self._names = [o.name for o in everything.graph.output]
        self._exposed = session(folder / "exposed.onnx")
        self._nodes = nodes
        stock = "stock ONNX Runtime" + ("" if placed.on_cpu else f" on {placed.name}")
        bodies = partial(session, device=placed, library=False)
        self._node_runs: dict[str, Run] = {
            LIBRARY: _runner(session(folder / "nodes.onnx")),
            stock: _runner(bodies(folder / "nodes.onnx")),
            "ONNX reference": _runner(ReferenceEvaluator(nodes)),
        }
        self._ours = _runner(session(subject.bundle.transformer))
        self._whole: dict[str, Run] = {stock: _runner(bodies(subject.bundle.transformer))}
        if not placed.on_cpu and with_library(placed, None):
            kernels, who = (
                partial(session, device=placed, library=True),
                f"{LIBRARY} on {placed.name}",
            )
            self._node_runs[who] = _runner(kernels(folder / "nodes.onnx"))
            self._whole[who] = _runner(kernels(subject.bundle.transformer))
        if whole_reference:
            self._whole["ONNX reference"] = _runner(ReferenceEvaluator(subject.model))
        self._simulation = self._simulated()
        if self._simulation is not None:
            run = self._simulation
            self._whole[TORCH] = lambda feed: [run(feed)]
        self._library = Library()
        self._library.reset_counters()
        self._calls = 0

    def _simulated(self) -> Simulation | None:
        """The torch network from the bundle's tensors; None where torch or diffusers is absent."""
        if not self._subject.fused or not _has_torch():
            return None
        from fp4dit_onnx.calibration.parity import Simulation

        subject = self._subject
        parameters = {t.name: numpy_helper.to_array(t) for t in subject.model.graph.initializer}
        return Simulation(subject.family, subject.config, parameters, read_state(subject.model))

    def checks(self, index: int) -> Iterator[Check]:
        """All comparisons of one case."""
        feed = case_inputs(self._subject.family, self._subject.config, index)
        values = self._exposed.run(self._names, feed)
        self._calls += 1
        tensors = {**feed, **dict(zip(self._names, values, strict=True))}
        label = str(CASES[index])
        views = custom_nodes(self._subject.model)
        node_inputs = node_feed(self._nodes, tensors)
        outputs = [o.name for o in self._nodes.graph.output]
        for who, run in self._node_runs.items():
            found = dict(zip(outputs, run(node_inputs), strict=True))
            if who == LIBRARY:
                self._calls += 1
            yield _node_check(f"{who} nodes", label, views, NodeChecks(tensors, found, who))
        if _has_torch() and any(ops.has_role(view.node, "quantize") for view in views):
            yield _node_check("PyTorch codes", label, views, NodeChecks(tensors, tensors, TORCH))
        ours = self._ours(feed)[0]
        self._calls += 1
        bound = self._bound(index, feed)
        if bound is None:  # without torch; the nodes carry the proof
            return
        for who, run in self._whole.items():
            yield self._whole_check(who, index, ours, run(feed)[0], bound)

    def _bound(self, index: int, feed: Mapping[str, Array]) -> float | None:
        """How near whole models must be, in dB; None where nobody knows."""
        known = self._subject.bundle.manifest.case_sqnr_db
        if not known:  # the export measured nothing
            own = self._activation_error(feed)
            return None if own is None else own - INDEPENDENT_DB
        own = known[index]
        return NOTHING_QUANTIZED_DB if own is None else float(own) - INDEPENDENT_DB

    def _activation_error(self, feed: Mapping[str, Array]) -> float | None:
        """The error of quantizing activations alone: nothing else is rounded at run time."""
        if self._simulation is None:
            return None
        own = sqnr_db(self._simulation(feed, float_activations=True), self._simulation(feed))
        return NOTHING_QUANTIZED_DB + INDEPENDENT_DB if math.isinf(own) else own

    def _whole_check(
        self, who: str, index: int, ours: Array, theirs: Array, bound: float
    ) -> Check:
        found = sqnr_db(theirs, ours) if ours.shape == theirs.shape else float("nan")
        return Check(
            f"{who}, whole model",
            ok=found >= bound,
            detail=str(CASES[index]),
            bound=f">= {bound:.1f} dB",
            found=f"{found:.1f} dB",
        )

    def counters(self) -> Check:
        """The library's own count of kernel calls against what the graph asks for."""
        wanted: dict[str, int] = {}
        for view in custom_nodes(self._subject.model):
            op = ops.OPERATORS[view.node.op_type]
            if op.kernel is not None:
                key = f"{op.name}/{op.kernel(attributes(view.node))}"
                wanted[key] = wanted.get(key, 0) + self._calls
        calls = self._library.counters()
        found: dict[str, int] = {}
        isas = self._library.isas
        allowed = isas[isas.index(self._library.isa) :]  # one without a kernel uses a lower one's
        for key, count in calls.items():
            name, kind, isa = key.split("/")
            record = ops.OPERATORS.get(name)
            if record and record.kernel and isa in allowed:
                found[f"{name}/{kind}"] = found.get(f"{name}/{kind}", 0) + count
        return Check(
            "kernel counter",
            ok=found == wanted,
            detail=f"on {self._library.isa} in {self._calls} runs",
            bound=_listed(wanted),
            found=_listed(found),
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in sorted(counts.items())) or "none"


def _has_torch() -> bool:
    return all(importlib.util.find_spec(p) is not None for p in ("torch", "diffusers"))


def _runner(evaluator: Any) -> Run:
    def run(feed: Mapping[str, Any]) -> list[Any]:
        # Its Sigmoid takes what overflows for large x too, and then does not use it.
        with np.errstate(over="ignore", invalid="ignore"):
            return list(evaluator.run(None, dict(feed)))

    return run


def _node_check(name: str, label: str, views: list[Any], checks: NodeChecks) -> Check:
    """Run a comparison over all nodes; the first one that fails, in graph order, is named."""
    worst, compared = 0.0, 0
    for view in views:
        outcome: Comparison | None = checks.compare(view)
        if outcome is None:
            continue
        compared += 1
        worst = max(worst, outcome.worst)
        if not outcome.ok:
            detail = f"{label}: first at node {view.node.name}: {outcome.detail}"
            return Check(name, ok=False, detail=detail, bound=checks.bound, found="diverges")
    if compared == 0 and views:
        raise BundleError(f"nothing to compare for {name}: the model's nodes are of unknown kinds")
    found = f"largest share of the bound {worst:.2f}" if worst else "equal"
    return Check(
        name, ok=True, detail=f"{label}: {compared} nodes", bound=checks.bound, found=found
    )
