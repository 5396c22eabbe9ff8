"""LoRA files, added to a pipeline's weights where these are read.

Two layouts are known: that of diffusers and peft, whose names are those of the network's modules with
dots, and kohya's, with underscores in place of the dots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fp4dit_onnx.checkpoint.tensor_files import LowRank, TensorInfo, read_header, read_metadata
from fp4dit_onnx.checkpoint.tensor_reading import BF16, FLOATS, read_float32
from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.files import CHECKPOINT, checked, parse_object, read_json

__all__ = ["fused", "low_rank_parts", "named_file"]

PART = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<letter>[AB])(?:\.default)?|lora[._](?P<word>down|up))\.weight"
)
ALPHA = ".alpha"
DOWN = ("A", "down")
FLAT = {
    "transformer": ("lora_transformer_", "lora_unet_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
"""What kohya's names of each component begin with."""
BARE = ("", "base_model.model.")
"""What names of the transformer begin with where they do not say the component: peft's."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings in a safetensors header."""
SETTINGS = "adapter_config.json"
"""Where peft keeps them, beside the file."""
NAMED = re.compile(r"\^?[\w.]+")
"""Keys of peft's patterns that are names of layers, or ends of them."""


@dataclass(frozen=True)
class _Settings:
    """What peft says of a component's adapters.

    Attributes:
        lora_alpha: of every layer; None for the layer's rank.
        use_rslora: whether alpha is divided by the rank's root.
        use_dora: whether lengths of weights are learned too.
        alpha_pattern: ends of layers' names -> alpha of theirs. Ranks are those of the tensors.
    """

    lora_alpha: float | None = None
    use_rslora: bool = False
    use_dora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether this is a LoRA, with layers named by their names."""
        return not self.use_dora and all(map(NAMED.fullmatch, self.alpha_pattern))

    def alpha(self, layer: str) -> float | None:
        """Of a layer of the network, by its name there."""
        for name, alpha in self.alpha_pattern.items():
            if f".{layer}".endswith(f".{name.removeprefix('^')}"):
                return alpha
        return self.lora_alpha

    def scale(self, alpha: float | None, rank: int) -> float:
        """What the product of a layer's halves is multiplied with."""
        divisor = math.sqrt(rank) if self.use_rslora else rank
        return 1.0 if alpha is None else alpha / divisor


@dataclass
class _Adapter:
    """What a file has for one layer, as far as it has been read."""

    down: TensorInfo | None = None
    up: TensorInfo | None = None
    alpha: TensorInfo | None = None


def named_file(
    text: str, what: str | None = None, kind: str = "a safetensors file"
) -> tuple[Path, float]:
    """The file and the scale in ``FILE[:SCALE]``.

    Args:
        text: as it was given.
        what: messages call it; by default a LoRA.
        kind: of file, for messages.

    Raises:
        UsageError: no such file, or a scale that is not a finite number.
    """
    what = what or f"LoRA {text}"
    file, colon, end = text.rpartition(":")
    if not colon or Path(text).is_file():
        file, end = text, "1"
    try:
        scale = float(end)
    except ValueError:
        file, scale = text, 1.0
    if not math.isfinite(scale):
        raise UsageError(f"{what}: scale {end}: expected a finite number, such as 0.8")
    if not Path(file).is_file():
        raise UsageError(f"{what}: no file {file}: expected FILE or FILE:SCALE, {kind}")
    return Path(file), scale


def fused(
    parts: Mapping[str, Mapping[str, TensorInfo]], text: str, unread: Collection[str] = ()
) -> tuple[dict[str, dict[str, TensorInfo]], str]:
    """A pipeline's tensors with a LoRA added, and a note on it.

    Args:
        parts: stored tensors of each component.
        text: ``FILE[:SCALE]``.
        unread: further components of the pipeline, whose layers in the file are left out.

    Raises:
        UsageError: no such file, or a scale that is none.
        CheckpointError: a damaged file; one that is no LoRA, or not of these networks alone; sizes that
            do not fit.
    """
    file, scale = named_file(text)
    deltas = low_rank_parts(file, parts, unread)
    found = {name: dict(tensors) for name, tensors in parts.items()}
    for (component, name), delta in deltas.items():
        weight, scaled = found[component][name], replace(delta, scale=scale * delta.scale)
        found[component][name] = replace(weight, low_rank=(*weight.low_rank, scaled))
    return found, f"LoRA {file.name} times {scale:g} is added to {len(deltas)} weights"


def low_rank_parts(
    file: Path, parts: Mapping[str, Mapping[str, TensorInfo]], unread: Collection[str] = ()
) -> dict[tuple[str, str], LowRank]:
    """What a LoRA file adds, by component and tensor; arguments and errors as of `fused`."""
    starts = tuple(start for name in unread for start in (f"{name}.", *FLAT.get(name, ())))
    adapters = {n: a for n, a in _adapters(file).items() if not n.startswith(starts)}
    places = _places(parts)
    strangers = [layer for layer in adapters if layer not in places]
    if strangers:
        raise CheckpointError(
            f"{file}: {len(strangers)} of its {len(adapters)} layers are not in this pipeline, "
            f"{strangers[0]!r} among them: expected a LoRA of this model, with the names of diffusers "
            "or kohya's of them"
        )
    settings = _all_settings(file, parts)
    found = {}
    for layer, adapter in adapters.items():
        component, name = places[layer]
        own = settings.get(component, _Settings())
        alpha = _alpha(file, layer, adapter, own.alpha(name.removesuffix(".weight")))
        down, up = _halves(file, layer, adapter, parts[component][name])
        found[component, name] = LowRank(down, up, own.scale(alpha, down.shape[0]))
    return found


def _adapters(file: Path) -> dict[str, _Adapter]:
    """What a file has, by the names that it has for layers."""
    found: dict[str, _Adapter] = {}
    for name, info in read_header(file).items():
        match = PART.fullmatch(name)
        layer = match["layer"] if match else name.removesuffix(ALPHA)
        if layer == name or info.dtype not in (*FLOATS, BF16):
            raise CheckpointError(
                f"{file}: tensor {name!r} of type {info.dtype} is none of a LoRA's: expected pairs of "
                "F32, F16 or BF16 such as lora_A and lora_B, or lora_down, lora_up and alpha"
            )
        adapter = found.setdefault(layer, _Adapter())
        if match is None:
            adapter.alpha = info
        elif (match["letter"] or match["word"]) in DOWN:
            adapter.down = info
        else:
            adapter.up = info
    if not found:
        raise CheckpointError(f"{file} holds no tensors: expected a LoRA; download it again")
    return found


def _places(parts: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, tuple[str, str]]:
    """Component and tensor by every name that a file may have for its layer."""
    found = {}
    for component, tensors in parts.items():
        bare = BARE if component == "transformer" else ()
        for name in tensors:
            layer = name.removesuffix(".weight")
            if layer == name:
                continue
            for start in (f"{component}.", *bare):
                found[start + layer] = (component, name)
            for start in FLAT.get(component, ()):
                found[start + layer.replace(".", "_")] = (component, name)
    return found


def _halves(
    file: Path, layer: str, adapter: _Adapter, weight: TensorInfo
) -> tuple[TensorInfo, TensorInfo]:
    """What goes down and up again, once they are known to fit each other and `weight`."""
    down, up = adapter.down, adapter.up
    if down is None or up is None:
        raise CheckpointError(
            f"{file}: layer {layer!r} has one half of a LoRA alone: expected both; save it again"
        )
    rank, inputs = down.shape[0] if down.shape else 0, math.prod(down.shape[1:])
    wanted = (weight.shape[0], math.prod(weight.shape[1:]))
    columns = math.prod(up.shape[1:])
    if (up.shape[0] if up.shape else 0, inputs) != wanted or columns != rank or rank == 0:
        raise CheckpointError(
            f"{file}: layer {layer!r} has shapes {list(down.shape)} and {list(up.shape)}: expected "
            f"[rank, {wanted[1]}] and [{wanted[0]}, rank] for a weight of {list(weight.shape)}"
        )
    return down, up


def _alpha(file: Path, layer: str, adapter: _Adapter, stated: float | None) -> float | None:
    """The file's own of a layer, or what settings say."""
    if adapter.alpha is None:
        return stated
    values = read_float32(adapter.alpha).ravel()
    if values.size != 1 or not math.isfinite(values[0]):
        raise CheckpointError(f"{file}: alpha of layer {layer!r}: expected one finite number")
    return float(values[0])


def _all_settings(file: Path, parts: Mapping[str, object]) -> dict[str, _Settings]:
    """Peft's settings by component, as the file or one beside it has them."""
    stated = read_metadata(file).get(METADATA)
    if stated is not None:
        flat = parse_object(stated.encode(), f"{file}: {METADATA}", "settings of peft", CHECKPOINT)
        given = {
            part: {
                k.removeprefix(f"{part}."): v for k, v in flat.items() if k.startswith(f"{part}.")
            }
            for part in parts
        }
    elif (beside := file.parent / SETTINGS).is_file():
        given = {"transformer": read_json(beside, "settings of peft", CHECKPOINT)}
    else:
        return {}
    found = {part: checked(_Settings, each, str(file), CHECKPOINT) for part, each in given.items()}
    for part, settings in found.items():
        if not settings.plain:
            raise CheckpointError(
                f"{file}: its settings for {part} are of DoRA or match layers by patterns: expected a "
                "plain LoRA; fuse it in diffusers (fuse_lora, unload_lora_weights), save the pipeline"
            )
    return found
