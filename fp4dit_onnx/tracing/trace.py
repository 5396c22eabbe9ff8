"""From a torch module to a float ONNX graph that keeps the parameters' names; blocks once per kind."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir
import torch

from fp4dit_onnx.bundle.skeleton import BLOCK, BLOCK_DOMAIN, PLACEHOLDER, Kind, Traced
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.families import DYNAMIC, Interface
from fp4dit_onnx.network.blocks import BlockCall, answered
from fp4dit_onnx.network.dynamic import dynamic
from fp4dit_onnx.network.fake import is_fake
from fp4dit_onnx.network.networks import FakeNetwork, example_inputs
from fp4dit_onnx.network.positions import arguments_of
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.system.silence import quiet

__all__ = ["trace", "traced_once"]

_WRAPPED = "network"
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_SCOPES = "pkg.torch.onnx.name_scopes"
_LARGEST = 1 << 16
_JOINED = "tokens"
_KEPT = 32
_TRACED: dict[tuple[str, ...], Traced] = {}
"""The last of `traced_once`, by class, interface and configuration of their networks."""


@dataclass
class _Axes:
    """Names of the sizes that are open, by torch's expression for them."""

    names: dict[str, str] = field(default_factory=dict)

    def note(self, size: Any, name: str) -> None:
        if isinstance(size, torch.SymInt):
            self.names.setdefault(str(size), name)

    def name(self, size: torch.SymInt) -> str:
        """Of a size; one that no input has is called ``tokens``, with a number from the second on."""
        joined = [n for n in self.names.values() if n.startswith(_JOINED)]
        new = _JOINED if not joined else f"{_JOINED}_{len(joined) + 1}"
        return self.names.setdefault(str(size), new)


class _Positional(torch.nn.Module):
    """A module with its inputs as plain positional tensors, in the interface's order."""

    def __init__(self, network: torch.nn.Module, interface: Interface, axes: _Axes) -> None:
        super().__init__()
        self.network = network
        self._interface, self._axes = interface, axes

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        specs = self._interface.inputs
        for spec, tensor in zip(specs, inputs, strict=True):
            for dim, size in zip(spec.dims, tensor.shape, strict=True):
                self._axes.note(size, str(dim))
        named = {spec.name: tensor for spec, tensor in zip(specs, inputs, strict=True)}
        result = self.network(**arguments_of(self._interface, named))
        wanted = self._interface.outputs
        if self._interface.results is not None:
            return self._interface.results(result)
        if isinstance(result, Mapping):
            return tuple(result[name] for name in wanted)
        return tuple(result[: len(wanted)])


class _Block(torch.nn.Module):
    """One block with its tensors as plain positional arguments, as it was called."""

    def __init__(self, call: BlockCall) -> None:
        super().__init__()
        self.network = call.module
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.network(**self._call.with_tensors(tensors))
        outputs = result if isinstance(result, tuple) else (result,)
        return tuple(t for t in outputs if t is not None)


def trace(
    network: torch.nn.Module, interface: Interface, config: Mapping[str, Any], mode: Any = None
) -> Traced:
    """Trace `network` (eval mode, float32) into ONNX, every axis named in `DYNAMIC` open.

    Args:
        network: real, or fake (`fake_network`): then initializers refer to data at `PLACEHOLDER`.
        interface: how it is called; without `blocks` it is traced whole.
        config: sizes of the other axes.
        mode: of a fake network's tensors; None for a real one.

    Returns:
        Graphs whose initializers are named like the torch parameters, and whose nodes are named
        after the module that they come from.

    Raises:
        Fp4DitError: torch cannot trace the network, or not convert what it traced.
    """
    axes, calls = _Axes(), dict[str, BlockCall]()
    specs, fake = interface.inputs, mode or contextlib.nullcontext()
    with fake:
        examples = tuple(example_inputs(interface, config).values())
    dims = {name: torch.export.Dim(name, min=1, max=_LARGEST) for name in DYNAMIC}
    shapes = tuple(
        {i: s.unit(d) * dims[str(d)] for i, d in enumerate(s.dims) if d in dims} for s in specs
    )
    names, outputs = [s.name for s in specs], list(interface.outputs)
    with quiet(), torch.no_grad(), dynamic(network):
        stubs = _stubs(network, interface.blocks)

        def answer(call: BlockCall) -> Any:
            calls[call.name] = call
            return _stub(call, stubs[call.name])

        with answered(network, stubs, answer):
            wrapped = _Positional(network, interface, axes).eval()
            shell = _converted(wrapped, examples, shapes, names, outputs)
        found: dict[object, Kind] = {}
        kinds: dict[str, Kind] = {}
        for name, call in calls.items():
            key = call.kind()
            if key not in found:
                found[key] = Kind(name, _block(name, call, axes, fake))
            kinds[name] = found[key]
    _finish(shell, "")
    return Traced(shell, kinds)


def traced_once(network: FakeNetwork, interface: Interface) -> Traced:
    """What `trace` makes of a network; of the same one once in a process, and not to be changed."""
    key = (type(network.module).__name__, repr(interface), repr(network.config))
    if key not in _TRACED:
        while len(_TRACED) >= _KEPT:
            del _TRACED[next(iter(_TRACED))]
        _TRACED[key] = trace(network.module, interface, network.config, network.mode)
    return _TRACED[key]


def _stubs(
    network: torch.nn.Module, blocks: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Names of the blocks -> names of the arguments that their results are like."""
    return {
        f"{part}.{i}": tuple(like)
        for part, like in blocks.items()
        for i, _ in network.get_submodule(part).named_children()
    }


def _stub(call: BlockCall, like: Sequence[str]) -> Any:
    """A node of `BLOCK` in place of the block."""
    same = [call.arguments[argument] for argument in like]
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{BLOCK_DOMAIN}::{BLOCK}",
        call.tensors,
        {"module": call.name},
        dtypes=[t.dtype for t in same],
        shapes=[t.shape for t in same],
        version=1,
    )
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _block(name: str, call: BlockCall, axes: _Axes, fake: Any) -> onnx.ModelProto:
    """The graph of one block, its tensors' open sizes named as in the shell."""
    examples, shapes = [], []
    called: list[dict[int, str]] = []
    for tensor in call.tensors:
        given: list[Any] = list(tensor.shape)
        open_ = {i: d for i, d in enumerate(given) if isinstance(d, torch.SymInt)}
        sizes = [d.node.hint if i in open_ else d for i, d in enumerate(given)]
        with fake:
            examples.append(torch.ones(sizes, dtype=tensor.dtype))
        # Sizes may depend on each other, such as text and image tokens joined: torch finds out.
        shapes.append(dict.fromkeys(open_, torch.export.Dim.AUTO))
        called.append({i: axes.name(d) for i, d in open_.items()})
    inputs = [f"{name}:in{i}" for i in range(len(examples))]
    model = _converted(_Block(call).eval(), tuple(examples), tuple(shapes), inputs, None)
    _name_sizes(model, called)
    _finish(model, name)
    return model


def _name_sizes(model: onnx.ModelProto, called: Sequence[Mapping[int, str]]) -> None:
    """Give open sizes the shell's names; those that it has no name for have none.

    Raises:
        Fp4DitError: the block fixes a size that is open in the shell.
    """
    names: dict[str, str] = {}
    for value, axes in zip(model.graph.input, called, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, name in axes.items():
            if not dims[axis].dim_param:
                raise Fp4DitError(
                    f"{value.name}: its axis {name} can only be {dims[axis].dim_value}: "
                    "the block cannot be traced for other sizes"
                )
            names[dims[axis].dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                own = names.get(dim.dim_param)
                dim.ClearField("dim_param")
                if own:
                    dim.dim_param = own


def _converted(
    wrapped: torch.nn.Module,
    examples: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, Any], ...],
    inputs: list[str],
    outputs: list[str] | None,
) -> onnx.ModelProto:
    try:
        program = torch.onnx.export(
            wrapped,
            examples,
            dynamo=True,
            optimize=False,  # optimizing loses the weights' names and merges equal tensors
            opset_version=OPSET,
            dynamic_shapes=(shapes,),
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        kind = type(wrapped.network).__name__
        raise Fp4DitError(f"torch.onnx cannot trace {kind}: {_first_line(error)}") from error
    assert program is not None
    for value in program.model.graph.initializers.values():
        tensor: Any = value.const_value
        if tensor is not None and is_fake(getattr(tensor, "raw", None)):
            value.const_value = onnx_ir.ExternalTensor(
                PLACEHOLDER, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name
            )
    model = onnx_ir.serde.serialize_model(program.model)
    model.ir_version = IR_VERSION
    _mend_empty_lists(model)
    return model


def _mend_empty_lists(model: onnx.ModelProto) -> None:
    """Tensors for constants that are lists of no number, such as a scalar's shape.

    An empty attribute does not say what it is a list of, and graphsurgeon does not write it.
    """
    for node in model.graph.node:
        if node.op_type == "Constant" and not any(a.ints for a in node.attribute):
            for attribute in node.attribute:
                if attribute.name == "value_ints":
                    empty = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [0], [])
                    attribute.CopyFrom(onnx.helper.make_attribute("value", empty))


def _first_line(error: BaseException) -> str:
    """Type and first line of what made the exporter raise `error`."""
    cause = error.__cause__ or error
    text = str(cause).strip()
    return f"{type(cause).__name__}: {text.splitlines()[0]}" if text else type(cause).__name__


def _finish(model: onnx.ModelProto, prefix: str) -> None:
    """Name initializers and nodes after the network that has the block `prefix`."""
    own, path = f"{_WRAPPED}.", f"{prefix}." if prefix else ""

    def parameter(name: str) -> str:
        return path + name.removeprefix(own) if name.startswith(own) else name

    for tensor in model.graph.initializer:
        tensor.name = parameter(tensor.name)
    for node in model.graph.node:
        node.input[:] = [parameter(name) for name in node.input]
    held = {tensor.name for tensor in model.graph.initializer}
    infos = [i for i in model.graph.value_info if parameter(i.name) not in held]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    _name_after_modules(model, prefix)


def _module_path(node: onnx.NodeProto, prefix: str) -> str:
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
    path = [s for s in ast.literal_eval(scopes)[:-1] if s not in ("", _WRAPPED, _NO_MODULE)]
    inner = str(path[-1]).removeprefix(f"{_WRAPPED}.") if path else ""
    return ".".join(part for part in (prefix, inner) if part)


def _name_after_modules(model: onnx.ModelProto, prefix: str) -> None:
    """Nodes are named ``module.path/Op``, with a number where one module has several."""
    seen: dict[str, int] = {}
    for node in model.graph.node:
        if node.domain == BLOCK_DOMAIN:
            node.name = next(a.s.decode() for a in node.attribute if a.name == "module")
            continue
        path = _module_path(node, prefix)
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]
