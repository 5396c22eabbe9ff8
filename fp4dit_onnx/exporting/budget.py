"""What a budget of bits or quality may be spent on, known before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.layers import layer_size
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.spec.recipe import Recipe, check_product
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.targets.target import Target

__all__ = ["Choice", "PlannedBudget", "planned_budget", "precision"]


@dataclass(frozen=True)
class Choice:
    """A precision of weights.

    Attributes:
        precision: in words.
        layers: that may have it.
        weights: in these layers.
        bits: per weight in these layers, scales included.
    """

    precision: str
    layers: int
    weights: int
    bits: float


@dataclass(frozen=True)
class PlannedBudget:
    """A budget before it is spent.

    Attributes:
        target_bits: most bits per weight over all quantized layers, None for no such budget.
        min_sqnr_db: least SQNR of the network's guided prediction, None for no such budget.
        least_bits: per weight, if every layer had its smallest precision.
        most_bits: the same of the largest.
        choices: precisions among which layers' are chosen.
        precisions: of each layer; empty for one that a rule of the user decides.
    """

    target_bits: float | None
    min_sqnr_db: float | None
    least_bits: float
    most_bits: float
    choices: tuple[Choice, ...]
    precisions: Mapping[str, tuple[TensorSpec, ...]]


def precision(weight_format: str, group_size: int, inputs: int, scale: str) -> str:
    """A weight's precision in words."""
    shared = "one scale per row" if group_size >= inputs else f"groups of {group_size}"
    return f"{weight_format}, {shared} ({scale})"


def planned_budget(
    method: Method,
    recipe: Recipe,
    specs: Mapping[str, LayerSpec],
    sizes: Mapping[str, tuple[int, int]],
    target: Target,
) -> PlannedBudget | None:
    """What the layers may have, and what that takes; None where the method has no budget.

    Args:
        method: its budget stage says what; a stage that chooses formats, among which.
        recipe: the resolved request.
        specs: of each layer to quantize, as the recipe has it.
        sizes: [N, K] by layer.
        target: of the export.

    Raises:
        UsageError: bits that no choice of precisions takes, or a target without the formats.
    """
    budget = method.budget
    if budget is None:
        return None
    if target.scale != DEFAULT_SCALE:
        raise UsageError(
            f"target {target.name} stores groups of {target.group_size} under {target.scale} scales "
            "alone, so that a budget has nothing to choose among: leave out --target-bits and --min-sqnr"
        )
    among = next((s.among.split() for s in method.stages if isinstance(s, ChooseFormat)), ())
    precisions = {}
    for name, spec in specs.items():
        known = recipe.narrow_formats(name)
        formats = tuple(name for name in known if name in among) or known
        precisions[name] = _precisions(budget, name, spec, formats, recipe.scale, sizes[name][1])
    target.check({weight.format for own in precisions.values() for weight in own})
    rows: dict[str, list[tuple[int, int, int]]] = {}
    least = most = weights = 0
    for name, spec in specs.items():
        n, k = sizes[name]
        taken = []
        for weight in precisions[name] or (spec.weight,):
            one = replace(spec, weight=weight)
            size = layer_size(n, k, one)
            taken.append(size.bytes)
            label = precision(weight.format, one.group_size, k, weight.scale)
            rows.setdefault(label, []).append((1, size.weights, size.bytes))
        least, most, weights = least + min(taken), most + max(taken), weights + n * k
    found = PlannedBudget(
        target_bits=budget.bits or None,
        min_sqnr_db=budget.sqnr or None,
        least_bits=8 * least / weights,
        most_bits=8 * most / weights,
        choices=tuple(_choice(label, taken) for label, taken in rows.items()),
        precisions=precisions,
    )
    if budget.bits and not found.least_bits <= budget.bits <= found.most_bits:
        raise UsageError(
            f"target {budget.bits:g} bits per weight: expected from {found.least_bits:.3f} to "
            f"{found.most_bits:.3f}, scales included, which the {len(specs)} layers' precisions take: "
            "choose a number in between, or other groups in the budget stage of a recipe file"
        )
    return found


def _precisions(
    budget: Budget, name: str, spec: LayerSpec, formats: Sequence[str], scale: str, k: int
) -> tuple[TensorSpec, ...]:
    """Those of a layer that its activations can be multiplied with; none without narrow formats."""
    every = budget.precisions(spec, formats, scale, k) if formats else ()
    return tuple(w for w in every if _multiplies(name, replace(spec, weight=w), k))


def _multiplies(name: str, spec: LayerSpec, k: int) -> bool:
    try:
        check_product(name, spec, k)
    except UsageError:
        return False
    return True


def _choice(label: str, taken: Sequence[tuple[int, int, int]]) -> Choice:
    layers, weights, size = map(sum, zip(*taken, strict=True))
    return Choice(label, layers, weights, 8 * size / weights)
