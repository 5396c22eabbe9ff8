"""Formats and ranges by the error of a layer's output on recorded rows, activations quantized too.

LLM-FP4 (arXiv 2310.16836), section "search". A range is searched as the magnitude c that becomes the
format's largest, in equal shares of the largest that there is. The published code multiplies the
exponent bias instead, which is log2(c) with its sign turned and a constant: whether a factor below 1
makes the range narrower or wider then depends on the sign of the bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import expand_groups, quantized_values
from fp4dit_onnx.calibration.layer_inputs import LayerInputs
from fp4dit_onnx.calibration.moments import HalfWeights, Rows
from fp4dit_onnx.calibration.ranges import shared_scales
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.network.execution import Execution, host, sum64
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec

__all__ = ["SMALLEST_SHARE", "OutputSearch", "Settings", "exponent_shifts"]

SMALLEST_SHARE, LARGEST_SHARE = 0.1, 1.2
"""Of the largest magnitude: what becomes the format's largest lies between."""
USUAL_SHARE = 0.8
"""Where the best often is: candidates are tried from here outwards, so that most are left early."""
PARTS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Ends of the parts of the rows after which candidates that err more than the best are left."""


@dataclass(frozen=True)
class Settings:
    """How far is searched.

    Attributes:
        candidates: for each range, evenly from `SMALLEST_SHARE` to `LARGEST_SHARE`.
        rows: pairs of recorded rows that are looked at, at most.
    """

    candidates: int
    rows: int

    @property
    def shares(self) -> list[float]:
        """Of the largest magnitude."""
        shares: list[float] = torch.linspace(
            SMALLEST_SHARE, LARGEST_SHARE, self.candidates
        ).tolist()
        return shares


class OutputSearch:
    """The error of one layer's output, for weights and activations that are quantized in any way.

    Args:
        draft: its weight, and its specification, of which transforms count.
        given: what it receives.
        settings: see `Settings`.
    """

    def __init__(self, draft: Draft, given: LayerInputs, settings: Settings) -> None:
        rows = given.received(draft)
        count = len(rows.weight)
        pick = torch.linspace(0, count - 1, min(count, settings.rows)).round().long()
        there: Execution = given.execution
        self._rows = Rows(there.there(rows.halves[pick]), rows.weight[pick], rows.guidance)
        self._host, self._there, self._shares = draft.weight, there, settings.shares
        self._factor = _factor(rows.guidance)
        weight = there.there(draft.weight)
        received = self._combined(self._rows.halves)
        size = received.square().sum(dim=1)
        self._order = size.argsort(descending=True, stable=True)
        ends = [math.ceil(len(size) * part) for part in PARTS]
        self._parts = [slice(*pair) for pair in itertools.pairwise((0, *ends))]
        self._wanted = received[self._order] @ weight.T  # [C, N]
        nearest = sorted(
            range(len(self._shares)), key=lambda i: abs(self._shares[i] - USUAL_SHARE)
        )
        self._tried = tuple(nearest)

    def _combined(self, halves: torch.Tensor) -> torch.Tensor:
        """Rows whose squared errors, added up, are the weighted error of `Rows.error`: [C, K]."""
        root = (self._rows.weight / self._rows.weight.sum()).sqrt().to(halves)[:, None]
        parts = [
            sum(f * h for f, h in zip(row, halves.unbind(1), strict=True)) for row in self._factor
        ]
        return torch.cat([root * part for part in parts])

    def activations(self, spec: TensorSpec | None) -> torch.Tensor:
        """What the layer multiplies, quantized as `spec` says: [C, K], the largest rows first."""
        halves = self._rows.halves
        quantized = halves if spec is None else quantized_values(halves, spec)
        return self._combined(quantized)[self._order]

    def error(
        self, activations: torch.Tensor, weight: torch.Tensor, most: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Squared error of each output channel, float32 [N], there.

        Args:
            activations: [C, K].
            weight: [N, K].
            most: [N]; of a channel that errs more, part of the error may be given, which is more too.
        """
        total = torch.zeros(len(weight), device=weight.device)
        left: torch.Tensor | slice = slice(None)
        for part in self._parts:
            wanted = self._wanted[part][:, left]
            total[left] += (activations[part] @ weight[left].T - wanted).square().sum(dim=0)
            if most is not None:
                left = (total <= most).nonzero()[:, 0]
                if not len(left):
                    break
        return total

    def best_scale(
        self, activations: torch.Tensor, spec: LayerSpec
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The scales of each output channel under which it errs least, the first of equals.

        Returns:
            Scales as stored, float32 [N, G]; the weight under them, there; the error of all channels.
        """
        scales = torch.stack([*shared_scales(self._host, spec, self._shares)])  # [S, N, G]
        least = self._there.there(torch.full((len(self._host),), torch.inf))
        best = torch.full_like(least, len(scales), dtype=torch.int64)
        for number in self._tried:
            weight = self._there.there(_nearest(self._host, scales[number], spec))
            found = self.error(activations, weight, least)
            better = (found < least) | ((found == least) & (best > number))
            best = torch.where(better, number, best)
            least = torch.minimum(found, least)
        scale = scales[host(best), torch.arange(len(best))]
        return scale, self._there.there(_nearest(self._host, scale, spec)), sum64(least)

    def _under(self, fmt: str, share: float) -> TensorSpec:
        """Activations under a share of the largest magnitude of the rows."""
        most = share * float(host(self._rows.halves.abs().max()))
        return TensorSpec.of_activations(fmt, largest=max(most, float(SMALLEST_AMAX)))

    def best_largest(
        self, formats: Sequence[str], weight: torch.Tensor
    ) -> tuple[TensorSpec, float]:
        """Activations in the format and under the one scale that err least, and the error.

        Of equals the first format is taken, and the least scale.
        """
        least, best = (math.inf, len(formats), 0), self._under(formats[0], 1.0)
        for (number, name), share in itertools.product(enumerate(formats), self._tried):
            spec = self._under(name, self._shares[share])
            found = self._sum(self.activations(spec), weight, least[0]), number, share
            if found < least:
                least, best = found, spec
        return best, least[0]

    def _sum(self, activations: torch.Tensor, weight: torch.Tensor, most: float) -> float:
        """The error of all channels; part of it, but more than `most`, where it is more."""
        total = 0.0
        for part in self._parts:
            difference = activations[part] @ weight.T - self._wanted[part]
            total += sum64(difference.square_().sum(dim=0))
            if total > most:
                break
        return total

    def joint(
        self, spec: LayerSpec, weights: Sequence[str], activations: Sequence[str], rounds: int
    ) -> LayerSpec:
        """Both formats and the activations' largest magnitude, in turn; the weight's scales besides.

        Args:
            spec: to begin with; its activations begin under the largest magnitude of the rows.
            weights: formats of the weight, one or more.
            activations: formats of the activations, one or more.
            rounds: how often each is searched.
        """
        assert spec.input is not None
        given = self._under(spec.input.format, 1.0)
        for _ in range(rounds):
            received = self.activations(given)
            specs = [spec.with_weight(format=name) for name in weights]
            found = [self.best_scale(received, one) for one in specs]
            errors = [error for _, _, error in found]
            best = errors.index(min(errors))
            spec, weight = specs[best], found[best][1]
            given, _ = self.best_largest(activations, weight)
        return replace(spec, input=given)


def _factor(guidance: HalfWeights) -> Sequence[Sequence[float]]:
    """Combinations of the halves whose squares, added up, are an error as `HalfWeights` counts it.

    The mean of both halves' squares and the weighted square of the guided combination are one quadratic
    form of two numbers: two products a pair of rows, not three.
    """
    if not guidance.paired:
        return ((1.0,),)
    unit = torch.eye(2, dtype=torch.float64)
    guided = guidance.combined(unit[0], unit[1])
    form = unit / 2 + guidance.weight * torch.outer(guided, guided)
    rows: list[list[float]] = torch.linalg.cholesky(form, upper=True).tolist()
    return rows


def _nearest(weight: torch.Tensor, scale: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """The weight [N, K] rounded to nearest under scales [N, G], dequantized."""
    integers = round_to_nearest(weight, scale, spec.weight_format, spec.group_size)
    return integers.mul_(expand_groups(scale, weight.shape[1], spec.group_size))


def exponent_shifts(peaks: torch.Tensor, exponent_bits: int, mantissa_bits: int) -> torch.Tensor:
    """Pre-shifted exponent biases: how many powers of two smaller an input's range is than the tensor's.

    ``b = 2^E - log2(peak) + log2(2 - 2^-M) - 1`` is the exponent bias that gives an input its own range,
    rho the least of them; the shift is ``clamp(round(b), round(rho), round(rho) + 2^E - 1) -
    round(rho)``.

    Args:
        peaks: largest magnitude of each input, [K]; of one that is always 0 the shift is 0.
        exponent_bits: E of the activations' format; without exponent there is no shift.
        mantissa_bits: M of it.

    Returns:
        Whole numbers from 0 to 2^E - 1, float64 [K].
    """
    live = peaks > 0
    if exponent_bits == 0 or not bool(live.any()):
        return torch.zeros_like(peaks, dtype=torch.float64)
    span = 2.0**exponent_bits
    constant = span + torch.log2(torch.tensor(2 - 2.0**-mantissa_bits, dtype=torch.float64)) - 1
    bias = constant - torch.log2(torch.where(live, peaks, peaks.max()).double())
    least = bias.min().round()
    return torch.where(live, bias.round().clamp(least, least + span - 1) - least, 0.0)
