"""``fp4dit-onnx inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.bundle.names import TRANSFORMER, model_of
from fp4dit_onnx.bundle.remote import here, url_of
from fp4dit_onnx.commands.layer_table import by_kind, print_attention, print_layers
from fp4dit_onnx.commands.output import print_json, print_line, print_table
from fp4dit_onnx.commands.parameters import Json
from fp4dit_onnx.exporting.options import INPUT, OUTPUT, Option
from fp4dit_onnx.report.inspection import inspect_bundle, inspect_path
from fp4dit_onnx.system.texts import size

__all__ = ["run"]


def run(
    path: Annotated[
        Path,
        Option(
            "A bundle, also at an address of fsspec; an .onnx file or a diffusers folder.",
            INPUT,
            unit="PATH",
            positional=True,
        ),
    ],
    card: Annotated[
        bool, Option("Write a bundle's model card, README.md for a model hub, into it.", OUTPUT)
    ] = False,
    overwrite: Annotated[bool, Option("Replace a README.md that is there.", OUTPUT)] = False,
    json: Json = False,
) -> None:
    """Show what a bundle, an ONNX file or a diffusers folder holds."""
    if card:
        print_line(str(Bundle.open(path).card(overwrite=overwrite)))
        return
    url = url_of(path)
    if url is not None:
        with here(url) as folder:
            facts = inspect_bundle(folder)
            model = {**facts["transformer"], "path": f"{url}/{model_of(TRANSFORMER)}"}
            _show({**facts, "path": url, "transformer": model}, folder, json=json)
    else:
        _show(inspect_path(path), path, json=json)


def _show(facts: Mapping[str, Any], place: Path, *, json: bool) -> None:
    if json:
        print_json(facts)
        return
    if facts["kind"] == "bundle":
        _show_bundle(facts, Bundle.open(place).manifest)
    else:
        {"model": _show_model, "pipeline": _show_pipeline}[facts["kind"]](facts)


def _show_bundle(facts: Mapping[str, Any], manifest: Manifest) -> None:
    recipe, sampling = manifest.recipe, manifest.sampling
    print_line(f"bundle {facts['path']}: {recipe.bits}, method {recipe.method}")
    for name, found in manifest.converted.items():
        print_line(f"{name} for the target {manifest.target}: activations {found.activations}")
        for layer, why in found.kept.items():
            print_line(f"{layer} keeps its function body: {why}")
    print_line("sampling: " + ", ".join(f"{key} {value}" for key, value in vars(sampling).items()))
    print_layers("Quantized layers", manifest.layers)
    if manifest.skipped:
        rows = [(one.name, one.reason) for one in manifest.skipped]
        print_table("Kept in float", ("layer", "reason"), rows)
    rows = [(name, size(count)) for name, count in facts["files"].items()]
    print_table("Files", ("file", ">size"), rows)
    _show_model({**facts["transformer"], "layers": []})


def _show_model(facts: Mapping[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items())
    print_line(f"model {facts['path']}: IR {facts['ir_version']}, opsets {opsets}")
    interface = [
        (role, value["name"], value["dtype"], " x ".join(map(str, value["shape"])) or "scalar")
        for role in ("inputs", "outputs")
        for value in facts[role]
    ]
    print_table("Interface", ("", "name", "type", "shape"), interface)
    operators = [(row["domain"], row["operator"], row["count"]) for row in facts["operators"]]
    print_table("Operators", ("domain", "operator", ">count"), operators)
    if facts["functions"]:
        rows = [(row["domain"], row["name"], row["nodes"]) for row in facts["functions"]]
        print_table("Function bodies", ("domain", "function", ">nodes"), rows)
        print_line(f"without the library the bodies become {facts['expanded_nodes']:,} nodes")
    for name in facts["without_function"]:
        print_line(f"{name} has no function body: the model runs with its library only")
    weights = [(kind, size(count)) for kind, count in facts["bytes"].items()]
    print_table("Weights by kind", ("kind", ">size"), weights)
    print_attention(facts["attention"])
    if facts["layers"]:
        _show_layers(facts["layers"])


def _show_layers(layers: list[Mapping[str, Any]]) -> None:
    def properties(row: Mapping[str, Any]) -> tuple[object, ...]:
        formats = f"{row['weight_format']} / {row['activation_format'] or 'float'}"
        return row["operator"], formats, _shape(row)

    rows = [
        (name, len(members), *properties(members[0]), _bytes(members))
        for name, members in by_kind(layers, itemgetter("name"), properties)
    ]
    columns = ("layer", ">count", "operator", "formats", ">shape", ">codes")
    print_table("Quantized layers: formats of weights / activations", columns, rows)


def _shape(row: Mapping[str, Any]) -> str:
    return " x ".join(map(str, row["shape"]))


def _bytes(rows: list[Mapping[str, Any]]) -> str:
    return size(sum(row["bytes"] for row in rows))


def _show_pipeline(facts: Mapping[str, Any]) -> None:
    family = facts["family"] or "unknown family"
    print_line(f"pipeline {facts['path']}: {facts['pipeline']} ({family})")
    for note in facts["notes"]:
        print_line(note)
    components = [
        (
            row["name"],
            row["class"],
            row["tensors"],
            f"{row['parameters']:,}",
            " ".join(row["dtypes"]),
            size(row["bytes"]),
        )
        for row in facts["components"]
    ]
    columns = ("component", "class", ">tensors", ">parameters", "types", ">size")
    print_table("Components", columns, components)
    if facts["absent"]:
        print_line(f"null in model_index.json: {', '.join(facts['absent'])}")
    rows = [
        (name, len(members), _shape(members[0]), members[0]["dtype"], _bytes(members))
        for name, members in by_kind(
            facts["tensors"], itemgetter("name"), lambda row: (_shape(row), row["dtype"])
        )
    ]
    title, headings = f"Tensors of {facts['transformer']}", ("tensor", ">count", ">shape", "type")
    print_table(title, (*headings, ">size"), rows)
