"""Slots for LoRAs that are added at run time: what is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.options import OUTPUT, Option
from fp4dit_onnx.values import whole

__all__ = ["SlotOptions", "asked_slots"]

LARGEST_RANK = 1024


@dataclass(frozen=True, kw_only=True)
class SlotOptions:
    """Each field's option says what it is."""

    lora_slots: Annotated[
        int | None,
        Option(
            "Rank of a slot beside quantized linears of the transformer, which LoRAs fill at run time: "
            "fp4dit-onnx lora convert, generate --adapter.",
            OUTPUT,
            unit="RANK",
        ),
    ] = None
    lora_layers: Annotated[
        tuple[str, ...],
        Option(
            "Linears that get a slot, by layer name with shell wildcards; by default all that are "
            "quantized. Repeatable.",
            OUTPUT,
            unit="PATTERN",
        ),
    ] = ()


def asked_slots(request: SlotOptions, layers: Iterable[str]) -> dict[str, int]:
    """Rank of the slot of each layer that gets one.

    Args:
        request: what is asked for.
        layers: names of the quantized linears.

    Raises:
        UsageError: a rank out of range, a pattern that matches no layer, or patterns without a rank.
    """
    rank, patterns = request.lora_slots, request.lora_layers or ("*",)
    if rank is None:
        if request.lora_layers:
            raise UsageError(
                f"lora_layers {request.lora_layers[0]}: expected with --lora-slots RANK; give both"
            )
        return {}
    whole("lora_slots", rank, 1, LARGEST_RANK)
    known = list(layers)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(
                f"lora_layers {pattern}: no quantized linear of this name, such as "
                f"{known[0] if known else 'none'}; --dry-run lists them"
            )
    return {n: rank for n in known if any(fnmatchcase(n, pattern) for pattern in patterns)}
