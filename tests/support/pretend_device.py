"""A device that is not there: tensors on it have values, and nothing of the CPU mixes with them.

What a GPU refuses is refused: operands on two devices, and reading values without bringing them to the
CPU first. The arithmetic is the CPU's own, so whatever runs here must give the CPU's bits.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PRETEND", "PretendDevice"]

PRETEND = torch.device("lazy")
"""A type of device of torch's that needs no driver, and whose gradients the CPU's thread computes."""
ATEN: Any = torch.ops.aten
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXED = (ATEN.index.Tensor, ATEN.index_put_.default, ATEN._index_put_impl_.default)
"""Operations whose indices may be on the CPU, as CUDA has it."""


class _Memory:
    """What is on the device."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self.now = 0

    def hold(self, tensor: _There) -> None:
        """Count a tensor's memory, which views share, for as long as it lives."""
        storage = tensor.inner.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._holders[place] = self._holders.get(place, 0) + 1
        self.now += size if self._holders[place] == 1 else 0
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.now -= size


_MEMORY = _Memory()


class _There(torch.Tensor):
    """A tensor on the device; its values are in `inner`, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PRETEND,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner
        _MEMORY.hold(self)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, _There)]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if not there and target != PRETEND:
        return func(*args, **kwargs)
    here = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, _There)]
    if there and func not in MOVES and not (func in INDEXED and isinstance(args[0], _There)):
        mixed = [tuple(t.shape) for t in here if t.ndim]
        if mixed:
            raise RuntimeError(f"{func}: operands on two devices, {mixed} of them on the CPU")
    inner_args, inner = pytree.tree_map_only(_There, lambda t: t.inner, (args, kwargs))
    if target is not None:
        inner["device"] = torch.device("cpu")
    result = func(*inner_args, **inner)
    if func is ATEN.copy_.default:
        return args[0]
    if func is ATEN._to_copy.default and target is not None and target != PRETEND:
        return result
    own = {id(t.inner): t for t in there}  # of operations in place
    return pytree.tree_map_only(
        torch.Tensor, lambda t: own[id(t)] if id(t) in own else _There(t), result
    )


class _Made(TorchFunctionMode):
    """`torch.tensor` asks no dispatcher: it is made on the CPU, and moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and given.get("device") is not None:
            values = pytree.tree_map_only(_There, lambda t: t.inner.item(), args)
            return func(*values, **{**given, "device": None}).to(given["device"])
        return func(*args, **given)


class PretendDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, `PRETEND` is there; as MPS it has no float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made = _Made()
        self.ran = 0

    def __enter__(self) -> Any:
        """Also for what asks no dispatcher."""
        self._made.__enter__()
        return super().__enter__()

    @property
    def now(self) -> int:
        """Bytes that are on the device."""
        return _MEMORY.now

    def __exit__(self, *given: object) -> None:
        """End both."""
        super().__exit__(*given)
        self._made.__exit__(*given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation of torch."""
        result = _run(func, args, kwargs or {})
        found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, _There)]
        self.ran += bool(found)
        if any(leaf.dtype == torch.float64 for leaf in found):
            raise TypeError(f"{func}: the device has no float64")
        return result
