"""Measure what quantizers of softmax's result cost: RepQ-ViT's log-sqrt2 beside grids of as many bits.

    python tools/softmax_formats.py --write

Nothing else is quantized. Each attention's quantizer has one scale, found as RepQ-ViT does (arXiv
2212.08254): of the probabilities' shares 0.999, 0.9999, 0.99999 and 1 the one of the least squared
error, over all denoising steps of calibration prompts. The table goes to docs/methods/repq-vit.md,
between its marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pages import Section, written_by
from quality import Bench

from fp4dit_onnx.calibration.attention import InPlace, attention_module
from fp4dit_onnx.calibration.grid import quantize_rows, round_to_grid
from fp4dit_onnx.calibration.sampling import sample_latents
from fp4dit_onnx.evaluation.metrics import Score
from fp4dit_onnx.numbers.attention import PROBABILITY_FORMAT
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.prompts import demo_prompts

__all__ = ["QUANTIZERS", "attention", "logarithmic", "searched_scale", "table"]

SHARES = (0.999, 0.9999, 0.99999, 1.0)
KEPT = 1 << 14
"""Probabilities of a call that the search looks at."""
CALIBRATION_PROMPTS = 8
SECTION = Section("methods/repq-vit.md", "softmax")
Quantizer = Callable[..., torch.Tensor]
"""Probabilities of any shape, and the tensor's `scale`, to what is left of them."""


def logarithmic(p: torch.Tensor, scale: float, bits: int = 4, per_binade: int = 2) -> torch.Tensor:
    """Nearest exponent, ``scale * 2^(-q / per_binade)``: log-sqrt2 with 2 per binade.

    q has `bits` bits, from 0; what is below the least is 0, as in RepQ-ViT's code.
    """
    q = (-per_binade * torch.log2(p / scale)).round().clamp_(min=0)
    return torch.where(q < 1 << bits, scale * torch.exp2(-q / per_binade), 0.0)


def even(p: torch.Tensor, scale: float, bits: int = 4) -> torch.Tensor:
    """Nearest of 2^bits multiples, 0 among them; `scale` is the largest."""
    most = (1 << bits) - 1
    q: torch.Tensor = (p * (most / scale)).round().clamp_(0, most)
    return q * (scale / most)


def floating(p: torch.Tensor, scale: float, fmt: FloatFormat) -> torch.Tensor:
    """Nearest magnitude of a floating-point format whose largest is `scale`."""
    unit = scale / fmt.max_integer
    return round_to_grid(p / unit, fmt) * unit


def of_fp_attention(p: torch.Tensor, scale: float) -> torch.Tensor:
    """16-bit integers under a scale per row, found where they are needed.

    FpAttention has one for each 256 keys of a row, and multiplies by the values' scales before.
    """
    q, own = quantize_rows(p, PROBABILITY_FORMAT)
    return q * own


E3M1 = FloatFormat("e3m1", 3, 1)
QUANTIZERS: Mapping[str, Quantizer] = {
    "16-bit integers, a scale per query (FpAttention)": of_fp_attention,
    "8 bits, even": partial(even, bits=8),
    "4 bits, even": even,
    "4 bits, powers of 2": partial(logarithmic, per_binade=1),
    "4 bits, powers of the root of 2 (RepQ-ViT)": logarithmic,
    "4 bits, the 16 magnitudes of E3M1": partial(floating, fmt=E3M1),
}


def searched_scale(kept: torch.Tensor, quantizer: Quantizer) -> float:
    """Of the shares of `kept` (1-d) the one under which the quantizer's squared error is least."""
    scales = {float(torch.quantile(kept, share)) for share in SHARES}
    errors = {s: float((quantizer(kept, s) - kept).square().sum()) for s in scales if s > 0}
    return min(errors, key=errors.__getitem__)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Torch's attention, whose probabilities [..., S, L] are changed on their way."""
    assert not dropout_p
    assert not is_causal
    assert attn_mask is None or attn_mask.is_floating_point()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-1, -2) * factor
    if attn_mask is not None:
        scores = scores + attn_mask
    return change(scores.softmax(-1)) @ value


@contextmanager
def changed(
    network: torch.nn.Module, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[None]:
    """While open, the attentions named in `changes` change their probabilities."""
    modules = {name: attention_module(network, name) for name in changes}

    def within(forward: Callable[..., Any], mode: InPlace) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return forward(*args, **kwargs)

        return run

    try:
        for name, module in modules.items():
            mode = InPlace(partial(attention, change=changes[name]))
            module.forward = within(module.forward, mode)
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


class Keeper:
    """Keeps some of the probabilities that pass."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []
        self.random = torch.Generator().manual_seed(0)

    def __call__(self, p: torch.Tensor) -> torch.Tensor:
        """`p` itself."""
        chosen = torch.randint(p.numel(), (KEPT,), generator=self.random)
        self.parts.append(p.flatten()[chosen])
        return p

    @property
    def kept(self) -> torch.Tensor:
        """1-d."""
        return torch.cat(self.parts)


def measured(bench: Bench) -> dict[str, tuple[Score, Score]]:
    """Image PSNR and SQNR of the final latents by quantizer, dB."""
    network = bench.pipeline.transformer
    modules = network.named_modules()
    keepers = {name: Keeper() for name, module in modules if hasattr(module, "set_processor")}
    prompts = demo_prompts("calibration")[:CALIBRATION_PROMPTS]
    with changed(network, keepers):
        sample_latents(bench.pipeline, bench.family, prompts, range(len(prompts)), bench.sampling)
    found = {}
    for label, quantizer in QUANTIZERS.items():
        scales = {name: searched_scale(k.kept, quantizer) for name, k in keepers.items()}
        changes = {name: partial(quantizer, scale=scale) for name, scale in scales.items()}
        with changed(network, changes):
            drawn = bench.drawn(label)
        found[label] = bench.scores(drawn)
    return found


def table(found: Mapping[str, Sequence[Score]]) -> str:
    """The scores as Markdown."""
    lines = ["| softmax's result | image PSNR, dB | SQNR of the final latents, dB |"]
    lines.append("| --- | --- | --- |")
    for label, scores in found.items():
        cells = (f"{s.mean:.2f} ± {s.standard_error:.2f}" for s in scores)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=64, help="each with two seeds")
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    parser.add_argument("--write", action="store_true", help=f"put the table into {SECTION.page}")
    given = parser.parse_args()
    SECTION.read()  # what a page without the marks would lose takes long
    bench = Bench(None, given.work, given.prompts, seeds=2)
    made = written_by(f"softmax_formats.py --write --prompts {given.prompts}")
    text = f"{made}: the demo pipeline, {len(bench.prompts)} images, everything else float.\n\n"
    text += table(measured(bench))
    print(text)
    if given.write:
        SECTION.write(text)


if __name__ == "__main__":
    main()
