"""What an operator is: one record, from which graphs, checks, reports and viewers take their facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["DOMAIN", "OPSET", "VERSION", "WHOLE_ROW", "Array", "Attributes", "Operator", "Role"]

DOMAIN = "com.fp4dit"
VERSION = 1
OPSET = 21
WHOLE_ROW = 2**31 - 1
"""A group size that no row exceeds."""

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
"""Of a node, by name; text is str."""
Bound = npt.NDArray[np.float64] | tuple[npt.NDArray[np.float64], ...]
Role = Literal["quantize", "dequantize", "unpack", "scale", "linear", "attention", "other"]


def _whole(given: Attributes, inputs: Sequence[Array], outputs: Sequence[Array]) -> Any:
    return inputs, outputs


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator of the domain `DOMAIN`.

    Attributes:
        name: of the operator and of its function.
        text: the function body in ONNX's text form, without its header.
        doc: what it computes, for viewers; the body defines it.
        results: element types of its outputs.
        reference: from attributes and inputs to outputs: what every kernel returns, bit for bit.
        caption: from attributes, and the size of its layer as ``K to N`` (None for a node that takes no
            packed weight), to what a node does. Netron shows some 60 letters.
        bound: from attributes and inputs to how far an evaluation of the body may lie from the
            reference, float64, broadcast to the output, one for each where there are several; None
            where it has the same bits.
        sample: of inputs and outputs the part that `verify` compares, where all would take long.
        role: what readers of graphs take it for: ``quantize`` makes q and scale of its first input,
            ``dequantize`` the value of both, ``unpack`` grid integers of a packed weight and
            ``scale`` its scales, ``linear`` and ``attention`` compute on them. Of role ``other`` they
            ask nothing.
        parts: role of a part of a quantized layer -> which input takes it.
        weight_format: the attribute that names the format of the packed weight.
        spec: from attributes to how the layer is quantized, for role ``linear``.
        kernel: from attributes to the type in which its kernel multiplies, as the library counts its
            calls; None where calls are not compared with the graph.
        shared: whether nodes of one input and the same attributes are one node once blocks are put
            together.
        quantizer: of an operator that quantizes what it computes first, the one whose operator does
            the second part, with the attributes of that name; its body has the standard nodes of the
            first part, then that. Readers of graphs take it apart (`bundle.calls`).
        before: of such an operator, from attributes and inputs to what it computes first.
        version: of its definition.
    """

    name: str
    text: str
    doc: str
    results: tuple[npt.DTypeLike, ...]
    reference: Callable[[Attributes, Sequence[Array]], Sequence[Array]]
    caption: Callable[[Attributes, str | None], str]
    bound: Callable[[Attributes, Sequence[Array]], Bound] | None = None
    sample: Callable[
        [Attributes, Sequence[Array], Sequence[Array]], tuple[Sequence[Array], Sequence[Array]]
    ] = _whole
    role: Role = "other"
    parts: Mapping[str, int] = field(default_factory=dict)
    weight_format: str | None = None
    spec: Callable[[Attributes], LayerSpec] | None = None
    kernel: Callable[[Attributes], str] | None = None
    shared: bool = False
    quantizer: str | None = None
    before: Callable[[Attributes, Sequence[Array]], Array] | None = None
    version: int = VERSION
