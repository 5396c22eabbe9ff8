"""What is done to a tensor and to a layer, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, ScaleFormat, scale_format_by_name

__all__ = ["DEFAULT_GROUP_SIZE", "LayerSpec", "PerGroup", "PerToken", "TensorSpec"]

DEFAULT_GROUP_SIZE = 128


@dataclass(frozen=True)
class PerToken:
    """One scale a row: [..., K] has scales [..., 1]."""


@dataclass(frozen=True)
class PerGroup:
    """One scale a row and `size` inputs: [N, K] has scales [N, ceil(K / size)]."""

    size: int


@dataclass(frozen=True)
class TensorSpec:
    """How a tensor is quantized.

    Attributes:
        format: name of the element format, see `formats.FORMATS`.
        granularity: which elements share a scale.
        scale: name of the scale format, see `scale_formats.SCALE_FORMATS`.
        dynamic: whether the scale is found at run time, from the tensor itself.
    """

    format: str
    granularity: PerToken | PerGroup
    scale: str = DEFAULT_SCALE
    dynamic: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """How one linear layer is quantized.

    Attributes:
        weight: the weight, in groups of inputs.
        input: the activations it reads; None leaves them in float.
    """

    weight: TensorSpec
    input: TensorSpec | None

    @classmethod
    def of(
        cls, weight: str, activation: str | None, group_size: int, scale: str = DEFAULT_SCALE
    ) -> LayerSpec:
        """Formats by name: weights in groups under scales of format `scale`, activations a token."""
        given = None
        if activation is not None:
            given = TensorSpec(activation, PerToken(), "float32", dynamic=True)
        return cls(TensorSpec(weight, PerGroup(group_size), scale), given)

    @property
    def weight_format(self) -> FloatFormat:
        """The element format of the weight."""
        return format_by_name(self.weight.format)

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

    def with_weight(self, **changes: Any) -> LayerSpec:
        """The same with other fields of the weight's specification."""
        return replace(self, weight=replace(self.weight, **changes))

    def to_json(self) -> dict[str, Any]:
        """Plain data for files."""
        weight, activation = self.formats
        return {
            "weight": weight,
            "activation": activation,
            "group_size": self.group_size,
            "scale": self.weight.scale,
        }
