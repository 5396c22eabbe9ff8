"""What a budget of bits or quality may be spent on, known before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fp4dit_onnx.bundle.manifest import Weight
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.layers import layer_size
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.spec.products import check_product
from fp4dit_onnx.spec.recipe import Recipe
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec, joined_width
from fp4dit_onnx.targets.target import Target

__all__ = [
    "Choice",
    "PlannedBudget",
    "planned_budget",
    "precision",
    "searched_groups",
    "with_own_bits",
]


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


def with_own_bits(
    method: Method,
    recipe: Recipe,
    specs: Mapping[str, LayerSpec],
    sizes: Mapping[str, tuple[int, int]],
    target: Target,
) -> Method:
    """The method with a budget of so many bits in place of one of the layers' `own`.

    Where layers have no choice of precisions, the method without it: a budget that nobody asked for in
    numbers is no reason to refuse.

    Args: see `planned_budget`.
    """
    budget = method.budget
    if budget is None or not budget.own:
        return method
    if target.scale != DEFAULT_SCALE or not any(map(recipe.narrow_formats, specs)):
        return method.with_budget(None)
    rows = [layer_size(*sizes[name], spec) for name, spec in specs.items()]
    bits = 8 * sum(row.bytes for row in rows) / sum(row.weights for row in rows)
    return method.with_budget(replace(budget, own=False, bits=bits))


def planned_budget(
    method: Method,
    recipe: Recipe,
    specs: Mapping[str, LayerSpec],
    sizes: Mapping[str, tuple[int, int]],
    joined: Mapping[str, int],
    target: Target,
) -> PlannedBudget | None:
    """What the layers may have, and what that takes; None where the method has no budget.

    Args:
        method: its budget stage says what; a stage that chooses formats, among which.
        recipe: the resolved request.
        specs: of each layer to quantize, as the recipe has it.
        sizes: [N, K] by layer.
        joined: see `Recipe.assign`.
        target: of the export.

    Raises:
        UsageError: bits that no choice of precisions takes, or nothing to choose among.
    """
    budget = method.budget
    if budget is None:
        return None
    if not specs or target.scale != DEFAULT_SCALE:
        why = f"target {target.name} stores groups of {target.group_size} as {target.scale} alone"
        raise UsageError(
            f"{why if specs else 'no layer is quantized'}, so a budget has nothing to choose among: "
            "leave out --target-bits and --min-sqnr"
        )
    among = next((s.among.split() for s in method.stages if isinstance(s, ChooseFormat)), ())
    # Of each layer those that its activations can be multiplied with; none without narrow formats.
    precisions = {}
    for name, spec in specs.items():
        known = recipe.narrow_formats(name)
        formats = tuple(fmt for fmt in known if fmt in among) or known
        k, parts = sizes[name][1], joined.get(name)
        width = None if parts is None else joined_width(name, k, parts)
        every = budget.precisions(spec, formats, recipe.scale, k, width) if formats else ()
        precisions[name] = tuple(
            weight for weight in every if _multiplies(name, replace(spec, weight=weight), k)
        )
    target.check({weight.format for own in precisions.values() for weight in own})
    rows = {
        name: [
            (w, layer_size(*sizes[name], replace(spec, weight=w))) for w in own or [spec.weight]
        ]
        for (name, spec), own in zip(specs.items(), precisions.values(), strict=True)
    }
    sizes_of = [[size for _, size in own] for own in rows.values()]
    weights = sum(own[0].weights for own in sizes_of)
    least = 8 * sum(min(size.bytes for size in own) for own in sizes_of) / weights
    most = 8 * sum(max(size.bytes for size in own) for own in sizes_of) / weights
    if budget.bits and not least <= budget.bits <= most:
        raise UsageError(
            f"target {budget.bits:g} bits per weight: expected from {least:.3f} to {most:.3f}, scales "
            f"included, which the {len(specs)} layers' precisions take: choose a number in between, or "
            "other groups in the budget stage of a recipe file"
        )
    choices = _choices(row for own in rows.values() for row in own)
    return PlannedBudget(
        budget.bits or None, budget.sqnr or None, least, most, choices, precisions
    )


def searched_groups(
    method: Method,
    recipe: Recipe,
    specs: Mapping[str, LayerSpec],
    sizes: Mapping[str, tuple[int, int]],
    joined: Mapping[str, int],
    target: Target,
) -> dict[str, tuple[TensorSpec, ...]]:
    """What the layers' weights may be where a stage searches group sizes; empty where none does.

    Args: see `planned_budget`.

    Raises:
        UsageError: a target that has one group size.
    """
    if method.evolution and target.scale != DEFAULT_SCALE:
        raise UsageError(
            f"method {method.name} searches group sizes, and target {target.name} stores groups of "
            f"{target.group_size} alone: choose another of either"
        )
    found: dict[str, tuple[TensorSpec, ...]] = {}
    for name, spec in specs.items() if method.evolution else ():
        if method.evolution and recipe.narrow_formats(name):
            k, parts = sizes[name][1], joined.get(name)
            width = None if parts is None else joined_width(name, k, parts)
            found[name] = method.evolution.precisions(spec, k, width)
    return found


def _multiplies(name: str, spec: LayerSpec, k: int) -> bool:
    """Whether the layer's activations can be multiplied with its weight."""
    try:
        check_product(name, spec, k)
    except UsageError:
        return False
    return True


def _choices(rows: Iterable[tuple[TensorSpec, Weight]]) -> tuple[Choice, ...]:
    """Layers under each precision that they may have."""
    groups: dict[str, list[Weight]] = {}
    for weight, size in rows:
        group = weight.group_size or size.shape[1]
        label = precision(weight.format, group, size.shape[1], weight.scale)
        groups.setdefault(label, []).append(size)
    found = []
    for label, sizes in groups.items():
        weights = sum(size.weights for size in sizes)
        found.append(
            Choice(label, len(sizes), weights, 8 * sum(size.bytes for size in sizes) / weights)
        )
    return tuple(found)
