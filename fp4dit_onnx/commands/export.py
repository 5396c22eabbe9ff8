"""``fp4dit-onnx export``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fp4dit_onnx.bundle import REPORT
from fp4dit_onnx.commands.layer_table import print_attention, print_layers
from fp4dit_onnx.commands.output import print_json, print_line, print_table, reporter, size
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.export import ExportRequest, ExportResult, Plan, export, plan

__all__ = ["run"]

_DEFAULT = {f.name: f.default for f in fields(ExportRequest) if f.default is not MISSING}


def run(
    model: Annotated[
        Path | None,
        typer.Argument(help="Diffusers pipeline folder; without it, the embedded demo pipeline."),
    ] = _DEFAULT["model"],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the bundle to write.")
    ] = None,
    bits: Annotated[
        str, typer.Option(help="Bits of weights and activations: w4a6, w4a8, w8a8, w4a16, ...")
    ] = _DEFAULT["bits"],
    method: Annotated[
        str,
        typer.Option(help="fp4dit, fp-adaround, fp-rtn, int-adaround or int-rtn."),
    ] = _DEFAULT["method"],
    preset: Annotated[
        str, typer.Option(help="Effort of the methods that train: fast, balanced or best.")
    ] = _DEFAULT["preset"],
    iterations: Annotated[
        int | None, typer.Option(help="Training steps a block; by default the preset's.")
    ] = _DEFAULT["iterations"],
    samples: Annotated[
        int | None, typer.Option(help="Recorded samples to train on; by default the preset's.")
    ] = _DEFAULT["samples"],
    weight_format: Annotated[
        str | None,
        typer.Option(
            help="One format for all weights, or 'auto': e2m1, e1m2 or e3m0 layer by layer, by "
            "measured output error; by default FP4DiT's assignment."
        ),
    ] = _DEFAULT["weight_format"],
    range: Annotated[
        str | None,
        typer.Option(
            help="Range of a group: absmax (the default), mse for the least squared error, or nvfp4 "
            "for FP8 scales (the default of --target standard)."
        ),
    ] = _DEFAULT["range"],
    activation_format: Annotated[
        str | None, typer.Option(help="Format of the activations; by default that of the bits.")
    ] = _DEFAULT["activation_format"],
    attention_format: Annotated[
        str | None,
        typer.Option(
            help="Format of q, k and v in attention; by default that of the activations, 'none' "
            "keeps them in float."
        ),
    ] = _DEFAULT["attention_format"],
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Input channels that share one weight scale; by default 128, of --target standard 16."
        ),
    ] = _DEFAULT["group_size"],
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="PATTERN=FORMAT or PATTERN=WEIGHT/ACTIVATION for layers by name; 'none' keeps "
            "them in float. Repeatable, the first that matches wins."
        ),
    ] = None,
    form: Annotated[
        str, typer.Option(help="fused: one FpLinear a layer; qdq: quantize and dequantize nodes.")
    ] = _DEFAULT["form"],
    prompts: Annotated[
        Path | None, typer.Option(help="Text file to calibrate with, a prompt a line.")
    ] = _DEFAULT["prompts"],
    calibration_prompts: Annotated[
        int | None, typer.Option(help="Pictures to calibrate with; by default the preset's.")
    ] = _DEFAULT["calibration_prompts"],
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps; by default the pipeline's.")
    ] = _DEFAULT["steps"],
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default the pipeline's.")
    ] = _DEFAULT["guidance"],
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = _DEFAULT["seed"],
    state: Annotated[
        Path | None,
        typer.Option(help="Also write the quantized weights to this safetensors file."),
    ] = _DEFAULT["state"],
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for recorded activations and finished blocks, from which a killed run goes "
            "on; by default OUTPUT.calibration, removed at the end."
        ),
    ] = _DEFAULT["work"],
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what a killed run left in the work folder.")
    ] = _DEFAULT["restart"],
    max_ram: Annotated[
        float,
        typer.Option(help="GiB that recorded activations, and a layer being quantized, may take."),
    ] = _DEFAULT["max_ram"] / 2**30,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="With methods that need no data: run the float pipeline to measure the errors of "
            "outputs; by default where it takes less than 1 GiB.",
        ),
    ] = _DEFAULT["measure"],
    components: Annotated[
        str, typer.Option(help="all, or transformer: leave out text encoders and VAE.")
    ] = _DEFAULT["components"],
    text_encoder_bits: Annotated[
        str | None,
        typer.Option(
            help="Bits of the text encoders' linears: w4a16, w4a8, w8a16, ..., or none for float; "
            "by default w4a16 from 1 GiB in float32 on."
        ),
    ] = _DEFAULT["text_encoder_bits"],
    target: Annotated[
        str,
        typer.Option(
            help="fp4dit: our operators with their bodies; inline, standard: see convert."
        ),
    ] = _DEFAULT["target"],
    inline: Annotated[
        bool, typer.Option("--inline", help="Short for --target inline: no local functions.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            help="Write report.html into the bundle; pictures and times are in it where the float "
            "pipeline is run anyway.",
        ),
    ] = _DEFAULT["report"],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there.")
    ] = _DEFAULT["overwrite"],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the table with sizes, load no weights.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Quantize a diffusers pipeline and write it as an ONNX bundle."""
    if output is None and not dry_run:
        raise UsageError("no output folder: expected where to write the bundle; give -o DIR")
    request = ExportRequest(
        output=output or Path(),
        model=model,
        bits=bits,
        method=method,
        preset=preset,
        range=range,
        iterations=iterations,
        samples=samples,
        weight_format=weight_format,
        activation_format=activation_format,
        attention_format=attention_format,
        group_size=group_size,
        rules=tuple(rule or ()),
        form=form,
        prompts=prompts,
        calibration_prompts=calibration_prompts,
        steps=steps,
        guidance=guidance,
        seed=seed,
        overwrite=overwrite,
        state=state,
        work=work,
        restart=restart,
        max_ram=max_ram * 2**30,
        measure=measure,
        components=components,
        text_encoder_bits=text_encoder_bits,
        target="inline" if inline else target,
        report=report,
    )
    if dry_run:
        _show_plan(plan(request), json=json)
    else:
        _show_result(export(request, reporter()), json=json)


def _show_plan(planned: Plan, *, json: bool) -> None:
    if json:
        print_json(planned.to_json())
        return
    print_layers("Layers to quantize (dry run: nothing is written)", planned.layers)
    print_attention(planned.attention)
    _print_skipped(planned.skipped)
    _print_totals(planned.totals)


def _show_result(result: ExportResult, *, json: bool) -> None:
    manifest = result.manifest
    if json:
        print_json({"bundle": str(result.bundle), "seconds": result.seconds, "manifest": manifest})
        return
    print_layers("Quantized layers", manifest["layers"])
    print_attention(manifest.get("attention", {}))
    _print_skipped(manifest["skipped"])
    _print_totals(manifest.get("totals", {}))
    for name, found in manifest.get("converted", {}).items():
        print_line(f"{name} for the target {manifest['target']}: {size(found['bytes'])}")
    print_line(f"{result.bundle} written in {result.seconds:.0f} s")
    if REPORT in manifest.get("files", {}):
        print_line(f"{result.bundle / REPORT} shows what was lost")


def _print_skipped(skipped: Any) -> None:
    if skipped:
        rows = [(row["name"], row["reason"]) for row in skipped]
        print_table("Kept in float", ("layer", "reason"), rows)


def _print_totals(totals: Mapping[str, float]) -> None:
    if "transformer_bytes" in totals:
        before, after = totals["transformer_bytes_float32"], totals["transformer_bytes"]
        share = f"{100 * after / before:.1f} %" if before else "-"
        print_line(f"transformer: {size(before)} in float32, {size(after)} quantized ({share})")
