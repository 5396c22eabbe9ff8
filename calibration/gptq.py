"""GPTQ on any grid: rounding column by column, where later columns compensate for the error.

Frantar et al., arXiv 2210.17323, algorithm 1, with scales found beforehand and kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import expand_groups, round_to_grid
from fp4dit_onnx.calibration.layer_inputs import LayerInputs
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.execution import host

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.gptq import Gptq

__all__ = ["compensated"]


def compensated(draft: Draft, given: LayerInputs, method: Gptq) -> torch.Tensor:
    """Grid integers of a weight, float32 [N, K], chosen for the least ``tr(E H E^T)`` in turn.

    Args:
        draft: the layer, with its scales.
        given: what it receives; its device computes.
        method: settings.

    Raises:
        UsageError: H is not positive definite.
    """
    weight, scale, fmt = draft.weight, draft.scale, draft.spec.weight_format
    assert scale is not None, draft.name
    there = given.execution.there
    k = weight.shape[1]
    order = given.second.order(ordered=method.ordered)
    try:
        factor = there(given.second.factor(method.damping, ordered=method.ordered))
    except torch.linalg.LinAlgError as singular:  # type: ignore[attr-defined]
        raise UsageError(
            f"layer {draft.name}: the second moments of its inputs are singular: give more prompts, "
            f"or more damping than {method.damping}"
        ) from singular
    # Columns are rows here: a column and those after it lie together in memory.
    rest = there(weight[:, order].T.contiguous())  # [K, N]
    wide = k if draft.spec.wide is None else draft.spec.wide
    signed = (order >= wide).tolist()
    step = there(expand_groups(scale.float(), k, draft.spec.group_size)[:, order].T.contiguous())
    live = step > 0
    step = torch.where(live, step, 1.0)
    integers = torch.empty_like(rest)
    for start in range(0, k, method.block):
        end = min(start + method.block, k)
        errors = rest.new_empty(end - start, len(weight))
        for j in range(start, end):
            exact = rest[j] / step[j]
            nearest = exact.lt(0).mul(-2.0).add(1.0) if signed[j] else round_to_grid(exact, fmt)
            # A group without a scale has the sign 1 in each place: nothing of it is added.
            integers[j] = nearest * live[j] if not signed[j] else nearest.where(live[j], 1.0)
            error = errors[j - start]
            torch.sub(rest[j], integers[j] * step[j] * live[j], out=error).div_(factor[j, j])
            rest[j + 1 : end].addr_(factor[j, j + 1 : end], error, alpha=-1)
        rest[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    found = torch.empty_like(weight)
    found[:, order] = host(integers).T
    return found
