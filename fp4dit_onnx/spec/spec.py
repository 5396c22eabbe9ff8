"""What is done to a tensor and to a layer, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.numbers.numerics import CANDIDATE_GROUP, SMALLEST_AMAX
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, ScaleFormat, scale_format_by_name
from fp4dit_onnx.spec.low_rank import LowRank
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import TRANSFORMS

__all__ = [
    "DEFAULT_GROUP_SIZE",
    "LayerSpec",
    "PerGroup",
    "PerToken",
    "TensorSpec",
    "joined_width",
    "whole_group",
]

DEFAULT_GROUP_SIZE = 128
FOUR_OVER_SIX = format_by_name("e2m1").lesser_limits
"""e2m1's 4 as a grid integer (arXiv 2512.02010)."""


def joined_width(layer: str, k: int, parts: int) -> int:
    """Inputs of each of the `parts` tensors that make the `k` inputs of a layer.

    Raises:
        UsageError: that is no multiple of 8, as groups are.
    """
    if k % (8 * parts):
        raise UsageError(
            f"layer {layer}: its {k} inputs are {parts} tensors side by side with scales of their own: "
            f"expected a multiple of {8 * parts}; keep it in float with --rule '{layer}=none'"
        )
    return k // parts


def whole_group(size: int, width: int, other: int = 1) -> int:
    """The largest group of at most `size` inputs that ends where each `width` of them do.

    Args:
        size: a multiple of 8, or as large as `width`.
        width: a multiple of 8.
        other: another group size that ends there; of the two one is made of whole others.
    """
    sizes = (8 * n for n in range(min(size, width) // 8, 0, -1))
    return next(s for s in sizes if width % s == 0 and (s % other == 0 or other % s == 0))


@dataclass(frozen=True)
class PerToken:
    """One scale per row: [..., K] has scales [..., 1]."""


@dataclass(frozen=True)
class PerGroup:
    """One scale per row and `size` inputs: [N, K] has scales [N, ceil(K / size)]."""

    size: int


@dataclass(frozen=True)
class TensorSpec:
    """How a tensor is quantized.

    Attributes:
        format: name of the element format, see `formats.FORMATS`.
        granularity: which elements share a scale.
        scale: name of the scale format, see `scale_formats.SCALE_FORMATS`.
        dynamic: whether the scale is found at run time, from the tensor itself.
        wide: of a weight, how many of its first inputs have codes of `format`, a multiple of the group
            size; those after them have a sign alone, the grid integers 1 and -1. None for all.
        candidates: grid integers that a group's largest magnitude may become in place of the format's
            largest, where that loses less; of dynamic scales.
        largest: of activations under one constant scale, the magnitude that becomes the format's
            largest; what exceeds it is cut off. None where the scale is found at run time.

    Raises:
        UsageError: `largest` is not finite or too small, or scales are per group too.
    """

    format: str
    granularity: PerToken | PerGroup
    scale: str = DEFAULT_SCALE
    dynamic: bool = False
    candidates: tuple[float, ...] = ()
    largest: float | None = None
    wide: int | None = None

    def __post_init__(self) -> None:
        """Check a constant scale, which files hold, and keep it as float32."""
        if self.largest is None:
            return
        if not float(SMALLEST_AMAX) <= self.largest <= float(np.finfo(np.float32).max):
            raise UsageError(
                f"activations' largest magnitude {self.largest:g}: expected a finite float32 from "
                f"{SMALLEST_AMAX:g}"
            )
        if self.group_size is not None:
            raise UsageError(
                f"activations have one scale, up to {self.largest:g}, and one per {self.group_size} "
                "inputs: expected one of both"
            )
        object.__setattr__(self, "largest", float(np.float32(self.largest)))

    @classmethod
    def of_activations(
        cls, fmt: str, group_size: int | None = None, largest: float | None = None
    ) -> TensorSpec:
        """Activations quantized online, a scale per token, or per token and `group_size` inputs.

        With `largest` one scale serves all tokens. In e2m1 the largest of a group, unless it is
        long, becomes 6 or 4, whichever loses less.
        """
        if group_size is None:
            return cls(fmt, PerToken(), "float32", dynamic=largest is None, largest=largest)
        few = group_size <= CANDIDATE_GROUP
        limits = FOUR_OVER_SIX if fmt == "e2m1" and few else ()
        per_group = PerGroup(group_size)
        return cls(fmt, per_group, "float32", dynamic=True, candidates=limits, largest=largest)

    @property
    def group_size(self) -> int | None:
        """Elements of a row that share a scale, None for all."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else None


@dataclass(frozen=True)
class LayerSpec:
    """How one linear layer is quantized.

    Attributes:
        weight: the weight, in groups of inputs.
        input: the activations it reads; None leaves them in float.
        input_ops: what is done to the activations at run time before they are quantized, in order;
            the weight makes up for it.
        branch: what is added to its output beside; the weight is without it.
        slot: of a LoRA that is added at run time, zeros until then; it has no tensors.

    Raises:
        UsageError: `input_ops` are not each once and in the order of `TRANSFORMS`.
    """

    weight: TensorSpec
    input: TensorSpec | None
    input_ops: tuple[Transform, ...] = ()
    branch: LowRank | None = None
    slot: LowRank | None = None

    def __post_init__(self) -> None:
        """Check the order of `input_ops`, which files do not keep."""
        names = [one.name for one in self.input_ops]
        if names != [name for name in TRANSFORMS if name in names]:
            raise UsageError(
                f"transforms {', '.join(names)}: expected each once, in the order "
                f"{', '.join(TRANSFORMS)}"
            )

    @classmethod
    def of(
        cls,
        weight: str,
        activation: str | None,
        group_size: int,
        scale: str = DEFAULT_SCALE,
        activation_group_size: int | None = None,
        input_ops: tuple[Transform, ...] = (),
        largest: float | None = None,
        branch: LowRank | None = None,
        wide: int | None = None,
    ) -> LayerSpec:
        """Formats by name.

        Args:
            weight: its element format.
            activation: that of the activations, None for float.
            group_size: inputs that share a weight scale.
            scale: format of the weight's scales.
            activation_group_size: inputs of a token that share a scale, None for all.
            input_ops: see `LayerSpec`.
            wide: see `TensorSpec`.
            largest: see `TensorSpec`; of activations under one constant scale.
            branch: see `LayerSpec`.
        """
        given = None
        if activation is not None:
            given = TensorSpec.of_activations(activation, activation_group_size, largest)
        elif largest is not None:
            raise UsageError(
                f"activations' largest magnitude {largest:g}: they stay in float, which has no scale"
            )
        own = TensorSpec(weight, PerGroup(group_size), scale, wide=wide)
        return cls(own, given, input_ops, branch)

    @property
    def weight_format(self) -> FloatFormat:
        """The element format of the weight."""
        return format_by_name(self.weight.format)

    @property
    def wide(self) -> int | None:
        """How many of the first inputs have more than a sign; None for all."""
        return self.weight.wide

    def code_bytes(self, k: int) -> int:
        """Bytes of the codes of a row of the weight, of `k` inputs."""
        wide = k if self.wide is None else self.wide
        return -(-wide * self.weight_format.storage_bits // 8) + -(-(k - wide) // 8)

    @property
    def scale_format(self) -> ScaleFormat:
        """The format of the weight's scales."""
        return scale_format_by_name(self.weight.scale)

    @property
    def activation_format(self) -> FloatFormat | None:
        """The element format of the activations, None for float activations."""
        return format_by_name(self.input.format) if self.input else None

    @property
    def formats(self) -> tuple[str, str | None]:
        """Names of both element formats, None for float activations."""
        return self.weight.format, self.input.format if self.input else None

    @property
    def group_size(self) -> int:
        """Inputs that share a weight scale."""
        assert isinstance(self.weight.granularity, PerGroup)
        return self.weight.granularity.size

    @property
    def activation_group_size(self) -> int | None:
        """Inputs of a token that share a scale; None for all of them, or float activations."""
        return self.input.group_size if self.input else None

    @property
    def without_tensors(self) -> LayerSpec:
        """The same as graphs without weights know it."""
        branch = None if self.branch is None else self.branch.without_tensors
        ops = tuple(one.without_tensors for one in self.input_ops)
        return replace(self, input_ops=ops, branch=branch)

    def with_tensors(self, tensor: Callable[[Transform, str], npt.NDArray[Any]]) -> LayerSpec:
        """The same with the tensors of its transforms, given each and the role.

        Raises:
            UsageError: a tensor of another type, shape or range than it may have.
        """
        made = [
            one.with_tensors({role: tensor(one, role) for role in one.roles})
            for one in self.input_ops
        ]
        return replace(self, input_ops=tuple(made))

    @property
    def largest(self) -> float | None:
        """Of activations under one constant scale; None where it is found at run time."""
        return self.input.largest if self.input else None

    def with_largest(self, largest: float) -> LayerSpec:
        """The same with activations, which are not in float, under one constant scale.

        Raises:
            UsageError: see `TensorSpec`.
        """
        assert self.input is not None
        return replace(self, input=TensorSpec.of_activations(self.input.format, largest=largest))

    def with_weight(self, **changes: Any) -> LayerSpec:
        """The same with other fields of the weight's specification."""
        return replace(self, weight=replace(self.weight, **changes))
