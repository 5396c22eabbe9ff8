"""Make a PixArt-XL-sized transformer with random weights, float32 and W4A6, to time one step of both.

    python tools/xl_step.py --output xl
    fp4dit-onnx bench xl --float xl/float/model.onnx --tokens 120

The output is a bundle of a transformer alone: transformer/model.onnx in the fused W4A6 form, rounded
to nearest, as `fp4dit-onnx export` writes it, beside float/model.onnx, the same weights for ONNX
Runtime alone. It can be timed and inspected, but generates no images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_pipeline import describe
from random_weights import Drawer, write_shards

from fp4dit_onnx.bundle.bundle import new_bundle, write_manifest
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.exporting.component_writing import Component, ComponentWriter
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.families.pixart import PIXART_ALPHA
from fp4dit_onnx.official.models import Part
from fp4dit_onnx.system.progress import Reporter, RichReporter
from fp4dit_onnx.system.resources import Resources

METHOD = "fp-rtn"
PIXELS_A_LATENT, PATCH = 8, 2
SHARD_BYTES = 2**30


@dataclass(frozen=True)
class Size:
    """What is made.

    Attributes:
        blocks: of the transformer.
        width: channels of the image tokens.
        heads: of each attention.
        caption: channels of the text encoder's tokens.
        pixels: height and width of the image.
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


def write_checkpoint(size: Size, folder: Path) -> None:
    """Write a diffusers pipeline of the transformer alone, its weights random."""
    part = Part("diffusers", PIXART_ALPHA.transformer, size.config)
    described = describe(part, twin=False)
    target = folder / "transformer"
    target.mkdir(parents=True)
    (target / "config.json").write_text(described.config)
    drawer = Drawer(size.seed, "transformer")
    stem = "diffusion_pytorch_model"
    write_shards(target, stem, described.tensors, drawer, "float32", SHARD_BYTES)
    index = {
        "_class_name": PIXART_ALPHA.pipelines[0],
        "transformer": [part.library, part.class_name],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def write_float(source: Path, bundle: Path, report: Reporter) -> None:
    """Write the transformer of the pipeline `source` to ``bundle/float``, nothing quantized."""
    from fp4dit_onnx.network.networks import fake_transformer

    checkpoint = open_checkpoint(source, only=("transformer",))
    network = fake_transformer(checkpoint.transformer_class, checkpoint.transformer_config)
    interface = PIXART_ALPHA.interface(network.config)
    tensors = network.stored_under(checkpoint.tensors)
    component = Component("float", network, interface, tensors)
    ComponentWriter(bundle, None, "fused", report, Resources()).write(component)


def make(size: Size, output: Path, report: Reporter, *, overwrite: bool) -> None:
    """Make both models of `size` in a new bundle `output`, whole or not at all.

    Raises:
        UsageError: no such size, or no such output.
        MissingExtraError: the extra ``export`` is not installed.
    """
    size.check()
    with new_bundle(output, overwrite) as folder:
        source = folder / "random weights"
        with report.stage("drawing the weights", 1) as advance:
            write_checkpoint(size, source)
            advance(1)
        request = ExportRequest(
            output=folder / "exported",
            model=source,
            method=METHOD,
            components="transformer",
            measure=False,
            report=False,
        )
        made = export(request, report)
        write_float(source, folder, report)
        for path in made.bundle.iterdir():
            path.rename(folder / path.name)
        made.bundle.rmdir()
        shutil.rmtree(source)
        write_manifest(folder, made.manifest)
        for part in ("float", "transformer"):
            report.note(f"{output / part}: {folder_bytes(folder / part):,} bytes")


def folder_bytes(folder: Path) -> int:
    """Of the model and the data file in `folder`."""
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    default = Size()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--blocks", type=int, default=default.blocks)
    parser.add_argument("--width", type=int, default=default.width, help="channels of a token")
    parser.add_argument("--heads", type=int, default=default.heads)
    parser.add_argument("--caption", type=int, default=default.caption, help="channels of text")
    parser.add_argument("--size", type=int, default=default.pixels, help="of the image, pixels")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--overwrite", action="store_true", help="replace an older output")
    given = parser.parse_args(arguments)
    size = Size(given.blocks, given.width, given.heads, given.caption, given.size, given.seed)
    try:
        make(size, given.output, RichReporter(), overwrite=given.overwrite)
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
