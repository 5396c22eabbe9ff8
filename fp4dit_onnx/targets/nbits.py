"""Linears as MatMulNBits, an operator of ONNX Runtime's own that several execution providers have.

For providers without kernels of ours: WebGPU, CUDA without our library, and others that leave it to
the CPU. The weights are exactly the bundle's: e1m2 and int4 in 4 bits, e2m1, e3m0 and others whose
grid integers are bytes in 8. Layers that the operator cannot hold keep the form of `inline`.
Activations and attention are float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.names import CODES
from fp4dit_onnx.bundle.probe import attributes, load_graph
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatArray, format_by_name
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.targets import deferred
from fp4dit_onnx.targets.deferred import Deferred, as_bytes
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.targets.matmul_nbits import (
    bits_of,
    block_of,
    linear,
    repeated,
    rounding_bound,
    stored,
    values,
)
from fp4dit_onnx.targets.rewriting import Array, Nodes, Rewriter
from fp4dit_onnx.targets.target import Target

__all__ = ["DOMAIN", "MATMUL", "NBITS", "NBITS_HALF", "nbits"]

DOMAIN = "com.microsoft"
MATMUL = "MatMulNBits"
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
DOUBLE = onnx.TensorProto.DOUBLE
_node = onnx.helper.make_node


def nbits(model: onnx.ModelProto, *, half: bool = False) -> onnx.ModelProto:
    """`model` with MatMulNBits in place of its quantized linears.

    Args:
        model: initializers with values; it is not changed.
        half: compute them in float16.

    Raises:
        UsageError: an operator without a standard form.
    """
    result, rewriter = _rewritten(model, "", half)
    deferred.fill(result, rewriter.tensors)
    return result


def _rewritten(model: onnx.ModelProto, folder: str, half: bool) -> tuple[onnx.ModelProto, _NBits]:
    """The model with placeholders, and what knows their values."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rewriter = _NBits(result.graph, folder, half)
    rewriter.run()
    result = inline(result)
    result.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return result, rewriter


@dataclass(frozen=True)
class _Weight:
    """A weight as the operator takes it.

    Attributes:
        inputs: names of B and scales.
        attributes: of the node.
        data_type: of scales and activations.
    """

    inputs: tuple[str, str]
    attributes: Mapping[str, Any]
    data_type: int


class _NBits(Rewriter):
    """MatMulNBits.

    Args:
        graph: changed.
        folder: where the data of its initializers lies.
        half: compute in float16, where that holds the scales.
    """

    def __init__(self, graph: onnx.GraphProto, folder: str, half: bool) -> None:
        super().__init__(graph, folder)
        self._half = half
        self._stored: dict[str, _Weight] = {}  # by name: weights, and their transposes
        self._cast: set[str] = set()
        self.kept: dict[str, str] = {}
        """Layer that is none -> why."""

    def run(self) -> None:
        """Also compute tables of positions in float32: WebGPU and others have no float64."""
        super().run()
        for tensor in self._graph.initializer:
            if tensor.data_type == DOUBLE:
                values_of = numpy_helper.to_array(tensor, base_dir=self._folder)
                tensor.CopyFrom(numpy_helper.from_array(values_of.astype(np.float32), tensor.name))
        for node in self._graph.node:
            for attribute in node.attribute:
                if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", DOUBLE):
                    attribute.i = FLOAT
        for value in self._graph.value_info:
            if value.type.tensor_type.elem_type == DOUBLE:
                value.type.tensor_type.elem_type = FLOAT

    def _replaced(self, node: onnx.NodeProto) -> Nodes:
        """Also what reads the weights of the form qdq."""
        stored = None if node.domain else self._stored.get(node.input[-1] if node.input else "")
        if stored is None:
            return super()._replaced(node)
        if node.op_type == "Transpose":
            self._stored[node.output[0]] = stored
            return []
        made = self._product(node.input[0], stored, node.output[0], node.name)
        made[-1].metadata_props.extend(node.metadata_props)
        return made

    def _weight(
        self,
        codes: str,
        scale: Callable[[], FloatArray],
        given: Mapping[str, Any],
        node: onnx.NodeProto,
    ) -> Nodes:
        """Nothing yet, or the nodes as they are: what reads the weight multiplies with it."""
        stored = self._layout(codes, scale, given)
        if stored is None:
            scales = [self._packed[n] for n in node.input[1:] if n in self._packed]
            return [self._packed[node.input[0]], *scales, node]
        self._stored[node.output[0]] = stored
        return []

    def _linear(self, node: onnx.NodeProto) -> Nodes:
        given = attributes(node)
        codes = node.input[ops.OPERATORS[node.op_type].parts["codes"]]
        stored = self._layout(
            codes, self._scales(node), given | {"format": given["weight_format"]}
        )
        if stored is None:
            return [self._in_float(node)]
        product = f"{node.name}/product"
        made = [
            *self._product(node.input[0], stored, product, product),
            _node("Add", [product, node.input[-1]], list(node.output), node.name),
        ]
        made[-1].metadata_props.extend(node.metadata_props)
        return made

    def _in_float(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """FpLinear of the float value, as it is with a16."""
        node.input[1] = self._constant(f"{node.name}/one", np.ones(1, np.float32))
        changes = {"act_format": "", "act_group_size": ops.WHOLE_ROW}
        for attribute in node.attribute:
            if attribute.name in changes:
                attribute.CopyFrom(
                    onnx.helper.make_attribute(attribute.name, changes[attribute.name])
                )
        return node

    def _layout(
        self, codes: str, scale: Callable[[], FloatArray], given: Mapping[str, Any]
    ) -> _Weight | None:
        """The weight of `codes`; None, and why is noted, where the operator cannot hold it."""
        layer = codes.removesuffix(CODES)
        name, fmt, k, group = (
            f"{layer}.weight",
            format_by_name(given["format"]),
            given["K"],
            given["group_size"],
        )
        bits, block = bits_of(fmt), block_of(k, group)
        if bits is None:
            self.kept[layer] = f"the grid of {fmt.name} takes more than 8 bits"
            return None
        if block is None:
            self.kept[layer] = f"groups of {group} are no multiples of 16"
            return None
        scales = repeated(scale(), k, group, block)
        half = self._half and bool((scales.astype(np.float16).astype(np.float32) == scales).all())
        kind, dtype = (HALF, np.float16) if half else (FLOAT, np.float32)
        n, blocks = scales.shape
        self._later(
            name,
            Deferred(
                onnx.TensorProto.UINT8,
                8,
                (n, blocks, block * bits // 8),
                lambda: as_bytes(stored(self._read(codes), k, fmt, block, given.get("wide"))),
            ),
        )
        self._later(
            f"{name}_scale",
            Deferred(
                kind,
                np.dtype(dtype).itemsize * 8,
                scales.shape,
                lambda: as_bytes(repeated(scale(), k, group, block).astype(dtype)),
            ),
        )
        described = {"K": k, "N": n, "bits": bits, "block_size": block}
        return _Weight((name, f"{name}_scale"), described, kind)

    def _product(self, x: str, weight: _Weight, y: str, name: str) -> Nodes:
        """The product y of x, float32 both."""
        if weight.data_type == FLOAT:
            return [
                _node(MATMUL, [x, *weight.inputs], [y], name, domain=DOMAIN, **weight.attributes)
            ]
        narrow, result = f"{x}/half", f"{name}/half"
        made = [] if narrow in self._cast else [_node("Cast", [x], [narrow], narrow, to=HALF)]
        self._cast.add(narrow)
        product = _node(
            MATMUL, [narrow, *weight.inputs], [result], result, domain=DOMAIN, **weight.attributes
        )
        return [*made, product, _node("Cast", [result], [y], name, to=FLOAT)]


def _rewrite(
    source: Path, target: Path, bundle: Path, reporter: Reporter, *, half: bool
) -> Mapping[str, Any]:
    model = load_graph(source / "model.onnx")
    made, rewriter = _rewritten(model, str(source), half)
    for layer, why in rewriter.kept.items():
        reporter.note(f"{layer} keeps its function body: {why}")
    with reporter.stage(
        f"{source.name} with {MATMUL}", len(made.graph.initializer), "tensors"
    ) as advance:
        deferred.write(
            made, rewriter.tensors, target / "model.onnx", source, lambda count: advance(1)
        )
    return {"activations": "float16 in linears" if half else "float", "kept": rewriter.kept}


def _reference(
    node: onnx.NodeProto, inputs: Sequence[Array]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    given, (x, stored_bytes, scale) = attributes(node), inputs
    weight = values(stored_bytes, scale, given["K"], given["bits"])
    return linear(x, weight), rounding_bound(x, weight)


def _check(formats: Iterable[str]) -> None:
    wanted = sorted(formats)
    if wanted and not any(bits_of(format_by_name(name)) for name in wanted):
        raise UsageError(
            f"weights of {', '.join(wanted)}: expected a format whose grid integers {MATMUL} holds in 8 "
            "bits, such as e1m2, e2m1 or int4; export again with another --weight-format"
        )


def _target(name: str, summary: str, *, half: bool) -> Target:
    return Target(
        name=name,
        summary=summary,
        opset=ops.OPSET,
        rewrite=partial(_rewrite, half=half),
        linear=partial(nbits, half=half),
        check=_check,
        formats=(("*", "e1m2"),),
        references={(DOMAIN, MATMUL): _reference},
    )


NBITS = _target("nbits", "linears as ONNX Runtime's own MatMulNBits, in float32", half=False)
NBITS_HALF = _target("nbits-half", "the same, linears in float16", half=True)
