"""The passes in order, and the driver that checks the graph after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.passes.base import Pass, PassReport
from fp4dit_onnx.passes.canonical_linear import CanonicalLinear
from fp4dit_onnx.passes.constant_reshape import ConstantReshape
from fp4dit_onnx.passes.drop_identity import DropIdentity
from fp4dit_onnx.passes.fold_constants import FoldConstants
from fp4dit_onnx.passes.fuse_attention import FuseAttention
from fp4dit_onnx.passes.fuse_linear import FuseLinear
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.mend_key_transpose import MendKeyTranspose
from fp4dit_onnx.passes.mend_split import MendSplit
from fp4dit_onnx.passes.mend_squeeze import MendSqueeze
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pack_weights import PackWeights
from fp4dit_onnx.passes.quantize_attention import QuantizeAttention, part_names
from fp4dit_onnx.state import QuantizedState

__all__ = ["float_passes", "quantize_passes", "run_passes"]


def float_passes(parameters: frozenset[str]) -> tuple[Pass, ...]:
    """Mend what torch.onnx emits; the result is a float model that ONNX Runtime loads."""
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
    state: QuantizedState, parameters: frozenset[str], form: str
) -> tuple[Pass, ...]:
    """Put the quantized state into a mended float graph, in the `form` asked for."""
    fuse: tuple[Pass, ...] = (FuseLinear(), FuseAttention()) if form == "fused" else ()
    return (
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
            onnx.checker.check_model(model, full_check=True)
            model = _inferred(model)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise Fp4DitError(f"pass {step.name} left an invalid model: {error}") from error
        done()
    return model, tuple(reports)


def _exported(graph: gs.Graph) -> onnx.ModelProto:
    domains = [onnx.helper.make_opsetid("", ops.OPSET)]
    if any(node.domain == ops.DOMAIN for node in graph.nodes):
        domains.append(onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION))
    graph.import_domains = domains
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = ops.IR_VERSION
    ops.attach_functions(model)
    return model


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(
        model, strict_mode=False, data_prop=True
    )
    return inferred
