"""Make a PixArt-XL-sized transformer with random weights, float32 and W4A6, to time one step of both.

    python tools/xl_step.py --output xl
    fp4dit-onnx bench xl --float xl/float/model.onnx --tokens 120

The output is a bundle: transformer/model.onnx in the fused W4A6 form, rounded to nearest, beside
float/model.onnx, the same weights for ONNX Runtime alone. Text encoder and VAE decoder are empty
models: the bundle can be timed and inspected, and draws nothing.

A whole transformer of that size is more than the 2 GiB that a trace can hold. So one block is traced
and rewritten as an export does it, and its nodes are repeated, block by block, each with weights of
its own, which go to the files before the next block's are drawn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import torch
from block_chain import Chain, ModelFile, block_name, is_own

from fp4dit_onnx import ops
from fp4dit_onnx.bundle import new_bundle, write_manifest
from fp4dit_onnx.calibration.methods import quantize_layer
from fp4dit_onnx.checkpoint import demo_folder
from fp4dit_onnx.components import copy_settings
from fp4dit_onnx.errors import Fp4DitError, MissingExtraError, UsageError
from fp4dit_onnx.layers import layer_size
from fp4dit_onnx.methods import method_by_name
from fp4dit_onnx.models.pixart import PIXART_ALPHA
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pack_weights import codes_name, scale_name
from fp4dit_onnx.passes.pipeline import float_passes, quantize_passes, run_passes
from fp4dit_onnx.recipe import Recipe, make_recipe
from fp4dit_onnx.runtime import Sampling
from fp4dit_onnx.silence import quiet
from fp4dit_onnx.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.torch_export import export_float

Array = npt.NDArray[Any]
METHOD = "fp-rtn"
BLOCKS = "transformer_blocks."
PIXELS_A_LATENT, PATCH = 8, 2
ROW_SPREAD = 0.3
"""Standard deviation of the logarithm of a row's magnitude; in the demo model it is 0.05 to 0.15."""
BIAS = 0.02
"""Standard deviation; in the demo model it is 0.01."""
TEXT = 120
"""Tokens that PixArt-alpha's text encoder gives."""


@dataclass(frozen=True)
class Size:
    """What is made.

    Attributes:
        blocks: of the transformer.
        width: channels of the image tokens.
        heads: of each attention.
        caption: channels of the text encoder's tokens.
        pixels: height and width of the picture.
        seed: of the weights.
    """

    blocks: int = 28
    width: int = 1152
    heads: int = 16
    caption: int = 4096
    pixels: int = 512
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError where no such transformer can be made."""
        for name in ("blocks", "width", "heads", "caption", "pixels"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: expected 0 or more")
        if self.width % self.heads or self.width % 4:
            raise UsageError(
                f"width {self.width}: expected a multiple of 4 and of the {self.heads} heads"
            )
        step = PIXELS_A_LATENT * PATCH
        if self.pixels % step:
            raise UsageError(f"size {self.pixels}: expected a multiple of {step} pixels")

    @property
    def config(self) -> dict[str, Any]:
        """The transformer's configuration, as diffusers takes it."""
        return {
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "attention_head_dim": self.width // self.heads,
            "caption_channels": self.caption,
            "cross_attention_dim": self.width,
            "in_channels": 4,
            "norm_type": "ada_norm_single",
            "num_attention_heads": self.heads,
            "num_embeds_ada_norm": 1000,
            "num_layers": self.blocks,
            "out_channels": 8,
            "patch_size": PATCH,
            "sample_size": self.pixels // PIXELS_A_LATENT,
            "use_additional_conditions": False,
        }


def draw(shapes: Mapping[str, Sequence[int]], seed: int, part: int) -> dict[str, Array]:
    """Random parameters, float32, the same for the same seed and part.

    Weights [N, K, ...] are normal, of variance 1/K as the demo model's are about, times a factor of
    the row; biases are small; adaLN's tables are as diffusers initializes them.
    """
    random, made = np.random.default_rng([seed, part]), {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        values = random.standard_normal(shape, np.float32)
        if name.endswith(".bias"):
            values *= np.float32(BIAS)
        elif name.endswith(".weight"):
            rows = np.exp(ROW_SPREAD * random.standard_normal((shape[0], *[1] * (len(shape) - 1))))
            values *= (rows / np.sqrt(prod(shape[1:]))).astype(np.float32)
        else:
            values /= np.float32(np.sqrt(shape[-1]))
        made[name] = values
    return made


def network(size: Size) -> Any:
    """The transformer in torch, float32, in evaluation mode, with the weights that `draw` gives."""
    try:
        from diffusers import PixArtTransformer2DModel
    except ImportError as cause:
        raise MissingExtraError("diffusers", "export") from cause
    with quiet():
        made: Any = PixArtTransformer2DModel(**size.config)
    parameters = dict(made.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    outer = {name: shape for name, shape in shapes.items() if not name.startswith(BLOCKS)}
    block = {name: shape for name, shape in shapes.items() if is_own(name)}
    for name, values in draw(outer, size.seed, 0).items():
        parameters[name].data.copy_(torch.from_numpy(values))
    for i in range(size.blocks):
        for name, values in draw(block, size.seed, i + 1).items():
            parameters[block_name(name, i)].data.copy_(torch.from_numpy(values))
    return made.eval().requires_grad_(requires_grad=False)


def recipe() -> Recipe:
    """How an export with ``--bits w4a6 --method fp-rtn`` would quantize."""
    rules, skip = PIXART_ALPHA.paper_rules, PIXART_ALPHA.skip
    return make_recipe("w4a6", method=METHOD, paper_rules=rules, skip=skip)


def quantized(weights: Mapping[str, Array]) -> QuantizedState:
    """The linears among `weights`, rounded to nearest, and the attentions that they are in."""
    linears = [n.removesuffix(".weight") for n, w in weights.items() if _is_linear(n, w)]
    specs, _ = recipe().assign(linears)
    layers = {
        name: quantize_layer(name, torch.from_numpy(weights[f"{name}.weight"]), spec)
        for name, spec in specs.items()
    }
    return QuantizedState(layers, {}, recipe().attentions(linears))


def _is_linear(name: str, values: Array) -> bool:
    return name.endswith(".weight") and values.ndim == 2


@dataclass(frozen=True)
class Templates:
    """A transformer of one block, and how its parts were made.

    Attributes:
        plain: in float.
        fused: the same quantized, form ``fused``.
        block: shapes of the block's parameters by name.
        outer: the quantized layers that belong to no block.
        passes: what an export notes of them.
    """

    plain: onnx.ModelProto
    fused: onnx.ModelProto
    block: Mapping[str, tuple[int, ...]]
    outer: QuantizedState
    passes: list[dict[str, Any]]


def traced(size: Size) -> Templates:
    """Trace and rewrite a transformer of one block as an export does."""
    one = network(replace(size, blocks=1))
    weights = {name: p.numpy() for name, p in one.named_parameters()}
    state = quantized(weights)
    model = export_float(one, PIXART_ALPHA, one.config)
    parameters = frozenset(t.name for t in model.graph.initializer)
    model, mended = run_passes(model, float_passes(parameters))
    plain, _ = run_passes(model, [NameTensors(parameters, frozenset())])
    fused, rewritten = run_passes(model, quantize_passes(state, parameters, "fused"))
    return Templates(
        plain,
        fused,
        {name: values.shape for name, values in weights.items() if is_own(name)},
        QuantizedState({n: layer for n, layer in state.layers.items() if not is_own(n)}),
        [report.to_json() for report in (*mended, *rewritten)],
    )


class Progress:
    """Lines on stderr: what begins, and after how many seconds."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", file=sys.stderr, flush=True)


def write_models(
    templates: Templates, size: Size, folder: Path, note: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write both models below `folder`.

    Returns:
        The layers' rows for the manifest, and the format of each attention's q, k and v.
    """
    rows = [_row(layer) for layer in templates.outer.layers.values()]
    attention: dict[str, str] = {}
    with (
        closing(ModelFile(folder / "float" / "model.onnx")) as plain_file,
        closing(ModelFile(folder / "transformer" / "model.onnx")) as fused_file,
    ):
        plain, fused = Chain(templates.plain, plain_file), Chain(templates.fused, fused_file)
        for block in range(size.blocks):
            weights = draw(templates.block, size.seed, block + 1)
            plain.add_constants(weights, block)
            state = quantized(weights)
            fused.add_constants(_packed(weights, state), block)
            rows += [_row(layer, block) for layer in state.layers.values()]
            attention |= {block_name(n, block): fmt for n, fmt in state.attention.items()}
            note(f"block {block + 1} of {size.blocks}")
        note("checking the models")
        plain.finish(size.blocks)
        fused.finish(size.blocks)
    return rows, attention


def _packed(weights: Mapping[str, Array], state: QuantizedState) -> dict[str, Array]:
    """`weights` with codes and scales in place of those that the state has."""
    packed = {n: w for n, w in weights.items() if n.removesuffix(".weight") not in state.layers}
    for name, layer in state.layers.items():
        packed |= {codes_name(name): layer.codes, scale_name(name): layer.scale}
    return packed


def _row(layer: QuantizedLayer, block: int = 0) -> dict[str, Any]:
    """A layer in the manifest; of `block`, if it is a block's."""
    return {
        "name": block_name(layer.name, block),
        "weight_format": layer.spec.weight,
        "activation_format": layer.spec.activation,
        "group_size": layer.spec.group_size,
        **asdict(layer_size(layer.n, layer.k, layer.spec)),
        "weight_sqnr_db": None,
        "output_sqnr_db": None,
    }


def write_rest(folder: Path, size: Size, manifest: Mapping[str, Any]) -> None:
    """Write what makes `folder` a bundle: settings, stand-ins, the manifest with `manifest` in it."""
    copy_settings(demo_folder(), folder)
    (folder / "transformer" / "config.json").write_text(json.dumps(size.config, indent=1))
    for part in ("text_encoder", "vae_decoder"):
        (folder / part).mkdir()
        onnx.save(_stand_in(), folder / part / "model.onnx")
    sampling = Sampling(20, PIXART_ALPHA.sampling["guidance"], size.pixels, size.pixels, TEXT)
    rows = manifest["layers"]
    packages = ("fp4dit-onnx", "numpy", "onnx", "onnx-graphsurgeon", "torch", "diffusers")
    write_manifest(
        folder,
        {
            "recipe": recipe().to_json(),
            "method": asdict(method_by_name(METHOD)),
            "sampling": asdict(sampling),
            "totals": _totals(folder, rows),
            "skipped": [],
            "case_sqnr_db": [],
            "source": {"name": "random weights", "family": PIXART_ALPHA.name, **asdict(size)},
            "versions": {p: importlib.metadata.version(p) for p in packages},
            **manifest,
        },
    )


def _stand_in() -> onnx.ModelProto:
    """A model that gives back its input."""
    text = f'<ir_version: {ops.IR_VERSION}, opset_import: ["": {ops.OPSET}]>'
    return onnx.parser.parse_model(text + "none (float[n] x) => (float[n] y) { y = Identity (x) }")


def _totals(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    weights, stored = (sum(row[key] for row in rows) for key in ("weights", "bytes"))
    return {
        "layers": len(rows),
        "weights": weights,
        "bytes": stored,
        "bytes_float32": 4 * weights,
        "bits_per_weight": 8 * stored / weights,
        "transformer_bytes": folder_bytes(folder / "transformer"),
        "transformer_bytes_float32": folder_bytes(folder / "float"),
    }


def folder_bytes(folder: Path) -> int:
    """Of the model and the data file in `folder`."""
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def make(size: Size, output: Path, note: Callable[[str], None], *, overwrite: bool) -> None:
    """Make both models of `size` in a new bundle `output`, whole or not at all.

    Raises:
        UsageError: no such size, or no such output.
        MissingExtraError: the extra ``export`` is not installed.
    """
    size.check()
    with new_bundle(output, overwrite) as folder:
        note("tracing one block")
        templates = traced(size)
        rows, attention = write_models(templates, size, folder, note)
        note("writing the manifest")
        write_rest(
            folder,
            size,
            {"layers": rows, "attention": attention, "passes": templates.passes},
        )
        for part in ("float", "transformer"):
            note(f"{output / part}: {folder_bytes(folder / part):,} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    default = Size()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--blocks", type=int, default=default.blocks)
    parser.add_argument("--width", type=int, default=default.width, help="channels of a token")
    parser.add_argument("--heads", type=int, default=default.heads)
    parser.add_argument("--caption", type=int, default=default.caption, help="channels of text")
    parser.add_argument("--size", type=int, default=default.pixels, help="of the picture, pixels")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--overwrite", action="store_true", help="replace an older output")
    given = parser.parse_args(arguments)
    size = Size(given.blocks, given.width, given.heads, given.caption, given.size, given.seed)
    try:
        make(size, given.output, Progress(), overwrite=given.overwrite)
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
