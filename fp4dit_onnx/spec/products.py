"""What kernels can multiply: formats, groups and scales of a layer that go together."""

from __future__ import annotations

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.numbers.numerics import SUM_LIMIT, largest_sum
from fp4dit_onnx.numbers.scale_formats import MULTIPLIED
from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["check_product"]

NARROW = 4
"""Bits of the weights beside signs."""


def check_product(name: str, spec: LayerSpec, k: int | None) -> None:
    """Integer activations need integer weights, and sums of products below 2^31.

    A sum goes over a group, with multipliers over a whole row of products that fill int8, and at
    most over inputs that share an activation's scale.

    Args:
        name: of the layer.
        spec: its formats.
        k: input channels, None for as many as a group has.

    Raises:
        UsageError: they cannot be multiplied.
    """
    weight, activation = spec.weight_format, spec.activation_format
    _check_groups(name, spec, k)
    _check_wide(name, spec, k)
    if activation is None or activation.integer_type == np.float32:
        return
    if weight.integer_type == np.float32:
        raise UsageError(
            f"layer {name}: weights in {weight.name} need float or equally wide activations, found "
            f"{activation.name}: choose another weight format, such as int8, or a16"
        )
    what, size, advice = "group", spec.group_size, "use groups of at most {}"
    of_token = spec.activation_group_size
    if spec.scale_format.multiplied:
        weight, what, advice = format_by_name("int8"), "row", "use scales in float16 beyond {}"
    if k is not None:
        size = k if spec.scale_format.multiplied else min(k, size)
    size = size if of_token is None else min(size, of_token)
    largest = largest_sum(activation, weight, size)
    if largest >= SUM_LIMIT:
        most = (SUM_LIMIT - 1) // largest_sum(activation, weight, 8) * 8
        raise UsageError(
            f"layer {name}: a {what} of {size} products of {weight.name} and {activation.name} can "
            f"reach {largest}, expected less than 2^31: {advice.format(most)}"
        )


def _check_groups(name: str, spec: LayerSpec, k: int | None) -> None:
    """Of the weight's groups and a token's one is made of whole others, but under integer scales."""
    sizes = sorted((spec.group_size, spec.activation_group_size or spec.group_size))
    whole = k is not None and sizes[1] >= k
    if sizes[1] % sizes[0] and not whole and not spec.scale_format.multiplied:
        raise UsageError(
            f"layer {name}: groups of {spec.group_size} inputs of the weight and of "
            f"{spec.activation_group_size} of a token: expected one to be a multiple of the other"
        )


def _check_wide(name: str, spec: LayerSpec, k: int | None) -> None:
    """Signs are stored beside 4-bit codes and multipliers, and from a group's start on."""
    wide, fmt = spec.wide, spec.weight_format
    if wide is None:
        return
    inside = 0 < wide < (wide + 1 if k is None else k) and wide % spec.group_size == 0
    if not inside or fmt.storage_bits != NARROW or not spec.scale_format.multiplied:
        raise UsageError(
            f"layer {name}: {wide} of {k} inputs in {fmt.name} with {spec.weight.scale} scales, then "
            f"signs: expected whole groups of {spec.group_size}, fewer than all, a 4-bit format and "
            f"scales {MULTIPLIED}"
        )
