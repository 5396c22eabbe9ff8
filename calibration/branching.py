"""Branches of low rank: a layer's weight split into two narrow matrices and what is left to round."""

from __future__ import annotations

from dataclasses import replace

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.transforming import transformed, transformed_weight
from fp4dit_onnx.network.execution import HOST, Execution, host
from fp4dit_onnx.spec.low_rank import LowRank

__all__ = ["branched", "split"]


def branched(draft: Draft, evidence: Evidence, rank: int, rounds: int) -> Draft:
    """The draft with the branch of the least error among those tried: SVDQuant's iteration.

    Args:
        draft: a layer without a branch, after its transforms.
        evidence: rounds drafts, and measures their outputs.
        rank: of the branch.
        rounds: branches that are tried at most; the first that is worse than the one before ends it.
    """
    assert evidence.inputs is not None
    assert evidence.tried is not None
    given = evidence.inputs(draft)
    best, least, rest = draft, float("inf"), draft.weight
    for _ in range(rounds):
        made = split(draft, rest, rank, given.execution)
        rounded = evidence.tried(made)
        error = given.error(rounded)
        if error >= least:
            break
        best, least = made, error
        rest = draft.weight - torch.from_numpy(rounded.layer().weight())
    return best


def split(draft: Draft, rest: torch.Tensor, rank: int, execution: Execution = HOST) -> Draft:
    """The draft with a branch of `rank` that is nearest to `rest`, and what that leaves of its weight.

    Args:
        draft: a layer without a branch, its weight after its transforms.
        rest: float32 [N, K], approximated.
        rank: at most the smaller of N and K.
        execution: whose device decomposes it, in float32.
    """
    left, values, right = torch.linalg.svd(execution.there(rest), full_matrices=False)
    root = values[:rank].sqrt()
    up = host(left[:, :rank] * root).T  # [R, N]
    down = host(right[:rank].T * root)  # [K, R], of transformed inputs
    if draft.spec.input_ops:
        down = transformed(torch.eye(len(down)), draft.spec.input_ops) @ down
    branch = LowRank.of(down.half().numpy(), up.half().contiguous().numpy())
    own = transformed_weight(torch.from_numpy(branch.weight()), draft.spec.input_ops)
    return replace(draft, spec=replace(draft.spec, branch=branch), weight=draft.weight - own)
