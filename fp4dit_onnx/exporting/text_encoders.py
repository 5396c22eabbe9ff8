"""Text encoders of a pipeline: planned by their bits, quantized layer by layer, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

import onnx

from fp4dit_onnx.bundle.annotation import annotate
from fp4dit_onnx.bundle.manifest import Encoder, Weight
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.checkpoint import checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.component_writing import Component, ComponentWriter
from fp4dit_onnx.exporting.layers import FLOAT32_BYTES, layer_size
from fp4dit_onnx.exporting.streaming import LayerNote, from_weights
from fp4dit_onnx.families.text_encoders import JOINED, TEXT_ENCODERS, TextEncoder
from fp4dit_onnx.files import CHECKPOINT, read_json
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.spec.recipe import Recipe, make_recipe
from fp4dit_onnx.spec.state import LayerLayout

if TYPE_CHECKING:
    from fp4dit_onnx.network.networks import FakeNetwork

__all__ = [
    "DEFAULT_BITS",
    "FLOAT_BELOW",
    "NO_BITS",
    "check_encoders",
    "encoder_bytes",
    "encoder_recipe",
    "write_encoder",
]

NO_BITS = "none"
DEFAULT_BITS = "w4a16"
FLOAT_BELOW = 2**30
"""Bytes in float32; smaller encoders stay in float unless told otherwise."""
EMBEDDINGS = ("embed", "shared", "relative_attention_bias")
"""In the names of tables that are not linears."""
METHOD = "fp-rtn"
"""Weights are rounded to nearest: no data is needed."""


def encoder_recipe(
    part: checkpoint.Component, bits: str | None, group_size: int, scale: str = DEFAULT_SCALE
) -> Recipe | None:
    """How the linears of an encoder are quantized; None where they stay in float.

    Args:
        part: the encoder.
        bits: such as ``w4a8``, ``none`` for float; None decides by size.
        group_size: input channels that share a scale.
        scale: format of the scales.

    Raises:
        UsageError: unknown bits.
    """
    if bits is None:
        size = sum(4 * prod(t.shape) for t in part.tensors.values())
        bits = NO_BITS if size < FLOAT_BELOW else DEFAULT_BITS
    if bits == NO_BITS:
        return None
    return make_recipe(
        bits,
        method=method_by_name(METHOD),
        paper_rules=(("*", "e2m1"),),
        group_size=group_size,
        scale=scale,
    )


def encoder_bytes(part: checkpoint.Component, recipe: Recipe | None) -> int:
    """About what an encoder takes in a bundle."""
    total = 0
    for name, tensor in part.tensors.items():
        linear = recipe is not None and name.endswith(".weight") and len(tensor.shape) == 2
        if recipe is None:
            total += 4 * prod(tensor.shape)
        elif linear and not any(word in name for word in EMBEDDINGS):
            shape = (tensor.shape[0], tensor.shape[1])
            specs, _ = recipe.assign({name.removesuffix(".weight"): shape})
            total += sum(layer_size(*shape, spec).bytes for spec in specs.values())
        else:
            total += 2 * prod(tensor.shape)
    return total


def check_encoders(parts: Mapping[str, checkpoint.Component]) -> None:
    """Raise UsageError where `parts` has a text encoder of an unsupported class."""
    for name, part in parts.items():
        if name.startswith("text_encoder") and part.class_name not in TEXT_ENCODERS:
            known = ", ".join(TEXT_ENCODERS)
            raise UsageError(
                f"{name} of class {part.class_name} is not supported: expected one of {known}; "
                "--components transformer exports the transformer alone"
            )


def _reading(kind: TextEncoder, hidden: Sequence[int], config: Mapping[str, Any]) -> TextEncoder:
    """An encoder that gives its hidden states `hidden`, joined, in place of what it gives else."""
    if not hidden:
        return kind
    layers = int(config["num_hidden_layers"])
    numbers = [number % (layers + 1) for number in hidden]
    later = tuple(f"*layers.{layer}.*" for layer in range(max(numbers), layers))

    def joined(result: Any) -> tuple[Any, ...]:
        import torch

        return (torch.cat([result.hidden_states[number] for number in numbers], dim=-1),)

    return replace(kind, outputs=(JOINED,), unused=(*kind.unused, *later), results=joined)


def write_encoder(
    part: checkpoint.Component,
    recipe: Recipe | None,
    range: str,
    writer: ComponentWriter,
    hidden: Sequence[int] = (),
) -> Encoder:
    """Write an encoder into its folder of the bundle; float tensors of a quantized one are float16.

    The graph takes input_ids and attention_mask, both int64 [B, L], and gives last_hidden_state,
    float32 [B, L, D]; B and L are dynamic.

    Args:
        part: the encoder.
        recipe: of its linears; None leaves them in float.
        range: how scales are found, one of `methods.range_names`.
        writer: into the bundle.
        hidden: see `families.request.Text`.

    Returns:
        What the manifest says of it.

    Raises:
        CheckpointError: configuration and weights do not fit.
        UsageError: the encoder's class is not supported.
    """
    from fp4dit_onnx.network.networks import fake_text_encoder

    config = read_json(
        part.folder / "config.json", f"the settings of {part.class_name}", CHECKPOINT
    )
    network = fake_text_encoder(part.class_name, config)
    kind = _reading(TEXT_ENCODERS[part.class_name], hidden, network.config)
    tensors = network.stored_under(part.tensors, lambda name: kind.prefix + name)
    used = [n for n in network.linears if not any(fnmatchcase(n, u) for u in kind.unused)]
    layers = _layers(network, recipe, used)
    component = Component(
        name=part.name,
        network=network,
        interface=kind.interface,
        tensors=tensors,
        layers=layers,
        quantizer=from_weights(tensors, layers, method_by_name(METHOD, range=range).stages),
        attention={},
        half=recipe is not None,
    )

    def rows(found: Mapping[str, LayerNote]) -> dict[str, Weight]:
        shapes = {name: (layers[name].n, layers[name].k) for name in found}
        return {
            name: Weight(
                shapes[name], of.bytes, FLOAT32_BYTES * prod(shapes[name]), of.weight_sqnr_db
            )
            for name, of in found.items()
        }

    def note(model: onnx.ModelProto, found: Mapping[str, LayerNote]) -> None:
        if recipe is not None:
            facts = {"bits": recipe.bits, "method": METHOD, "source": part.class_name}
            annotate(model, rows(found), facts)

    notes, _ = writer.write(component, note)
    noise = [note.weight_sqnr_db for note in notes.values()]
    return Encoder(part.class_name, recipe, rows(notes), min(noise) if noise else None)


def _layers(
    network: FakeNetwork, recipe: Recipe | None, linears: Sequence[str]
) -> dict[str, LayerLayout]:
    if recipe is None:
        return {}
    shapes = {name: network.shape(name) for name in linears}
    specs, _ = recipe.assign(shapes)
    return {name: LayerLayout(name, spec, *shapes[name]) for name, spec in specs.items()}
