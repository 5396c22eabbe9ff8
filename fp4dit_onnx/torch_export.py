"""From a torch transformer to a float ONNX graph that keeps the parameters' names."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch

from fp4dit_onnx.calibration.attention import AttentionProcessor
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.models import Family
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.silence import quiet

__all__ = ["export_float"]

OUTPUT = "sample"
_WRAPPED = "network"
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_SCOPES = "pkg.torch.onnx.name_scopes"
# Sizes of dynamic axes while tracing: unlike each other, and unlike 0 and 1, which torch specializes.
_TRACE_SIZES = {"batch": 3, "text": 7}


class _Positional(torch.nn.Module):
    """The transformer with its inputs as plain positional tensors, in the family's order."""

    def __init__(self, network: torch.nn.Module, family: Family, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self._family, self._names = family, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self._names, inputs, strict=True))
        result: torch.Tensor = self.network(**self._family.arguments(named), return_dict=False)[0]
        return result


@contextlib.contextmanager
def _exportable_attention(network: Any) -> Iterator[None]:
    processors = dict(network.attn_processors)
    network.set_attn_processor(AttentionProcessor())
    try:
        yield
    finally:
        network.set_attn_processor(processors)


def export_float(network: Any, family: Family, config: Mapping[str, Any]) -> onnx.ModelProto:
    """Trace `network` (eval mode, float32) into ONNX, batch and text length dynamic.

    Returns:
        A model whose initializers are called as the torch parameters, and whose nodes are called
        after the module that they come from.

    Raises:
        Fp4DitError: torch cannot trace the network, or not convert what it traced.
    """
    specs = family.inputs(config)
    arguments = tuple(
        torch.ones(spec.shape(config, _TRACE_SIZES), dtype=getattr(torch, spec.dtype))
        for spec in specs
    )
    axes = {name: torch.export.Dim(name, min=1, max=1 << 16) for name in _TRACE_SIZES}
    shapes = tuple({i: axes[d] for i, d in enumerate(s.dims) if d in axes} for s in specs)
    names = tuple(s.name for s in specs)
    wrapped = _Positional(network, family, names).eval()
    try:
        with quiet(), _exportable_attention(network), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                arguments,
                dynamo=True,
                optimize=False,  # optimizing loses the weights' names and merges equal tensors
                opset_version=OPSET,
                dynamic_shapes=(shapes,),
                input_names=list(names),
                output_names=[OUTPUT],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        kind = type(network).__name__
        raise Fp4DitError(f"torch.onnx cannot trace {kind}: {_first_line(error)}") from error
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    _strip_wrapper(model)
    _name_after_modules(model)
    return model


def _first_line(error: BaseException) -> str:
    """Type and first line of what made the exporter raise `error`."""
    cause = error.__cause__ or error
    text = str(cause).strip()
    return f"{type(cause).__name__}: {text.splitlines()[0]}" if text else type(cause).__name__


def _strip_wrapper(model: onnx.ModelProto) -> None:
    """Initializers lose the wrapper's prefix, so that they carry the transformer's own names."""
    prefix = f"{_WRAPPED}."
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix(prefix)
    for node in model.graph.node:
        node.input[:] = [name.removeprefix(prefix) for name in node.input]
    own = {tensor.name for tensor in model.graph.initializer}
    infos = [i for i in model.graph.value_info if i.name.removeprefix(prefix) not in own]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)


def _module_path(node: onnx.NodeProto) -> str:
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
    path = [s for s in ast.literal_eval(scopes)[:-1] if s not in ("", _WRAPPED, _NO_MODULE)]
    return str(path[-1]).removeprefix(f"{_WRAPPED}.") if path else ""


def _name_after_modules(model: onnx.ModelProto) -> None:
    """Nodes are called ``module.path/Op``, with a number where one module has several."""
    seen: dict[str, int] = {}
    for node in model.graph.node:
        path = _module_path(node)
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
