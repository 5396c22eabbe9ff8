"""The calibration of an export: its work folder, its data, and what a state says of it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4dit_onnx.checkpoint.single_file import PICKLES, READERS
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.calibration_data import repeated
from fp4dit_onnx.exporting.component_writing import TRACING
from fp4dit_onnx.exporting.executing import executor_of
from fp4dit_onnx.exporting.pacing import paced
from fp4dit_onnx.exporting.plan import Plan, work_folder
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.files import plain, sha256_of_all
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.system.executors import place_of
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.system.resources import Resources
from fp4dit_onnx.system.versions import versions
from fp4dit_onnx.values import seconds_of
from fp4dit_onnx.verification.cases import CASES, case_inputs

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.run import Calibration
    from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
    from fp4dit_onnx.network.network import Network

__all__ = ["calibrated", "case_errors", "digest_of_texts", "provenance_of"]


def calibrated(
    request: ExportRequest,
    planned: Plan,
    network: Network,
    pipeline: Any,
    source: Checkpoint,
    report: Reporter,
    resources: Resources,
) -> Calibration:
    """Calibrate; a killed run goes on in its work folder.

    Args:
        request: what was asked for.
        planned: how.
        network: float transformer.
        pipeline: around it.
        source: of the pipeline.
        report: progress.
        resources: since when the export runs.

    Raises:
        UsageError: what cannot be calibrated, by name; or another run's work folder.
    """
    from fp4dit_onnx.calibration.run import calibrate
    from fp4dit_onnx.calibration.sampling import pipeline_sampler
    from fp4dit_onnx.calibration.sources import StoredSampler
    from fp4dit_onnx.calibration.work import ENCODINGS, RECORDED, Work

    work, sampling, pace = None, planned.recorded, None
    if planned.trains:
        with report.stage("telling this model from others", 1) as advance:
            fingerprint = _fingerprint(request, planned, network)
            advance(1)
        work = Work(work_folder(request), fingerprint)
    try:
        with executor_of(request, source, network, work, report) as (executor, parts):
            if work is not None and request.time is not None:
                end = seconds_of(request.time)
                found = paced(
                    planned,
                    network,
                    pipeline,
                    work,
                    lambda: end - resources.elapsed,
                    resources.seconds(TRACING.format("transformer")),
                    report,
                )
                planned, sampling, pace = found.planned, found.sampling, found.pace
            seeds = [request.seed + i for i in range(len(planned.prompts))]
            known = None
            if planned.data is not None:
                where = planned.family, planned.checkpoint, network.execution, report
                known = repeated(planned.data.encoded(sampling, *where), len(seeds))
            images = tuple(planned.prompts), tuple(seeds), sampling, network.execution
            kept = None if work is None else work.folder / ENCODINGS
            sampler = pipeline_sampler(pipeline, planned.family, *images, known=known, kept=kept)
            there = None
            if kept is not None and place_of(request.executor).elsewhere:
                there = StoredSampler(source, *images, request.max_ram, kept, known)
            return calibrate(
                network,
                planned.specs,
                planned.method,
                sampler,
                seed=request.seed,
                provenance=provenance_of(planned),
                reporter=report,
                attention=planned.attention,
                candidates=planned.recipe.candidates(tuple(planned.specs)),
                precisions=planned.precisions,
                work=work,
                max_ram=int(request.max_ram),
                executor=executor,
                parts=parts,
                source=there,
                pace=pace,
            )
    except BaseException as error:
        # After what is refused, the same command would fail again at the same place; what runs out
        # of a device's memory is no Fp4DitError yet, and goes on with less.
        refused = isinstance(error, Fp4DitError)
        if work is not None and not (work.keeps(RECORDED) if refused else work.begun):
            work.remove()
        raise


def provenance_of(planned: Plan) -> dict[str, Any]:
    """What a state says of how it was made."""
    return {
        "recipe": plain(planned.recipe),
        "method": planned.method.to_json(),
        "model": planned.checkpoint.folder.name,
    }


def _fingerprint(request: ExportRequest, planned: Plan, network: Network) -> dict[str, Any]:
    """All that a calibration depends on."""
    from fp4dit_onnx.calibration.work import model_digest

    prompts = hashlib.sha256("\n".join(planned.prompts).encode()).hexdigest()
    return {
        "model": {"name": planned.checkpoint.folder.name, "sha256": model_digest(network)},
        "texts": digest_of_texts(planned.checkpoint),
        "data": {"prompts": len(planned.prompts), "sha256": prompts, "seed": request.seed}
        | ({} if planned.data is None else {"latents": planned.data.digest}),
        "sampling": asdict(planned.recorded),
        "recipe": plain(planned.recipe),
        "method": planned.method.to_json(),
        "time": request.time,
        "versions": versions(),
        "execution": {
            "device": network.execution.device.type,
            "precision": network.execution.precision,
        },
    }


def digest_of_texts(checkpoint: Checkpoint) -> str:
    """SHA-256 of what makes encodings of prompts: weights, settings and vocabularies."""
    files: set[Path] = set()
    for name, part in checkpoint.components.items():
        if name.startswith(("text_encoder", "tokenizer")):
            files.update(info.file for info in part.tensors.values())
            others = {p for p in part.folder.iterdir() if p.suffix not in {*READERS, *PICKLES}}
            files |= {p for p in others if p.is_file()}
    return sha256_of_all(sorted(files))


def case_errors(planned: Plan, network: Network, state: QuantizedState) -> list[float]:
    """Simulation against float on the inputs that verification uses, in dB."""
    from fp4dit_onnx.calibration.parity import network_runner
    from fp4dit_onnx.calibration.simulate import simulated

    config = planned.checkpoint.transformer_config
    feeds = [case_inputs(planned.family, config, i) for i in range(len(CASES))]
    run = network_runner(network.module, planned.family, network.execution)
    signals = [run(feed) for feed in feeds]
    with simulated(network.module, state):
        return [sqnr_db(s, run(feed)) for s, feed in zip(signals, feeds, strict=True)]
