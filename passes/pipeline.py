"""The passes in order, and the driver that checks the graph after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import onnx
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.skeleton import (
    BLOCK_DOMAIN,
    Kind,
    Traced,
    assemble,
    is_placeholder,
    renamed_block,
)
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.passes.base import Pass, PassReport
from fp4dit_onnx.passes.canonical_linear import CanonicalLinear
from fp4dit_onnx.passes.constant_reshape import ConstantReshape
from fp4dit_onnx.passes.drop_identity import DropIdentity
from fp4dit_onnx.passes.fold_constants import FoldConstants
from fp4dit_onnx.passes.fold_factor import FoldFactor
from fp4dit_onnx.passes.fuse_attention import FuseAttention
from fp4dit_onnx.passes.fuse_gelu import FuseGelu
from fp4dit_onnx.passes.fuse_linear import FuseLinear
from fp4dit_onnx.passes.fuse_norm import FuseNorm
from fp4dit_onnx.passes.fuse_transform import FuseTransform
from fp4dit_onnx.passes.insert_branch import InsertBranch
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.mend_key_transpose import MendKeyTranspose
from fp4dit_onnx.passes.mend_split import MendSplit
from fp4dit_onnx.passes.mend_squeeze import MendSqueeze
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pack_weights import PackWeights
from fp4dit_onnx.passes.quantize_attention import QuantizeAttention, part_names
from fp4dit_onnx.spec.state import LayerLayout, Layout, QuantizedState
from fp4dit_onnx.spec.transforms import TRANSFORMS

__all__ = ["float_passes", "quantize_passes", "quantized_graph", "run_passes"]

_Cleaned = tuple[frozenset[str], onnx.ModelProto, tuple[PassReport, ...]]
"""A graph's parameters, the graph after `float_passes`, and their reports."""


def float_passes(parameters: frozenset[str]) -> tuple[Pass, ...]:
    """Clean up what torch.onnx emits; the result is a float model that ONNX Runtime loads."""
    return (
        MendSqueeze(),
        MendSplit(),
        DropIdentity(),
        FoldConstants(parameters),
        MendKeyTranspose(),
        CanonicalLinear(),
        ConstantReshape(),
    )


def quantize_passes(
    state: QuantizedState | Layout, parameters: frozenset[str], form: str
) -> tuple[Pass, ...]:
    """Put the quantized state into a cleaned float graph, in the `form` asked for."""
    both = (FuseTransform(one) for one in TRANSFORMS.values() if one.quantizer)
    fuse: tuple[Pass, ...] = (
        (FoldFactor(), *both, FuseGelu(), FuseNorm(parameters), FuseLinear(), FuseAttention())
        if form == "fused"
        else ()
    )
    return (
        InsertBranch(state),
        InsertQdq(state),
        QuantizeAttention(state),
        PackWeights(state),
        *fuse,
        NameTensors(parameters, frozenset((*state.layers, *part_names(state)))),
    )


def run_passes(
    model: onnx.ModelProto,
    passes: Sequence[Pass],
    done: Callable[[], None] = lambda: None,
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """Run `passes` in order; after each the model is checked in full and its shapes are inferred.

    Args:
        model: not changed.
        passes: in order.
        done: called after each pass.

    Raises:
        Fp4DitError: a pass left an invalid model; names the pass.
    """
    reports: list[PassReport] = []
    given, model = model, onnx.ModelProto()
    model.CopyFrom(given)  # a graph shares its constants with the model that it comes from
    for step in passes:
        graph = gs.import_onnx(model)
        reports.append(step(graph))
        model = _exported(graph)
        try:
            _check_and_infer(model)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise Fp4DitError(f"pass {step.name} left an invalid model: {error}") from error
        done()
    return model, tuple(reports)


def quantized_graph(
    traced: Traced, layout: Layout, form: str, done: Callable[[], None] = lambda: None
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """Run all passes on the shell and on each kind of block, and put the blocks into the shell.

    Blocks whose layers are quantized in different ways are of different kinds from here on.

    Args:
        traced: the graphs, in float.
        layout: what is quantized, and how.
        form: ``fused`` or ``qdq``.
        done: called for each block.

    Returns:
        A model whose weights are placeholders, and the reports of each pass, summed over blocks.
    """
    shell, reports = _quantized(_cleaned(traced.shell), layout, form)
    cleaned = {kind.first: _cleaned(kind.model) for kind in traced.kinds.values()}
    found: dict[tuple[str, str], tuple[Kind, tuple[PassReport, ...]]] = {}
    kinds = {}
    for block, kind in traced.kinds.items():
        own = _renamed(layout, block, kind.first)
        key = (kind.first, repr(own))
        if key not in found:
            model, passed = _quantized(cleaned[kind.first], own, form)
            found[key] = Kind(kind.first, model), passed
        kinds[block], passed = found[key]
        rename = partial(renamed_block, old=kind.first, new=block)
        reports = tuple(a.plus(b, rename) for a, b in zip(reports, passed, strict=True))
        done()
    return assemble(Traced(shell, kinds)), reports


def _renamed(layout: Layout, block: str, first: str) -> Layout:
    """What is quantized in `block`, under the names of the block `first`."""
    own = f"{block}."

    def renamed(layer: LayerLayout) -> LayerLayout:
        named = (
            one.named_after(renamed_block(one.owner, block, first)) for one in layer.spec.input_ops
        )
        branch = layer.spec.branch
        if branch is not None and branch.shared:
            branch = replace(branch, shared=renamed_block(branch.shared, block, first))
        spec = replace(layer.spec, input_ops=tuple(named), branch=branch)
        return replace(layer, name=renamed_block(layer.name, block, first), spec=spec)

    ours = [renamed(layer) for old, layer in layout.layers.items() if old.startswith(own)]
    layers = {layer.name: layer for layer in ours}
    attention = {
        renamed_block(old, block, first): fmt
        for old, fmt in layout.attention.items()
        if old.startswith(own)
    }
    return Layout(layers, attention)


def _cleaned(model: onnx.ModelProto) -> _Cleaned:
    """One graph after the passes that do not depend on what is quantized."""
    parameters = frozenset(t.name for t in model.graph.initializer)
    return (parameters, *run_passes(model, float_passes(parameters)))


def _quantized(
    given: _Cleaned, layout: Layout, form: str
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """All passes on one graph, with the part of `layout` whose weights it holds."""
    parameters, model, done = given
    layers = {n: layer for n, layer in layout.layers.items() if f"{n}.weight" in parameters}
    modules = {n.rpartition(".")[0].rpartition(".")[0] for n in parameters}
    attention = {n: f for n, f in layout.attention.items() if n in modules}
    own = Layout(layers, attention)
    model, reports = run_passes(model, quantize_passes(own, parameters, form))
    return model, (*done, *reports)


def _exported(graph: gs.Graph) -> onnx.ModelProto:
    domains = [onnx.helper.make_opsetid("", ops.OPSET)]
    used = {node.domain for node in graph.nodes}
    for domain, version in ((ops.DOMAIN, ops.VERSION), (BLOCK_DOMAIN, 1)):
        if domain in used:
            domains.append(onnx.helper.make_opsetid(domain, version))
    graph.import_domains = domains
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = ops.IR_VERSION
    ops.attach_functions(model)
    return model


def _check_and_infer(model: onnx.ModelProto) -> None:
    """Check `model` in full and give it the shapes found; placeholders stand in as inputs for that."""
    subject = onnx.ModelProto()
    subject.CopyFrom(model)
    absent = [t for t in subject.graph.initializer if is_placeholder(t)]
    for tensor in absent:
        subject.graph.initializer.remove(tensor)
        subject.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    onnx.checker.check_model(subject, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(subject, strict_mode=False, data_prop=True)
    for field in ("value_info", "output"):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(getattr(inferred.graph, field))
