"""What to quantize and how, as data: bits, formats and rules become one specification per layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Protocol

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.numbers.scale_formats import (
    DEFAULT_SCALE,
    largest_multiplier,
    scale_format_by_name,
)
from fp4dit_onnx.spec.products import check_product
from fp4dit_onnx.spec.spec import DEFAULT_GROUP_SIZE, LayerSpec, joined_width, whole_group

__all__ = [
    "ATTENTION_PARTS",
    "FORMS",
    "Recipe",
    "Rule",
    "make_recipe",
    "parse_bits",
]

FLOAT = "none"
"""In a rule: the layer stays in float, or its activations do."""
PAPER = "paper"
WHOLE_ROW = 1 << 20
"""Group size of layers of unknown size whose rows are one group."""

ATTENTION_PARTS = ("q", "k", "v")
"""What an attention quantizes, in the order of use."""

FORMS = ("fused", "qdq")
"""``fused`` computes on integers; ``qdq`` shows each quantize and dequantize beside plain MatMuls."""

AUTO = "auto"
AUTO_FORMATS = ("e2m1", "e1m2", "e3m0")
"""What ``auto`` chooses among, layer by layer; e1m2 has the grid of symmetric INT4."""
NARROW = 4
"""Bits of the weights whose groups and formats a budget changes."""

WEIGHT_FORMATS = {
    "fp": {4: "e2m1", 6: "e2m3", 8: "int8"},
    "int": {4: "int4", 6: "int6", 8: "int8"},
}
ACTIVATION_FORMATS = {
    "fp": {4: "e2m1", 6: "e2m3", 8: "e3m4", 16: FLOAT, 32: FLOAT},
    "int": {4: "int4", 6: "int6", 8: "int8", 16: FLOAT, 32: FLOAT},
}
"""Grid of the method -> bits -> format. FP4DiT section "activations": E2M3 for A6, E3M4 for A8. A16
and A32 leave activations in float."""


@dataclass(frozen=True)
class Rule:
    """Layers whose name matches `pattern` (shell wildcards) get these formats.

    Attributes:
        pattern: matched against the layer's torch name, ``*`` also across dots.
        weight: weight format, or ``none`` to keep the layer in float.
        activation: activation format, ``none`` for float, or None for the recipe's own.
        required: a user's rule must match a layer; the paper's need not.
        reason: why the layer stays in float, if it does.
    """

    pattern: str
    weight: str
    activation: str | None = None
    required: bool = True
    reason: str = "kept in float by rule"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule written ``PATTERN=WEIGHT`` or ``PATTERN=WEIGHT/ACTIVATION``.

        Raises:
            UsageError: the text is not a rule, or names an unknown format.
        """
        pattern, equals, formats = text.rpartition("=")
        if not equals or not pattern or not formats:
            raise UsageError(
                f"layer rule {text!r}: expected PATTERN=FORMAT, for example "
                "'*.ff.net.0.proj=e3m0', '*.attn2.*=e2m1/e3m4' or 'proj_out=none'"
            )
        weight, slash, activation = formats.partition("/")
        if slash and (not activation or weight == FLOAT):
            raise UsageError(
                f"layer rule {text!r}: after '/' an activation format is expected, and a layer kept "
                "in float has none"
            )
        for name in (weight, activation or FLOAT):
            if name != FLOAT:
                format_by_name(name)
        return cls(pattern, weight, activation or None)


@dataclass(frozen=True)
class Recipe:
    """The whole request: first matching rule decides a layer.

    Attributes:
        bits: what the user asked for, such as ``w4a6``.
        method: name of the rounding method.
        activation: default activation format, or None for float.
        attention: format of q, k and v in attention, or None for float.
        group_size: input channels per weight scale.
        rules: in order; the last one matches everything.
        search: weight formats to choose among where the last rule decides; empty for no choice.
        scale: format of the weights' scales.
        activation_group_size: inputs of a token that share a scale where no rule names the
            activations' format; None for all.
    """

    bits: str
    method: str
    activation: str | None
    attention: str | None
    group_size: int
    rules: tuple[Rule, ...]
    search: tuple[str, ...] = ()
    scale: str = DEFAULT_SCALE
    activation_group_size: int | None = None

    def assign(
        self,
        layers: Sequence[str] | Mapping[str, tuple[int, int]],
        joined: Mapping[str, int] = MappingProxyType({}),
    ) -> tuple[dict[str, LayerSpec], tuple[tuple[str, str], ...]]:
        """A specification for each layer, and (name, reason) of those that stay in float.

        Args:
            layers: their names, or the shape [N, K] by name: a group is no longer than K.
            joined: layer of known shape -> how many tensors of equal width make its input; no group
                reaches from one into the next.

        Raises:
            UsageError: a user's rule matches no layer, or formats or groups cannot be multiplied.
        """
        names = tuple(layers)
        shapes = layers if isinstance(layers, Mapping) else {}
        for rule in self.rules:
            if rule.required and not any(fnmatchcase(name, rule.pattern) for name in names):
                raise UsageError(
                    f"layer rule {rule.pattern!r} matches none of the {len(names)} linear layers; "
                    f"their names look like {', '.join(names[:3])}"
                )
        specs: dict[str, LayerSpec] = {}
        skipped: list[tuple[str, str]] = []
        for name in names:
            rule = self._rule(name)
            if rule.weight == FLOAT:
                skipped.append((name, rule.reason))
                continue
            k = shapes[name][1] if name in shapes else None
            width = (
                None if name not in joined else joined_width(name, shapes[name][1], joined[name])
            )
            specs[name] = self._spec(rule, k, width)
            check_product(name, specs[name], k)
        return specs, tuple(skipped)

    def _spec(self, rule: Rule, k: int | None, width: int | None) -> LayerSpec:
        """What a rule makes of a layer.

        Args:
            rule: of the layer.
            k: its inputs; None where they are not known.
            width: of each tensor that they are made of; None for one.
        """
        activation = self.activation if rule.activation is None else rule.activation
        group_size, scale = self.group_size, self.scale
        multiplied = scale_format_by_name(scale).multiplied
        if multiplied and largest_multiplier(format_by_name(rule.weight)) == 1:
            # No room for multipliers in int8: one scale per row keeps the row's sum one integer.
            group_size, scale = k or WHOLE_ROW, DEFAULT_SCALE
        of_token = self.activation_group_size if rule.activation is None else None
        if width is not None:
            group_size = whole_group(group_size, width)
            of_token = whole_group(of_token or width, width, group_size)
        return LayerSpec.of(
            rule.weight,
            None if activation == FLOAT else activation,
            group_size,
            scale,
            activation_group_size=of_token,
        )

    def _rule(self, layer: str) -> Rule:
        return next(rule for rule in self.rules if fnmatchcase(layer, rule.pattern))

    def candidates(self, layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Layer -> weight formats to choose among by measured error, where there is a choice."""
        if not self.search:
            return {}
        return {name: self.search for name in layers if self._rule(name) is self.rules[-1]}

    def narrow_formats(self, layer: str) -> tuple[str, ...]:
        """The 4-bit weight formats that a layer may have, those of its own choice or rule.

        An outer layer's are those of the rule after its own. None where the user's rule decides.
        """
        rules = [rule for rule in self.rules if fnmatchcase(layer, rule.pattern)]
        if rules[0].required:
            return ()
        for rule in rules:
            if rule.weight != FLOAT and format_by_name(rule.weight).bits == NARROW:
                return self.search if rule is self.rules[-1] and self.search else (rule.weight,)
        return ()


def parse_bits(bits: str) -> tuple[int, int]:
    """Weight and activation bits of a string such as ``w4a6``.

    Raises:
        UsageError: not of that form, or a width that no default format has.
    """
    match = re.fullmatch(r"w([1-9][0-9]*)a([1-9][0-9]*)", bits.lower())
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if found[0] not in WEIGHT_FORMATS["fp"] or found[1] not in ACTIVATION_FORMATS["fp"]:
        weights = "|".join(map(str, WEIGHT_FORMATS["fp"]))
        activations = "|".join(map(str, ACTIVATION_FORMATS["fp"]))
        raise UsageError(
            f"unknown bits {bits!r}: expected w<{weights}>a<{activations}>, for example w4a6"
        )
    return found


class Method(Protocol):
    """What a recipe takes from a method."""

    @property
    def name(self) -> str:
        """As in ``--method``."""
        ...

    @property
    def grid(self) -> str:
        """``fp`` or ``int``."""
        ...


def make_recipe(
    bits: str,
    *,
    method: Method,
    paper_rules: Iterable[tuple[str, str]],
    skip: Iterable[tuple[str, str]] = (),
    weight_format: str | None = None,
    activation_format: str | None = None,
    attention_format: str | None = None,
    group_size: int = DEFAULT_GROUP_SIZE,
    scale: str = DEFAULT_SCALE,
    rules: Iterable[str] = (),
    activation_group_size: int | None = None,
    outer_layers: str | None = None,
    outer: Iterable[str] = (),
) -> Recipe:
    """The recipe of a request.

    The user's rules come first, then what the family keeps in float, its outer layers, the default.

    Args:
        bits: such as ``w4a6``.
        method: its grid gives the default formats.
        paper_rules: FP4DiT's weight formats for the family, used at 4 bits without `weight_format`.
        skip: (pattern, reason) of layers that stay in float.
        weight_format: one format for all weights, ``paper`` or ``auto``.
        activation_format: in place of the default for the bits.
        attention_format: of q, k and v in attention, as wide as the activations or wider, ``none``
            for float; None is the activations'.
        group_size: input channels per weight scale, a positive multiple of 8.
        scale: format of the weights' scales.
        rules: the user's, as `Rule.parse` reads them.
        activation_group_size: inputs of a token that share a scale, a positive multiple of 8; None
            for all.
        outer_layers: formats of the family's outer layers, as a rule has them; None for no
            difference.
        outer: patterns of the names of those layers.

    Raises:
        UsageError: any of these is unknown or contradicts another.
    """
    weight_bits, activation_bits = parse_bits(bits)
    for what, size in (("", group_size), ("activation ", activation_group_size)):
        if size is not None and (size < 8 or size % 8):
            raise UsageError(
                f"{what}group size {size}: expected a positive multiple of 8, such as 128"
            )
    scale_format_by_name(scale)
    grid = method.grid
    activation = activation_format or ACTIVATION_FORMATS[grid][activation_bits]
    if activation != FLOAT:
        _check_bits("activation", format_by_name(activation), activation_bits)
    attention = attention_format or activation
    if attention != FLOAT and format_by_name(attention).bits < activation_bits:
        _check_bits("attention", format_by_name(attention), activation_bits)
    tail = _weight_rules(weight_format, weight_bits, grid, tuple(paper_rules))
    kept = tuple(Rule(p, FLOAT, required=False, reason=why) for p, why in skip)
    asked = tuple(Rule.parse(text) for text in rules)
    named = outer if outer_layers else ()
    outside = (replace(Rule.parse(f"{p}={outer_layers}"), required=False) for p in named)
    return Recipe(
        bits=bits.lower(),
        method=method.name,
        activation=None if activation == FLOAT else activation,
        attention=None if attention == FLOAT else attention,
        group_size=group_size,
        scale=scale,
        rules=(*asked, *kept, *outside, *tail),
        search=AUTO_FORMATS if weight_format == AUTO else (),
        activation_group_size=activation_group_size,
    )


def _weight_rules(
    weight_format: str | None, bits: int, grid: str, paper_rules: tuple[tuple[str, str], ...]
) -> tuple[Rule, ...]:
    """The rules that decide where neither the user nor the family does."""
    if weight_format == AUTO and (bits != 4 or grid != "fp"):
        raise UsageError(
            "weight format auto chooses among 4-bit floating-point formats: expected w4 and a "
            "method of the fp grid, such as fp4dit"
        )
    if weight_format in (None, PAPER) and bits == 4 and grid == "fp":
        return tuple(Rule(p, f, required=False) for p, f in paper_rules)
    named = weight_format not in (None, PAPER, AUTO)
    chosen = str(weight_format) if named else WEIGHT_FORMATS[grid][bits]
    _check_bits("weight", format_by_name(chosen), bits)
    return (Rule("*", chosen, required=False),)


def _check_bits(role: str, fmt: FloatFormat, bits: int) -> None:
    if fmt.bits != bits:
        raise UsageError(
            f"{role} format {fmt.name} has {fmt.bits} bits, but the bits asked for give {bits}: "
            "change one of them"
        )
