"""Measure what each method keeps of the float model's images, and write docs/quality.md.

    python tools/quality.py                  # all rows: hours on two cores; every recipe has one
    python tools/quality.py --rows "int-rtn; fp-rtn" --prompts 8 --seeds 1 --output small.md
    python tools/quality.py --pipeline DIR --output docs/quality_even.md
    python tools/quality.py --pipeline tests/pipelines/dit --output docs/quality_dit.md --seeds 1 \
        --rows "int-rtn; fp-rtn; fp4dit fast; tuned" --bits "w4a8; w4a6"
    python tools/quality.py --recipes "tools/gptq-outer.toml" --output own.md    # rows of recipe files

Weights are calibrated once per row, with float activations as in FP4DiT, then run with each column's
activations in the PyTorch simulation, which `fp4dit-onnx verify` holds equal to the exported model.
What is done is kept in the work folder: a killed run resumes where it stopped, and several may share
the rows between them. It is kept by how weights were made and not by how this tool measures: after a
change of that, take another folder.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from endings import ends_in_a_line
from pages import DOCS, write_above_reading
from quality_page import COLUMNS, document

from fp4dit_onnx.calibration.methods import method_by_name, read_method, with_settings
from fp4dit_onnx.calibration.recipe_tables import method_names, recipe_table
from fp4dit_onnx.calibration.run import calibrate
from fp4dit_onnx.calibration.sampling import (
    decode,
    load_pipeline,
    pipeline_sampler,
    sample_latents,
)
from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.evaluation.metrics import Score, psnr
from fp4dit_onnx.exporting.export import ExportRequest, Plan, plan
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.prompts import demo_prompts
from fp4dit_onnx.spec.state import QuantizedState, load_state, save_state
from fp4dit_onnx.system.progress import RichReporter

FIRST_SEED = 2000
"""Apart from the seeds of calibration, which start at 0."""
BUDGET_COLUMN = "w4a6"
USUAL_WEIGHT = "w4"
USUAL, OF_RECIPES = ("w4a8", "w4a6", "w4a4"), ("w4a8", "w4a6")
"""Columns of rows, and of those that are a published recipe each, beside the bits it was made for."""
MADE_FOR = {
    **dict.fromkeys(("2dquant", "repq-vit"), "w8a8"),
    **dict.fromkeys(("hq-dit", "svdquant", "four-over-six", "activation-regularization"), "w4a4"),
}
"""Bits of what a recipe's paper shows, where its file does not ask for them."""


@dataclass(frozen=True)
class Row:
    """One way to calibrate.

    Attributes:
        name: in the table.
        method: of `fp4dit_onnx.calibration.methods`.
        preset: its effort.
        weight_format: as the option of export.
        changes: settings in place of the preset's.
        target_bits: as the option of export.
        recipe: a file in place of `method`'s.
    """

    name: str
    method: str
    preset: str = "balanced"
    weight_format: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    target_bits: float | None = None
    recipe: str | None = None

    def columns(self, columns: Sequence[str]) -> Sequence[str]:
        """Those of `columns` in which it is measured: budgets at the bits that the tool is named for."""
        own: Sequence[str] = (BUDGET_COLUMN,) if self.target_bits is not None else USUAL
        if self in PUBLISHED:
            asked = recipe_table(self.method).get("export", {}).get("bits")
            own = (*OF_RECIPES, MADE_FOR.get(self.method, asked))
        return [bits for bits in columns if bits in own]

    @property
    def by_activations(self) -> bool:
        """Whether a stage may look at activations or change what is done to them.

        Each column has its own weights then.
        """
        known = read_method(Path(self.recipe)) if self.recipe else method_by_name(self.method)
        kinds = {stage.kind for stage in known.stages if not isinstance(stage, ChooseFormat)}
        return not kinds <= {"range", "rounding"}


ROWS = (
    Row("int-rtn", "int-rtn"),
    Row("fp-rtn", "fp-rtn"),
    Row("fp-rtn, e1m2", "fp-rtn", weight_format="e1m2"),
    Row("fp4dit fast", "fp4dit", "fast"),
    Row("int-adaround balanced", "int-adaround"),
    Row("fp4dit balanced", "fp4dit"),
    Row("fp4dit balanced, auto", "fp4dit", weight_format="auto"),
    Row("fp4dit fast, no guard", "fp4dit", "fast", changes={"largest_move": 1e9}),
    Row("fp-adaround fast", "fp-adaround", "fast"),
    Row("fp-adaround, 8 x fast", "fp-adaround", "fast", changes={"iterations": 480}),
    Row(
        "fp-adaround, 8 x fast, rate 1e-3",
        "fp-adaround",
        "fast",
        changes={"iterations": 480, "learning_rate": 1e-3},
    ),
    Row("fp4dit best, auto", "fp4dit", "best", "auto"),
    Row("gptq", "gptq"),
    Row("gptq, e1m2", "gptq", weight_format="e1m2"),
    Row("tuned", "tuned"),
    Row("tuned-best", "tuned-best"),
    *(Row(f"tuned, {bits:g} bits", "tuned", target_bits=bits) for bits in (4.125, 4.25, 4.5, 5)),
)
PUBLISHED = tuple(
    Row(name, name) for name in method_names() if name not in {row.method for row in ROWS}
)
ROWS += PUBLISHED


@dataclass(frozen=True)
class Drawn:
    """What one variant generates: latents float32 [P, C, H, W] and images uint8 [H, W, 3]."""

    latents: npt.NDArray[np.float32]
    pictures: Sequence[npt.NDArray[np.uint8]]


class Bench:
    """A pipeline and its float images.

    Args:
        pipeline: folder of one that knows the demo's prompts, or classes; None is the demo.
        work: folder for calibrations and measurements.
        prompts: of the evaluation set, none of which calibration sees.
        seeds: images per prompt.
        columns: bits that are measured, of `COLUMNS`.
    """

    def __init__(
        self,
        pipeline: Path | None,
        work: Path,
        prompts: int,
        seeds: int,
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.folder, self.work, self.reporter = pipeline, work, RichReporter()
        self.columns = columns
        self.pipeline = load_pipeline(open_checkpoint(pipeline))
        self.prompts = [p for p in self._known("evaluation")[:prompts] for _ in range(seeds)]
        self.seeds = [FIRST_SEED + i for i in range(len(self.prompts))]
        self.digest = model_digest(whole(self.pipeline.transformer))
        self.planned = self._plan(ROWS[0], columns[0])
        self.family, self.sampling = self.planned.family, self.planned.sampling

    @property
    def name(self) -> str:
        """Of the pipeline, as a sentence begins."""
        return "The demo pipeline" if self.folder is None else f"The pipeline {self.folder.name}"

    def _known(self, purpose: str) -> Sequence[str]:
        """What the model knows, for ``calibration`` or ``evaluation``: of classes every other one."""
        labels = getattr(self.pipeline, "labels", None)
        if labels is None:
            return demo_prompts(purpose)
        return sorted(labels, key=labels.__getitem__)[purpose == "evaluation" :: 2]

    @functools.cached_property
    def reference(self) -> Drawn:
        """What the float model generates."""
        return self.drawn("float")

    def drawn(self, name: str) -> Drawn:
        """What the pipeline generates as it is now."""
        with self.reporter.stage(f"generating: {name}", 1) as advance:
            latents = sample_latents(
                self.pipeline, self.family, self.prompts, self.seeds, self.sampling
            )
            advance(1)
        pictures = [np.asarray(picture) for picture in decode(self.pipeline, self.family, latents)]
        return Drawn(latents.numpy(), pictures)

    def _plan(self, row: Row, bits: str) -> Plan:
        request = ExportRequest(
            model=self.folder,
            output=self.work / "none",
            bits=bits,
            method=row.method,
            preset=row.preset,
            weight_format=row.weight_format,
            target_bits=row.target_bits,
            recipe=Path(row.recipe) if row.recipe else None,
        )
        return plan(request)

    def calibrated(self, row: Row, bits: str) -> tuple[QuantizedState, float]:
        """The weights of a row, and the seconds that calibrating them took.

        Args:
            row: how.
            bits: a column; what recipes choose by activations is calibrated for each, everything else
                for weights of its bits.
        """
        slug = row.name.replace(", ", "-").replace(" ", "-")
        weight = bits.partition("a")[0]
        if row.by_activations or weight != USUAL_WEIGHT:
            slug += f"-{bits if row.by_activations else weight}"
        done, planned = self.work / f"{slug}.safetensors", self._plan(row, bits)
        method = with_settings(planned.method, row.changes)
        fingerprint = {"row": asdict(row), "method": method.to_json(), "model": self.digest}
        if row.recipe:  # its [export] is no part of the method
            fingerprint["recipe"] = Path(row.recipe).read_text(encoding="utf-8")
        if done.exists():
            state = load_state(done)
            if state.provenance["fingerprint"] == json.loads(json.dumps(fingerprint)):
                return state, float(state.provenance["seconds"])
        start = time.monotonic()
        prompts = tuple(
            itertools.islice(itertools.cycle(self._known("calibration")), method.data.prompts)
        )
        seeds = range(len(prompts))
        shared = fingerprint
        if row.target_bits is not None:  # budgets are spent on the same rounded layers
            slug = f"{row.method}-{row.preset}-budgets-{bits}"
            unspent = method.with_stage("budget", bits=0.0).to_json()
            shared = {**fingerprint, "row": slug, "method": unspent}
        work = Work(self.work / f"{slug}.calibration", shared)
        earlier = work.load("seconds") or 0.0
        sampler = pipeline_sampler(self.pipeline, self.family, prompts, seeds, self.sampling)
        found = calibrate(
            whole(self.pipeline.transformer),
            planned.specs,
            method,
            # The pipeline generates images afterwards, and keeps its parts.
            replace(sampler, prepare=lambda: None, close=lambda: None),
            seed=0,
            provenance={},
            reporter=self.reporter,
            attention=planned.attention,
            candidates=planned.recipe.candidates(tuple(planned.specs)),
            precisions=planned.precisions,
            work=work,
        )
        seconds = earlier + time.monotonic() - start
        # What was found may lie in the work folder.
        save_state(
            QuantizedState(found.state.layers, {"fingerprint": fingerprint, "seconds": seconds}),
            done,
        )
        if row.target_bits is None:
            work.remove()
        elif not earlier:
            work.save("seconds", seconds)
        return load_state(done), seconds

    def measured(self, row: Row, bits: str, state: QuantizedState) -> dict[str, Any]:
        """Scores of a row's weights with the activations of `bits`; measured once."""
        subject = [state.provenance["fingerprint"], bits, self.prompts, self.seeds]
        digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]
        kept = self.work / f"scores-{digest}.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text())
            return found
        found = self._measure(row, bits, state)
        kept.write_text(json.dumps(found))
        return found

    def _measure(self, row: Row, bits: str, state: QuantizedState) -> dict[str, Any]:
        planned = self._plan(row, bits)
        layers = (
            dict(state.layers)
            if row.by_activations
            else {
                name: replace(layer, spec=replace(spec, weight=layer.spec.weight))
                for (name, layer), spec in zip(
                    state.layers.items(), map(planned.specs.get, state.layers), strict=True
                )
                if spec is not None
            }
        )
        made = QuantizedState(layers, {}, planned.attention)
        with simulated(self.pipeline.transformer, made):
            drawn = self.drawn(f"{row.name} {bits}")
        found = map(asdict, self.scores(drawn))
        return dict(zip(("psnr", "latent_sqnr_db"), found, strict=True))

    def scores(self, drawn: Drawn) -> tuple[Score, Score]:
        """PSNR of images and SQNR of the final latents, dB, against the float model's."""
        both = zip(drawn.pictures, self.reference.pictures, strict=True)
        signals = zip(self.reference.latents, drawn.latents, strict=True)
        return (
            Score.of([psnr(a, b) for a, b in both]),
            Score.of([sqnr_db(s, a) for s, a in signals]),
        )


def _results(bench: Bench, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row's figures; what an earlier run measured of the same weights is read."""
    found = []
    for row in rows:
        columns = row.columns(bench.columns)
        if not columns:
            continue
        usual = next((bits for bits in columns if bits.startswith(USUAL_WEIGHT)), columns[0])
        state, seconds = bench.calibrated(row, usual)
        entry: dict[str, Any] = {"row": asdict(row), "seconds": seconds, "columns": {}}
        counts = collections.Counter(layer.spec.weight.format for layer in state.layers.values())
        entry["formats"] = dict(sorted(counts.items()))
        weights = sum(layer.n * layer.k for layer in state.layers.values())
        entry["bits"] = 8 * sum(layer.nbytes for layer in state.layers.values()) / weights
        for bits in columns:
            state, _ = bench.calibrated(row, bits)
            entry["columns"][bits] = bench.measured(row, bits, state)
            score = entry["columns"][bits]["psnr"]
            bench.reporter.note(f"{row.name} {bits}: PSNR {score['mean']:.2f} dB")
        found.append(entry)
    return found


def _chosen(
    parser: argparse.ArgumentParser, what: str, given: str | None, known: Iterable[str]
) -> list[str]:
    """Those of `known` that an option names, separated by semicolons, in their order; else all."""
    names = [name.strip() for name in (given or "").split(";") if name.strip()]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"unknown {what} {unknown}: expected {list(known)}")
    return [name for name in known if not names or name in names]


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", help="names of rows, separated by ';'; by default all")
    parser.add_argument(
        "--recipes", help="files, separated by ';': a row of each, after the others"
    )
    parser.add_argument("--bits", help="columns, separated by ';'; by default all")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pipeline", type=Path, help="in place of the demo")
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    parser.add_argument("--output", type=Path, default=DOCS / "quality.md")
    parser.add_argument("--title", help="of the page, behind 'Quality: '")
    options = parser.parse_args(arguments)
    files = [Path(name.strip()) for name in (options.recipes or "").split(";") if name.strip()]
    for path in files:
        read_method(path)  # refused before work starts
    own = [Row(path.stem, "gptq", recipe=str(path)) for path in files]
    rows = {row.name: row for row in ROWS}
    names = _chosen(parser, "rows", options.rows, rows) if options.rows or not own else []
    columns = _chosen(parser, "bits", options.bits, COLUMNS)
    bench = Bench(options.pipeline, options.work, options.prompts, options.seeds, columns)
    results = _results(bench, [*(rows[name] for name in names), *own])
    write_above_reading(options.output, document(bench, results, options.title))
    print(f"{options.output} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
