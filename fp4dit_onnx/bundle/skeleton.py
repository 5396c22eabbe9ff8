"""Graphs whose large tensors have no values yet, and the assembly of blocks into a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from fp4dit_onnx import ops

__all__ = [
    "BLOCK",
    "BLOCK_DOMAIN",
    "PLACEHOLDER",
    "Kind",
    "Traced",
    "assemble",
    "is_placeholder",
    "placeholder",
    "renamed_block",
]

BLOCK, BLOCK_DOMAIN = "Block", "com.fp4dit.trace"
"""Operator that stands for a block in the graph around it; such nodes are named like the block."""
PLACEHOLDER = "placeholder"
"""Location of the data of tensors whose values come later."""


@dataclass(frozen=True)
class Kind:
    """The graph of blocks that differ in their weights alone.

    Attributes:
        first: the block that the graph's names are of.
        model: its inputs and outputs are in the order of those of its nodes in the graph around it.
    """

    first: str
    model: onnx.ModelProto


@dataclass(frozen=True)
class Traced:
    """The graphs of a module.

    Attributes:
        shell: the whole, where each block is a node of `BLOCK`.
        kinds: of each block, by its name; blocks of one kind share the object.
    """

    shell: onnx.ModelProto
    kinds: Mapping[str, Kind] = field(default_factory=dict)


def placeholder(name: str, shape: Sequence[int], data_type: int) -> onnx.TensorProto:
    """A tensor of an ONNX `data_type` whose values come later."""
    tensor = onnx.TensorProto(name=name, dims=shape, data_type=data_type)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=PLACEHOLDER)
    return tensor


def is_placeholder(tensor: onnx.TensorProto) -> bool:
    """Whether the values of `tensor` are still to come."""
    return any(e.key == "location" and e.value == PLACEHOLDER for e in tensor.external_data)


def renamed_block(name: str, old: str, new: str) -> str:
    """`name`, that of block `old` or of something in it, as it is in block `new`; others stay."""
    rest = name.removeprefix(old)
    return new + rest if name.startswith(old) and (not rest or rest[0] in "./:") else name


def assemble(traced: Traced) -> onnx.ModelProto:
    """The shell, taken apart, with each node of `BLOCK` replaced by the nodes of its kind.

    Quantizing one tensor in one way in several blocks is done once.
    """
    shell = traced.shell
    graph, whole = shell.graph, _Whole(shell)
    for node in graph.node:
        if node.domain == BLOCK_DOMAIN:
            kind = traced.kinds[node.name]
            whole.add_block(node, kind.model.graph, kind.first)
        else:
            whole.add_node(node)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(whole.nodes)
    graph.initializer.extend(whole.tensors.values())
    graph.value_info.extend(whole.infos.values())
    custom = any(node.domain == ops.DOMAIN for node in graph.node)
    del shell.opset_import[:]
    shell.opset_import.append(onnx.helper.make_opsetid("", ops.OPSET))
    if custom:
        shell.opset_import.append(onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION))
    del shell.functions[:]
    ops.attach_functions(shell)
    return shell


class _Whole:
    """What the assembled graph holds so far."""

    def __init__(self, shell: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = {t.name: t for t in shell.graph.initializer}
        self.infos = {i.name: i for i in shell.graph.value_info}
        self._quantized: dict[tuple[bytes, ...], onnx.NodeProto] = {}
        self._same: dict[str, str] = {}
        self._names: set[str] = set()
        self._made = {name for node in shell.graph.node for name in node.output}

    def add_node(self, node: onnx.NodeProto) -> None:
        """One node, unless another quantizes the same tensor in the same way; its name is free."""
        node.input[:] = [self._same.get(name, name) for name in node.input]
        if node.domain == ops.DOMAIN and ops.OPERATORS[node.op_type].shared:
            attributes = sorted(a.SerializeToString() for a in node.attribute)
            key = (node.op_type.encode(), "\0".join(node.input).encode(), *attributes)
            first = self._quantized.setdefault(key, node)
            if first is not node:
                self._same |= dict(zip(node.output, first.output, strict=True))
                for name in node.output:
                    self.infos.pop(name, None)
                return
        name, number = node.name, 2
        while node.name in self._names:
            node.name, number = f"{name}_{number}", number + 1
        self._names.add(node.name)
        self.nodes.append(node)

    def add_block(self, node: onnx.NodeProto, graph: onnx.GraphProto, first: str) -> None:
        """The nodes of a block of the kind of `first`, in place of `node`."""
        inputs = [value.name for value in graph.input]
        outputs = [value.name for value in graph.output]
        joints = dict(zip(inputs, node.input, strict=True))
        joints |= dict(zip(outputs, node.output, strict=True))

        # A module that the shell calls too has tensors and constants of these names there.
        made = {renamed_block(n, first, node.name) for o in graph.node for n in o.output}
        taken: dict[str, str] = {}
        for n in sorted(made & self._made - set(node.output)):
            taken[n] = self._free(n, made | set(taken.values()))

        def name(old: str) -> str:
            new = renamed_block(old, first, node.name)
            return joints.get(old) or taken.get(new) or new

        for tensor in graph.initializer:
            held = onnx.TensorProto()
            held.CopyFrom(tensor)
            held.name = own = renamed_block(tensor.name, first, node.name)
            if self.tensors.setdefault(own, held) != held and not is_placeholder(held):
                held.name = taken[own] = self._free(own, made | set(taken.values()))
                self.tensors[held.name] = held
        for info in _renamed_infos(graph, name):
            self.infos.setdefault(info.name, info)
        for old in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(old)
            copy.name = renamed_block(old.name, first, node.name)
            copy.input[:] = [name(n) for n in old.input]
            copy.output[:] = [name(n) for n in old.output]
            self.add_node(copy)
        self._made.update(made, taken.values())

    def _free(self, name: str, others: set[str]) -> str:
        used, number = self._made | self.tensors.keys() | others, 2
        while f"{name}_{number}" in used:
            number += 1
        return f"{name}_{number}"


def _renamed_infos(
    graph: onnx.GraphProto, name: Callable[[str], str]
) -> Iterator[onnx.ValueInfoProto]:
    for info in graph.value_info:
        made = onnx.ValueInfoProto()
        made.CopyFrom(info)
        made.name = name(info.name)
        yield made
