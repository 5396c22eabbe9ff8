"""Rounding to a format's grid in torch, bit for bit `fp4dit_onnx.numbers.numerics`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fp4dit_onnx.network.execution import Execution
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.numbers.numerics import FINENESS, SMALLEST_AMAX
from fp4dit_onnx.spec.spec import TensorSpec

__all__ = [
    "binade_step",
    "expand_groups",
    "passed",
    "quantize_activations",
    "quantize_rows",
    "quantize_static",
    "quantized_values",
    "round_to_grid",
    "row_chunks",
]

EXPONENT = 0x7F800000
"""Bits of a float32's exponent."""
CHUNK = 1 << 20
"""Elements that are worked on at a time: they stay in a core's cache, and no memory is asked for."""


def row_chunks(values: torch.Tensor, width: int | None = None) -> tuple[torch.Tensor, ...]:
    """`values` [N, ...] in chunks of rows, as many as `CHUNK` elements of rows of `width` make."""
    rows = max(1, CHUNK // max(1, width or values.shape[1]))
    return torch.split(values, rows)


def binade_step(values: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Distance between the grid integers around `values` (any shape, float32, grid-integer units).

    A power of two, 1 up to the first normal binade: FP4DiT's s(w) in units of the group's scale.
    """
    # The exponent field alone is a power of two; frexp and ldexp take ten times as long.
    binade = (values.contiguous().view(torch.int32) & EXPONENT).view(torch.float32)
    return binade.mul_(2.0**-fmt.mantissa_bits).clamp_(min=1.0)


def round_to_grid(t: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Nearest grid integer of finite `t` (any shape, float32), saturating, ties to even."""
    limit = fmt.max_integer
    if limit < 2 << fmt.mantissa_bits:  # every integer is on the grid
        return t.round().clamp_(-limit, limit)
    step = binade_step(t, fmt)
    return (t / step).round_().mul_(step).clamp_(-limit, limit)


def quantize_rows(
    x: torch.Tensor,
    fmt: FloatFormat,
    group_size: int | None = None,
    candidates: Sequence[float] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Online quantization, `numerics.quantize`: grid integers (float32 [..., K]), scales [..., G].

    Args:
        x: float32 [..., K].
        fmt: the element format.
        group_size: inputs of a row that share a scale; None for all, so that G is 1.
        candidates: grid integers that a group's largest magnitude may become in place of the format's
            largest, where the group's squared error is less.
    """
    k = x.shape[-1]
    if group_size is not None and group_size < k:
        padded = torch.nn.functional.pad(x, (0, -k % group_size)) if k % group_size else x
        groups = padded.unflatten(-1, (-1, group_size))  # type: ignore[no-untyped-call]
        q, scale = quantize_rows(groups, fmt, None, candidates)
        return q.flatten(-2)[..., :k], scale.squeeze(-1)
    amax = x.abs().amax(dim=-1, keepdim=True)  # of a row that is not finite: NaN or infinity
    finite = torch.isfinite(amax)
    live = finite & (amax >= float(SMALLEST_AMAX))
    ordinary = x if bool(live.all()) else torch.where(live, x, 0.0)
    unit = torch.where(live, amax, 1.0)
    # Tensor by tensor: torch divides a number by a tensor as number * reciprocal, rounded twice.
    limit = torch.full_like(amax, fmt.max_integer)
    t = ordinary * (limit / unit)
    q = round_to_grid(t, fmt)
    least = _steps(t, q, fmt.max_integer) if candidates else None
    for candidate in candidates:
        assert least is not None
        other = torch.full_like(amax, candidate)
        t = ordinary * (other / unit)
        found = round_to_grid(t, fmt).clamp_(-candidate, candidate)
        error = _steps(t, found, candidate)
        better = error < least
        least = torch.where(better, error, least)
        better = better.to(x.device)
        q, limit = torch.where(better, found, q), torch.where(better, other, limit)
    scale = torch.where(live, amax / limit, 0.0)
    return q, torch.where(finite, scale, torch.nan)


def quantize_static(
    x: torch.Tensor, fmt: FloatFormat, largest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`numerics.quantize_static`: grid integers (float32 [..., K]), scales [..., 1]."""
    finite = torch.isfinite(x).all(dim=-1, keepdim=True)
    most = torch.full_like(finite, largest, dtype=torch.float32)
    limit = torch.full_like(most, fmt.max_integer)
    t = torch.where(finite, x, 0.0).clamp(-most, most) * (limit / most)
    return round_to_grid(t, fmt), torch.where(finite, most / limit, torch.nan)


def quantize_activations(x: torch.Tensor, spec: TensorSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations as `spec` says: grid integers (float32 [..., K]), scales [..., G]."""
    fmt = format_by_name(spec.format)
    if spec.largest is not None:
        return quantize_static(x, fmt, spec.largest)
    return quantize_rows(x, fmt, spec.group_size, spec.candidates)


def quantized_values(x: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The values of activations [..., K] that are quantized as `spec` says."""
    q, scale = quantize_activations(x, spec)
    size = spec.group_size
    return q * (scale if size is None else expand_groups(scale, q.shape[-1], size))


def passed(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of `value`: rounding counts as straight through."""
    return value + (rounded - value).detach()


def _steps(t: torch.Tensor, q: torch.Tensor, limit: float) -> torch.Tensor:
    """The error in which candidates differ: see `numerics.quantize`; float64 [..., 1].

    It is on the host where the tensors' device has no float64.
    """
    steps = ((t - q) * float(FINENESS)).round_()
    steps = steps.to(Execution(t.device).float64).double()
    return steps.square_().sum(dim=-1, keepdim=True) / limit**2


def expand_groups(scale: torch.Tensor, size: int, group_size: int) -> torch.Tensor:
    """Repeat group scales [N, G] to one per element [N, size]; of a row's one scale it is a view."""
    if scale.shape[-1] == 1:
        return scale.expand(*scale.shape[:-1], size)
    return scale.repeat_interleave(min(group_size, size), dim=-1)[..., :size]
