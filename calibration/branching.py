"""Branches of low rank: a layer's weight split into two narrow matrices and what is left to round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.transforming import transformed, transformed_weight
from fp4dit_onnx.network.execution import HOST, Execution, host
from fp4dit_onnx.spec.low_rank import LowRank

__all__ = ["branched", "leading", "split"]


def branched(members: Sequence[Draft], evidence: Evidence, rank: int, rounds: int) -> Drafts:
    """The drafts with the branches of the least error among those tried: SVDQuant's iteration.

    Args:
        members: layers without a branch that read one tensor, after the same transforms.
        evidence: rounds drafts, and measures their outputs.
        rank: of the branches.
        rounds: branches that are tried at most; the first that is worse than the one before ends it.
    """
    assert evidence.inputs is not None
    assert evidence.tried is not None
    given = {draft.name: evidence.inputs(draft) for draft in members}
    execution = given[members[0].name].execution
    best: Drafts = {draft.name: draft for draft in members}
    least, rests = float("inf"), [draft.weight for draft in members]
    for _ in range(rounds):
        made = split(members, rests, rank, execution)
        rounded = [evidence.tried(draft) for draft in made.values()]
        error = sum(given[draft.name].error(draft) for draft in rounded)
        if error >= least:
            break
        best, least = made, error
        rests = [
            draft.weight - torch.from_numpy(other.layer().weight())
            for draft, other in zip(members, rounded, strict=True)
        ]
    return best


def leading(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors left [N, R] and right [K, R] whose product is nearest to `matrix` [N, K], float32.

    The smaller side's leading singular vectors, as eigenvectors of its second moments, and the matrix
    along them: less work than all singular vectors. The factors share each singular value's root.
    """
    n, k = matrix.shape
    wide = matrix if n <= k else matrix.T
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:]
    along = wide.T @ vectors
    root = along.norm(dim=0).sqrt()
    factors = vectors * root, along / root.clamp(min=torch.finfo(root.dtype).tiny)
    return factors if n <= k else factors[::-1]


def split(
    members: Sequence[Draft],
    rests: Sequence[torch.Tensor],
    rank: int,
    execution: Execution = HOST,
) -> Drafts:
    """The drafts with branches nearest to `rests`, and what these leave of their weights.

    They share A: the weights, one below the other, are decomposed as one.

    Args:
        members: layers without a branch that read one tensor, weights after the same transforms.
        rests: of each, float32 [N, K], approximated.
        rank: at most K, and the N of all together.
        execution: whose device decomposes them, in float32.
    """
    both = leading(execution.there(torch.cat([*rests])), rank)
    up, down = map(host, both)  # [all N, R]; [K, R], of transformed inputs
    ups = torch.split(up, [len(rest) for rest in rests])
    ops = members[0].spec.input_ops
    if ops:
        down = transformed(torch.eye(len(down)), ops) @ down
    half = down.half().numpy()
    found = {}
    for draft, up in zip(members, ups, strict=True):
        branch = LowRank.of(half, up.T.half().contiguous().numpy())
        own = transformed_weight(torch.from_numpy(branch.weight()), ops)
        spec = replace(draft.spec, branch=branch)
        found[draft.name] = replace(draft, spec=spec, weight=draft.weight - own)
    return found
