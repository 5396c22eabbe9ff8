"""What each part of a network takes from the parts before it, and until when results are needed.

Found by one run on tensors without values: each block's results are marked, and what the network
computes of them carries the marks on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.network.blocks import BlockCall, answered, block_of, tensors_of
from fp4dit_onnx.network.fake import is_fake, like, own_tensors

__all__ = ["Node", "Result", "Tensor", "Topology", "Value", "topology_of", "with_rows"]

Value = tuple[str, int]
"""One tensor among a block's results: the block's name, and its number."""


@dataclass(frozen=True)
class Tensor:
    """A tensor among the arguments of a call.

    Attributes:
        name: of the parameter; of a tensor inside of one, the path to it.
        shape: in the call that the topology is of.
        dtype: element type.
        reads: results of blocks that it is computed of; none for what comes from the network's own
            arguments alone.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    reads: frozenset[Value]


@dataclass(frozen=True)
class Result:
    """A tensor among the results of a block, [B, *row].

    Attributes:
        row: its shape without the batch.
        dtype: element type.
    """

    row: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Node:
    """A block, or a linear outside of all blocks.

    Attributes:
        name: torch name.
        block: whether it is a block.
        arguments: its tensors in, in order.
        results: its tensors out, in order.
        structure: of what it returns, each tensor's number in its place.
        rows: for each sample, of arguments by keyword, of a linear by place: 0 for what is the same
            for all samples. Empty where that was not looked at, see `with_rows`.
    """

    name: str
    block: bool
    arguments: tuple[Tensor, ...]
    results: tuple[Result, ...]
    structure: Any
    rows: Mapping[str | int, int] = field(default_factory=dict)

    @property
    def reads(self) -> frozenset[Value]:
        """Results of blocks that its arguments are computed of."""
        return frozenset().union(*(tensor.reads for tensor in self.arguments))

    @property
    def values(self) -> tuple[Value, ...]:
        """Its results; those of a linear are none: linears run with what is around the blocks."""
        return tuple((self.name, i) for i in range(len(self.results))) if self.block else ()


@dataclass(frozen=True)
class Topology:
    """The parts of a network in the order in which they run.

    Attributes:
        nodes: blocks, and linears outside of them, in the order of their first calls.
        output: results of blocks that the network's own output is computed of.
        shared: names of tensors of blocks that are read outside of their blocks as well.
    """

    nodes: tuple[Node, ...]
    output: frozenset[Value]
    shared: frozenset[str]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by their names."""
        return {node.name: node for node in self.nodes}

    @property
    def blocks(self) -> tuple[Node, ...]:
        """The nodes that are blocks."""
        return tuple(node for node in self.nodes if node.block)

    def live_after(self, name: str) -> frozenset[Value]:
        """Results that something later than node `name` still reads, its own included."""
        at = self.nodes.index(self.by_name[name])
        made = {value for node in self.nodes[: at + 1] for value in node.values}
        later = self.output.union(*(node.reads for node in self.nodes[at + 1 :]))
        return later & made

    @property
    def most_live(self) -> int:
        """How many results are kept at most between two nodes."""
        return max((len(self.live_after(node.name)) for node in self.nodes), default=0)


def with_rows(one: Topology, two: Topology) -> Topology:
    """`one`, of a call of one sample, with what `two` of the same with two samples says of rows."""
    nodes = []
    for node in one.nodes:
        rows: dict[str | int, int] = {}
        pairs = zip(node.arguments, two.by_name[node.name].arguments, strict=True)
        for place, (a, b) in enumerate(pairs):
            key = a.name.partition(".")[0] if node.block else place
            more = b.shape[0] - a.shape[0] if a.shape else 0
            rows[key] = max(rows.get(key, 0), more)
        nodes.append(replace(node, rows=rows))
    return replace(one, nodes=tuple(nodes))


class _Marks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries marks from an operation's operands to its results, storage by storage.

    Views share their storage and so their marks: a result may be marked with too much, never with
    too little.
    """

    def __init__(self, watched: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._marks: dict[int, frozenset[Value]] = {}
        self._kept: list[Any] = []  # so that no storage's address is used again
        self._watched, self._paused = watched, False
        self.read: set[str] = set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def of(self, tensor: torch.Tensor) -> frozenset[Value]:
        return self._marks.get(_storage(tensor), frozenset())

    def mark(self, tensor: torch.Tensor, values: frozenset[Value]) -> None:
        if values:
            self._kept.append(tensor)
            self._marks[_storage(tensor)] = self.of(tensor) | values

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._paused:
            return result
        operands = tensors_of((args, kwargs or {}))
        keys = {_storage(tensor) for tensor in operands}
        self.read.update(self._watched[key] for key in keys & self._watched.keys())
        values = frozenset().union(*(self.of(tensor) for tensor in operands))
        changed = operands if func._schema.is_mutable else []
        for tensor in (*tensors_of(result), *changed):
            self.mark(tensor, values)
        return result


def _storage(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def topology_of(
    network: torch.nn.Module,
    blocks: Sequence[str],
    call: tuple[tuple[Any, ...], Mapping[str, Any]],
    batch: int | None,
) -> Topology:
    """Run `network` once, on tensors without values and on no device.

    Args:
        network: with or without weights, in any mixture.
        blocks: names of its blocks.
        call: its arguments; only types and shapes of the tensors count.
        batch: samples of the call; None where results are of no interest.

    Raises:
        Fp4DitError: a block runs twice, or gives a tensor whose first axis is not the batch.
    """
    every = network.state_dict(keep_vars=True).values()
    mode = next((t.fake_mode for t in every if is_fake(t)), None)
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    args, kwargs = pytree.tree_map_only(torch.Tensor, _fake_in(mode), call)
    linears = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and block_of(name, blocks) is None
    }
    with _from_devices(network, mode):
        tensors = network.state_dict(keep_vars=True).items()
        marks = _Marks({_storage(t): n for n, t in tensors if block_of(n, blocks)})
        run = _Run(marks, batch)
        with (
            torch.no_grad(),
            mode,
            run.hooks(linears),
            answered(network, blocks, run.answer),
            marks,
        ):
            output = network(*args, **kwargs)
    ends = frozenset().union(*(marks.of(tensor) for tensor in tensors_of(output)))
    return Topology(tuple(run.nodes), ends, frozenset(marks.read))


def _fake_in(mode: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def fake(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty(tuple(tensor.shape), dtype=tensor.dtype)

    return fake


@contextmanager
def _from_devices(network: torch.nn.Module, mode: Any) -> Iterator[None]:
    """While open, tensors without values are in the places of those that are on a device."""
    fake, made = _fake_in(mode), dict[int, torch.Tensor]()
    places = [place for place in own_tensors(network) if place[2].device.type != "cpu"]
    for kept, name, tensor in places:
        if id(tensor) not in made:
            made[id(tensor)] = like(tensor, fake(tensor))
        kept[name] = made[id(tensor)]
    try:
        yield
    finally:
        for kept, name, tensor in places:
            kept[name] = tensor


class _Run:
    """Notes nodes while the network runs."""

    def __init__(self, marks: _Marks, batch: int | None) -> None:
        self.nodes: list[Node] = []
        self._marks, self._batch = marks, batch
        self._results: dict[object, Any] = {}

    @contextmanager
    def hooks(self, linears: Mapping[str, torch.nn.Module]) -> Iterator[None]:
        def hook(name: str) -> Any:
            def ran(module: torch.nn.Module, args: Any, kwargs: Any, result: Any) -> None:
                if all(node.name != name for node in self.nodes):
                    self._note(BlockCall.of(name, module, args, kwargs), result, block=False)

            return ran

        handles = [
            module.register_forward_hook(hook(name), with_kwargs=True)
            for name, module in linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def answer(self, call: BlockCall) -> Any:
        if any(node.name == call.name for node in self.nodes):
            raise Fp4DitError(
                f"block {call.name} runs twice: expected once in a call of the network"
            )
        kind = call.kind()
        if kind not in self._results:
            forward: Any = type(call.module).forward
            with self._marks.paused():
                self._results[kind] = forward(call.module, **call.arguments)
        result = pytree.tree_map_only(
            torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype), self._results[kind]
        )
        for i, tensor in enumerate(tensors_of(result)):
            if self._batch is not None and tuple(tensor.shape[:1]) != (self._batch,):
                raise Fp4DitError(
                    f"block {call.name} gives a tensor of shape {list(tensor.shape)}: expected one "
                    f"row for each of the {self._batch} samples"
                )
            self._marks.mark(tensor, frozenset({(call.name, i)}))
        self._note(call, result, block=True)
        return result

    def _note(self, call: BlockCall, result: Any, *, block: bool) -> None:
        tensors = tensors_of(result)
        numbers = iter(range(len(tensors)))
        node = Node(
            call.name,
            block,
            self._arguments(call),
            tuple(Result(tuple(t.shape[1:]), t.dtype) for t in tensors),
            pytree.tree_map_only(torch.Tensor, lambda _: next(numbers), result),
        )
        self.nodes.append(node)

    def _arguments(self, call: BlockCall) -> tuple[Tensor, ...]:
        paths, _ = pytree.tree_flatten_with_path(call.arguments)
        return tuple(
            Tensor(_path(path), tuple(leaf.shape), leaf.dtype, self._marks.of(leaf))
            for path, leaf in paths
            if isinstance(leaf, torch.Tensor)
        )


def _path(keys: Sequence[Any]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys)
