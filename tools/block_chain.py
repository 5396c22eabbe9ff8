"""Repeats the one block of an ONNX model, each time with weights of its own.

A transformer of 2 GiB and more cannot be traced whole. One block of it can, and its nodes, which are
called after their torch modules, serve as the pattern of the others. Tensors are written to the
model's data file as they come, so that no more than one block's are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.model_file import (
    ALIGNMENT,
    DATA_SUFFIX,
    INLINE_BELOW,
    PAGE_ALIGN_FROM,
    PAGE_ALIGNMENT,
)

__all__ = ["Chain", "ModelFile", "block_name", "is_own"]

Array = npt.NDArray[Any]
TRACED = "transformer_blocks.0"
ENTRY = f"{TRACED}.norm1/LayerNormalization"
"""The node that reads what the block before gives."""


def block_name(name: str, block: int) -> str:
    """What `name` of the traced block is called in another; names of no block stay."""
    own = name == TRACED or name.startswith((f"{TRACED}.", f"{TRACED}/"))
    return f"transformer_blocks.{block}{name.removeprefix(TRACED)}" if own else name


def is_own(name: str) -> bool:
    """Whether `name` is the traced block's."""
    return name != block_name(name, 1)


class ModelFile:
    """An ONNX file whose tensors go to the data file beside it as they come.

    Args:
        path: of the model; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.tensors = path, list[onnx.TensorProto]()
        self._data = path.with_name(path.name + DATA_SUFFIX).open("wb")

    def close(self) -> None:
        """Close the data file; what was added is in it."""
        self._data.close()

    def add(self, name: str, values: Array) -> None:
        """One initializer; offsets are aligned as `model_file.save_model` does."""
        if values.nbytes < INLINE_BELOW:
            self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
            return
        # Without the values from the start: protobuf keeps the memory of a field that is cleared.
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = onnx.TensorProto(name=name, dims=values.shape, data_type=kind)
        alignment = PAGE_ALIGNMENT if values.nbytes >= PAGE_ALIGN_FROM else ALIGNMENT
        self._data.write(bytes(-self._data.tell() % alignment))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": Path(self._data.name).name, "offset": self._data.tell()}
        for key, value in (*place.items(), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(np.ascontiguousarray(values).data)
        self.tensors.append(tensor)

    def finish(self, model: onnx.ModelProto) -> None:
        """Write `model`, whose initializers become those added, and check it in full."""
        self.close()
        del model.graph.initializer[:]
        model.graph.initializer.extend(self.tensors)
        self.path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(self.path), full_check=True)


class Chain:
    """A model of one block, to be written with many.

    Args:
        model: its block is called `TRACED`; taken apart.
        file: where tensors go.

    Raises:
        Fp4DitError: the block is tied to the rest in a way that repeating does not know.
    """

    def __init__(self, model: onnx.ModelProto, file: ModelFile) -> None:
        graph = model.graph
        self._model, self._file = model, file
        block = [node for node in graph.node if is_own(node.name)]
        made = {name for node in block for name in node.output}
        entries = [node.input[0] for node in block if node.name == ENTRY]
        exits = {n for node in graph.node if not is_own(node.name) for n in node.input} & made
        if len(entries) != 1 or len(exits) != 1 or not all(map(is_own, made)):
            raise Fp4DitError(
                f"{TRACED}: found {len(entries)} nodes {ENTRY}, and {len(exits)} tensors read by "
                "what follows; expected one each"
            )
        (self._entry,), (self._exit,) = entries, exits
        # Quantizing what all blocks read, the text, is done once: InsertQdq shares such pairs.
        shared = [n for n in block if n.op_type in ops.QUANTIZE_OPS and n.input[0] not in made]
        self._shared = {name for node in shared for name in node.output}
        self._block = [node for node in block if node not in shared]
        self._before, self._after = self._split([n for n in graph.node if not is_own(n.name)])
        self._before += shared
        self._constants = [t for t in graph.initializer if is_own(t.name)]
        for tensor in graph.initializer:
            if not is_own(tensor.name):
                file.add(tensor.name, numpy_helper.to_array(tensor))

    def _split(
        self, nodes: Sequence[onnx.NodeProto]
    ) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
        """Nodes before and after the block; they come in an order in which they can run."""
        late, before, after = {self._exit}, list[onnx.NodeProto](), list[onnx.NodeProto]()
        for node in nodes:
            follows = not late.isdisjoint(node.input)
            (after if follows else before).append(node)
            if follows:
                late.update(node.output)
        return before, after

    def _name(self, name: str, block: int) -> str:
        if name == self._entry and block > 0:
            return block_name(self._exit, block - 1)
        return name if name in self._shared else block_name(name, block)

    def add_constants(self, values: Mapping[str, Array], block: int) -> None:
        """Write the initializers of a block.

        Args:
            values: by name in the traced block; the others are as there.
            block: which one.
        """
        own = {tensor.name for tensor in self._constants}
        if missing := sorted(set(values) - own):
            raise Fp4DitError(f"{TRACED}: the graph has no initializer {missing[0]}")
        for tensor in self._constants:
            value = values.get(tensor.name)
            value = numpy_helper.to_array(tensor) if value is None else value
            self._file.add(block_name(tensor.name, block), value)

    def finish(self, blocks: int) -> None:
        """Write the model with `blocks` blocks, whose constants were all added."""
        graph = self._model.graph
        nodes = [*self._before]
        for block in range(blocks):
            nodes += [self._copy(node, block) for node in self._block]
        last = block_name(self._exit, blocks - 1)
        for node in self._after:
            node.input[:] = [last if name == self._exit else name for name in node.input]
        infos = [i for block in range(blocks) for i in self._infos(block)]
        del graph.node[:], graph.value_info[:]
        graph.node.extend([*nodes, *self._after])
        graph.value_info.extend(infos)
        self._file.finish(self._model)

    def _copy(self, node: onnx.NodeProto, block: int) -> onnx.NodeProto:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.name = block_name(node.name, block)
        made.input[:] = [self._name(name, block) for name in node.input]
        made.output[:] = [self._name(name, block) for name in node.output]
        return made

    def _infos(self, block: int) -> Iterator[onnx.ValueInfoProto]:
        """Shapes of the tensors of a block; those of no block come with the first."""
        for info in self._model.graph.value_info:
            name = self._name(info.name, block)
            if block == 0 or name not in (info.name, block_name(self._exit, block - 1)):
                made = onnx.ValueInfoProto()
                made.CopyFrom(info)
                made.name = name
                yield made
