"""Training an affine transform of a layer's input under AffineQuant's gradual mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import expand_groups, passed, quantized_values
from fp4dit_onnx.calibration.ranges import absmax_scale
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.network.execution import Execution, host

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.affine import AffineQuant

__all__ = ["dominant", "gradual_mask", "trained_matrix"]

SLACK = 0.99
"""Off-diagonal magnitudes of a row are at most this share of its diagonal: A stays invertible."""


def gradual_mask(size: int, epoch: int, epochs: int, share: float) -> torch.Tensor:
    """AffineQuant's GM [size, size] of an epoch: 1 on the diagonal, `share` in a band around it.

    It has ``floor((size - 1) / (epochs - 1) * epoch)`` entries on each side, in the last epoch all.
    """
    reach = size - 1 if epochs == 1 else (size - 1) * epoch // (epochs - 1)
    place = torch.arange(size)
    distance = (place[:, None] - place).abs()
    mask = torch.where(distance <= reach, share, 0.0)
    return mask.fill_diagonal_(1.0)


def dominant(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with rows' other entries made smaller where their sum reaches the diagonal's size."""
    diagonal = matrix.diagonal()
    others = matrix - torch.diag(diagonal)
    size = others.abs().sum(dim=1)
    limit = SLACK * diagonal.abs()
    shrink = torch.where(size > limit, limit / size.clamp(min=1e-30), 1.0)
    return others * shrink[:, None] + torch.diag(diagonal)


def trained_matrix(
    members: Sequence[Draft],
    rows: torch.Tensor,
    divisor: torch.Tensor,
    settings: AffineQuant,
    execution: Execution,
) -> torch.Tensor:
    """R [K, K], so that x R and W R^-T lose least when they are quantized; float32 on the host.

    R is ``diag(1 / divisor) A``, and A starts as the identity. The loss is the mean square of the
    outputs' errors over what they are in float, summed over `members`; rounding passes gradients on.

    Args:
        members: linears that read one tensor.
        rows: of it, float32 [R, K], on the host.
        divisor: [K], where the diagonal starts.
        settings: of the training.
        execution: where it is trained.
    """
    there = execution.there
    x = there(rows / divisor.float())
    weights = [there(draft.weight * divisor.float()) for draft in members]
    wanted, both = [x @ weight.T for weight in weights], torch.cat(weights).T
    size = len(divisor)
    parameter = torch.nn.Parameter(torch.eye(size, device=x.device))
    optimizer = torch.optim.AdamW([parameter], lr=settings.learning_rate, weight_decay=0.0)
    with torch.enable_grad():
        for step in range(settings.iterations):
            epoch = step * settings.epochs // settings.iterations
            mask = there(gradual_mask(size, epoch, settings.epochs, settings.share))
            matrix = parameter * mask
            moved = _rounded_rows(x @ matrix, members[0])
            each = torch.split(torch.linalg.solve(matrix, both).T, [len(y.T) for y in wanted])
            errors = [
                (moved @ _rounded_weight(weight, draft).T - y).square().mean()
                / y.square().mean().clamp(min=1e-30)
                for draft, weight, y in zip(members, each, wanted, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(errors).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                kept = dominant(parameter * mask) / torch.where(mask > 0, mask, 1.0)
                parameter.copy_(torch.where(mask > 0, kept, parameter))
    matrix = host((parameter * mask).detach())
    return matrix / divisor.float()[:, None]


def _rounded_rows(x: torch.Tensor, draft: Draft) -> torch.Tensor:
    """Activations as the layer quantizes them; in float where it does not."""
    given = draft.spec.input
    return x if given is None else passed(x, quantized_values(x.detach(), given))


def _rounded_weight(weight: torch.Tensor, draft: Draft) -> torch.Tensor:
    """A weight rounded to nearest under absmax scales, as the layer's format has them."""
    spec, plain = draft.spec, host(weight.detach())
    scale = absmax_scale(plain, spec)
    q = round_to_nearest(plain, scale, spec.weight_format, spec.group_size)
    made = q * expand_groups(scale.float(), plain.shape[1], spec.group_size)
    return passed(weight, made.to(weight.device))
