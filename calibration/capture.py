"""Recording layer inputs while the float pipeline samples, at its own timesteps.

Both halves of guidance run in one batch, so conditional and unconditional rows are both recorded.
Rows are drawn evenly over all calls of a layer: every timestep and every prompt contributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.execution import HOST, host

__all__ = ["CallRecorder", "InputRecorder"]


class InputRecorder:
    """Forward hooks that keep a bounded sample of the input rows of named linears.

    Args:
        network: the float transformer.
        layers: names of the linears to watch.
        rows_per_call: rows kept of each forward call of a layer.
        seed: of the row choice.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        layers: Sequence[str],
        rows_per_call: int,
        seed: int | tuple[int, ...],
    ) -> None:
        self._rows: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
        self._random = np.random.default_rng(seed)
        self._rows_per_call = rows_per_call
        self._handles = [
            network.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in layers
        ]

    def _hook(self, name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def keep(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].detach().reshape(-1, args[0].shape[-1])  # [..., K] -> [rows, K]
            count = min(self._rows_per_call, rows.shape[0])
            pick = self._random.choice(rows.shape[0], count, replace=False)
            self._rows[name].append(host(rows[torch.from_numpy(np.sort(pick))].float().clone()))

        return keep

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def rows(self, name: str) -> torch.Tensor:
        """Recorded rows of layer `name`, float32 [R, K], in order of time.

        Raises:
            UsageError: the layer was never called, or saw NaN or infinity.
        """
        if not self._rows[name]:
            raise UsageError(f"layer {name} was never run while sampling: exclude it with a rule")
        rows = torch.cat(self._rows[name])
        if not bool(torch.isfinite(rows).all()):
            raise UsageError(
                f"layer {name}: the float model's own activations hold NaN or infinity; check the "
                "checkpoint and the sampling settings"
            )
        return rows


class CallRecorder:
    """Keeps the arguments of some calls of a network, on the host.

    Args:
        network: the float transformer.
        which: indices of the calls to keep.
    """

    def __init__(self, network: torch.nn.Module, which: Sequence[int]) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._which, self._seen = frozenset(which), 0
        self._handle = network.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._seen in self._which:
            self.calls.append(HOST.there((args, kwargs)))
        self._seen += 1

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()
