"""Quantize a bundle's VAE decoder to int8 by ONNX Runtime's own means, and measure error and time.

    python tools/vae_int8.py bundle                        # the bundle's own images
    python tools/vae_int8.py bundle --noise --size 512     # latents of noise: for the time alone

Convolutions get int8 weights with a scale per channel and uint8 activations with a scale per tensor
(`quantize_static`, QDQ), calibrated on the latents of half of the images; the other half is compared
with the float decoder. Further rows leave convolutions at both ends in float. Times are processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx.benchmark.int8_models import fold_constants
from fp4dit_onnx.benchmark.sessions import make_session
from fp4dit_onnx.bundle.names import VAE_DECODER, model_of
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.system.silence import quiet

__all__ = ["ENDS", "Row", "latents_of", "main", "rows"]

Array = npt.NDArray[np.float32]
ENDS = ((0, 0), (1, 1), (3, 3), (3, 9))
"""Convolutions at the beginning and at the end that stay in float."""
PEAK = 2.0
"""From black to white in what a decoder gives."""


@dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
        quantized: convolutions in int8.
        convolutions: of the decoder.
        psnr_db: of images, which are cut to -1 .. 1, against the float decoder's.
        sqnr_db: of the same.
        ratio: processor time of the float decoder over its own.
        bytes: of the model.
    """

    quantized: int
    convolutions: int
    psnr_db: float
    sqnr_db: float
    ratio: float
    bytes: int


def latents_of(pipeline: Pipeline, count: int, size: int | None, *, noise: bool) -> list[Array]:
    """Inputs of the decoder, [1, C, H, W] each: of images of example prompts, or standard normal."""
    sampling = pipeline.settings(height=size, width=size)
    if noise:
        shape = (1, *pipeline.latent_shape(sampling))
        return list(np.random.default_rng(0).standard_normal((count, *shape), np.float32))
    given: list[Array] = []

    class Recorder:
        """Takes what the decoder is given."""

        get_inputs = staticmethod(pipeline.vae_decoder.get_inputs)
        get_outputs = staticmethod(pipeline.vae_decoder.get_outputs)

        def run(self, outputs: Any, feed: Any) -> list[Array]:
            (value,) = feed.values()
            given.append(value)
            return [np.zeros((1, 3, 8, 8), np.float32)]

    decoder, pipeline.vae_decoder = pipeline.vae_decoder, Recorder()
    prompts = pipeline.example_prompts()
    pipeline.generate(
        [prompts[i % len(prompts)] for i in range(count)],
        seeds=list(range(count)),
        height=size,
        width=size,
    )
    pipeline.vae_decoder = decoder
    return given


def rows(model: Path, latents: Sequence[Array], threads: int) -> Iterator[Row]:
    """One for each of `ENDS` that leaves a convolution to quantize.

    Raises:
        UsageError: fewer than two latents.
    """
    if len(latents) < 2:
        raise UsageError(
            f"images {len(latents)}: expected at least 2, to calibrate and to compare"
        )
    import onnxruntime.quantization as ort

    half = len(latents) // 2
    with tempfile.TemporaryDirectory() as folder:
        folded, int8 = Path(folder, "folded.onnx"), Path(folder, "int8.onnx")
        fold_constants(model, folded)
        nodes = onnx.load(folded, load_external_data=False).graph.node
        names = [node.name for node in nodes if node.op_type == "Conv"]
        wanted, float_seconds = _run(folded, latents[half:], threads)
        for first, last in ENDS:
            kept = [*names[:first], *names[len(names) - last :]]
            if len(kept) >= len(names):
                continue
            with quiet():
                ort.quantize_static(
                    str(folded),
                    str(int8),
                    _Reader(latents[:half]),
                    quant_format=ort.QuantFormat.QDQ,
                    op_types_to_quantize=["Conv"],
                    per_channel=True,
                    activation_type=ort.QuantType.QUInt8,
                    weight_type=ort.QuantType.QInt8,
                    nodes_to_exclude=kept,
                )
            found, seconds = _run(int8, latents[half:], threads)
            error = float(np.mean((found - wanted) ** 2, dtype=np.float64))
            yield Row(
                quantized=len(names) - len(kept),
                convolutions=len(names),
                psnr_db=10 * float(np.log10(PEAK**2 / error)),
                sqnr_db=sqnr_db(wanted, found),
                ratio=float_seconds / seconds,
                bytes=int8.stat().st_size,
            )


class _Reader:
    """Gives `quantize_static` one latent after the other."""

    def __init__(self, latents: Sequence[Array]) -> None:
        self._left = iter(latents)

    def get_next(self) -> dict[str, Array] | None:
        """The next, or None at the end."""
        value = next(self._left, None)
        return None if value is None else {"latent_sample": value}


def _run(model: Path, latents: Sequence[Array], threads: int) -> tuple[Array, float]:
    """Images, cut to -1 .. 1, and processor seconds for all."""
    session = make_session(model, threads)
    session.run(None, {"latent_sample": latents[0]})
    start = time.process_time()
    found = [session.run(None, {"latent_sample": latent})[0] for latent in latents]
    return np.clip(np.concatenate(found), -1, 1), time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=8, help="half of them calibrate")
    parser.add_argument("--size", type=int, help="of the images, pixels; by default the bundle's")
    parser.add_argument("--noise", action="store_true", help="decode noise in place of images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        pipeline = Pipeline(given.bundle, threads=given.threads)
        latents = latents_of(pipeline, given.images, given.size, noise=given.noise)
        del pipeline
        found = [*rows(given.bundle / model_of(VAE_DECODER), latents, given.threads)]
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if given.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    for row in found:
        print(
            f"{row.quantized} of {row.convolutions} convolutions in int8: PSNR {row.psnr_db:.1f} dB, "
            f"SQNR {row.sqnr_db:.1f} dB, {row.ratio:.2f} times as fast, {row.bytes:,} bytes"
        )


if __name__ == "__main__":
    main()
