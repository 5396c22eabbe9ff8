"""Measures a bundle against its float pipeline."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fp4dit_onnx.benchmark.machine import Machine
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.evaluation.metrics import psnr, ssim
from fp4dit_onnx.evaluation.quality import FLOAT, evaluate
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.report import speed
from fp4dit_onnx.report.data import SECTIONS, Evidence, Picture, Quality
from fp4dit_onnx.report.histograms import histograms
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.system.progress import Reporter, SilentReporter
from fp4dit_onnx.system.resources import usable_cores

__all__ = ["DIFFERENCE_GAIN", "measure"]

DIFFERENCE_GAIN = 4
"""Differences of images are shown that many times larger."""
LARGEST_SIDE = 256
"""Pixels of an image in the report."""
SMALLEST_SSIM = 11
"""Pixels per side."""
WATCHED_PROMPTS = 2
"""Prompts whose images are generated to see activations."""
BUNDLE = "quantized"


@dataclass(frozen=True)
class _Subject:
    """What is measured."""

    bundle: Bundle
    checkpoint: Checkpoint
    family: Family
    prompts: Sequence[str]
    seeds: Sequence[int]
    reporter: Reporter
    device: str

    @property
    def step(self) -> speed.StepSetting:
        """The step whose time and memory are measured: one image's."""
        sampling = self.bundle.manifest.sampling
        return speed.StepSetting(
            model=self.bundle.transformer,
            pipeline=self.checkpoint.folder,
            batch=2 if self.family.guidance.doubles(sampling.guidance) else 1,
            tokens=sampling.max_sequence_length,
            threads=usable_cores(),
        )


def measure(
    bundle: Bundle,
    model: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reporter: Reporter | None = None,
    lora: Sequence[str] = (),
    device: str = "cpu",
) -> Evidence:
    """All that can be measured; what cannot be is named with the reason.

    Args:
        bundle: a bundle that can generate images.
        model: folder of the float pipeline that it was made from.
        prompts: at least one.
        seeds: at least one; one image per prompt and seed.
        reporter: told of every stage.
        lora: that the bundle was made with; see `open_checkpoint`.
        device: where torch generates the float pipeline's images, see `execution_of`.

    Raises:
        UsageError: the bundle cannot generate images, there is no prompt or seed, or not the device.
        CheckpointError: the folder is not a pipeline, or another one.
    """
    from fp4dit_onnx.network.execution import execution_of

    _check(bundle, prompts, seeds)
    execution_of(device)  # refused before any work
    checkpoint = open_checkpoint(model, lora=lora)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    _check_same(bundle, checkpoint, model)
    told = reporter or SilentReporter()
    subject = _Subject(bundle, checkpoint, family, prompts, seeds, told, device)
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}

    def without_folder(reason: str) -> str:
        """Where the bundle lies says nothing to those who read its report elsewhere."""
        return reason.replace(f"{bundle.folder}/", "")

    def attempt(section: str, function: Callable[[_Subject], Any]) -> None:
        try:
            found[section] = function(subject)
        except Fp4DitError as error:
            absent[section] = without_folder(str(error))
        except Exception as error:  # a whole export must not be lost to its report
            first_line = str(error).strip().partition("\n")[0]
            reason = f"It fails here with {type(error).__name__}: {first_line}"
            absent[section] = without_folder(reason)

    # Memory does not depend on what else runs, and so is measured while images are generated.
    with speed.measuring_memory(subject.step) as memory_found:
        attempt("quality", _quality)
        attempt("histograms", _histograms)
        found["memory"], reason = memory_found()
    if reason is not None:
        absent["memory"] = without_folder(reason)
    attempt("speed", lambda subject: speed.measure_speed(subject.step, subject.reporter))
    machine = Machine.measure((), usable_cores())
    return Evidence(checkpoint.folder.name, machine, **found, absent=absent)


def _check(bundle: Bundle, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    if not prompts or not seeds:
        raise UsageError("no prompt or no seed: expected at least one of each")
    if not bundle.whole:
        raise UsageError(
            f"{bundle.folder} holds only the transformer: expected a bundle that can generate images, "
            f"to measure {', '.join(SECTIONS)}; export all components"
        )


def _check_same(bundle: Bundle, checkpoint: Checkpoint, model: Path) -> None:
    """Refuse a pipeline of another class than the bundle's source."""
    source = bundle.manifest.source.pipeline
    if source != checkpoint.pipeline_class:
        raise UsageError(
            f"{model} is a {checkpoint.pipeline_class}, {bundle.folder} was made from a {source}: "
            "expected the float pipeline that the bundle was made from"
        )


def _quality(subject: _Subject) -> Quality:
    if not subject.family.generates:
        raise UsageError(f"the float pipeline of {subject.family.name} cannot be run yet")
    found = evaluate(
        {BUNDLE: subject.bundle.folder},
        subject.checkpoint.folder,
        subject.prompts,
        subject.seeds,
        reporter=subject.reporter,
        lora=subject.checkpoint.lora,
        float_device=subject.device,
    )
    (own,) = found.bundles
    drawn = [(prompt, seed) for prompt in subject.prompts for seed in subject.seeds]
    pairs = zip(drawn, found.pictures[FLOAT], found.pictures[BUNDLE], strict=True)
    pictures = tuple(_picture(prompt, seed, a, b) for (prompt, seed), a, b in pairs)
    return Quality(found.sampling, pictures, dict(own.scores), own.latent_sqnr)


def _picture(prompt: str, seed: int, wanted: Image.Image, found: Image.Image) -> Picture:
    a, b = np.asarray(wanted.convert("RGB")), np.asarray(found.convert("RGB"))
    gap = np.abs(a.astype(np.int16) - b.astype(np.int16)) * DIFFERENCE_GAIN
    difference = Image.fromarray(np.minimum(gap, 255).astype(np.uint8))
    return Picture(
        prompt=prompt,
        seed=seed,
        float_png=_png(wanted),
        quantized_png=_png(found),
        difference_png=_png(difference),
        psnr_db=psnr(a, b),
        ssim=ssim(a, b) if min(a.shape[:2]) >= SMALLEST_SSIM else None,
    )


def _png(picture: Image.Image) -> str:
    reduced = picture.convert("RGB")
    reduced.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    reduced.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def _histograms(subject: _Subject) -> Any:
    count = min(WATCHED_PROMPTS, len(subject.prompts))
    with subject.reporter.stage("reading layers", 1) as advance:
        found = histograms(
            subject.bundle,
            subject.checkpoint.tensors,
            subject.prompts[:count],
            [subject.seeds[0]] * count,
            Pipeline(subject.bundle.folder),
        )
        advance(1)
    return found
