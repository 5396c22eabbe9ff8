"""A bundle for another target, made of a bundle: the layers keep their values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import (
    EVIDENCE,
    MANIFEST,
    REPORT,
    Bundle,
    new_bundle,
    write_manifest,
)
from fp4dit_onnx.bundle.manifest import DEFAULT_TARGET, Converted, Manifest
from fp4dit_onnx.bundle.probe import attributes, load_graph
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.progress import Reporter, SilentReporter
from fp4dit_onnx.targets.target import Rewrite, Target

__all__ = ["Conversion", "convert", "convert_in_place", "rewritable"]


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        bundle: the new bundle.
        bytes_before: of each rewritten model, its data included, by its folder.
        bytes_after: the same of the new bundle.
        manifest: of the new bundle.
    """

    bundle: Path
    bytes_before: Mapping[str, int]
    bytes_after: Mapping[str, int]
    manifest: Manifest


def convert(
    source: Path,
    output: Path,
    target: Target,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Conversion:
    """Write the bundle `source` once more, for `target`; it appears whole or not at all.

    Raises:
        BundleError: no readable bundle.
        UsageError: it is for another target than the default already, `output` may not be written
            to, or a layer cannot be expressed.
    """
    bundle = Bundle.open(source)
    _check_source(bundle, target)
    needed = sum(file.bytes for file in bundle.manifest.files.values())
    note = (reporter or SilentReporter()).note
    with new_bundle(
        output, overwrite=overwrite, source=bundle.folder, needed=needed, note=note
    ) as folder:
        for name in (MANIFEST, *bundle.manifest.files):
            if name not in (REPORT, EVIDENCE):  # of the bundle that is converted
                _copy(bundle.folder / name, folder / name)
        before = _sizes(bundle.folder)
        manifest = convert_in_place(folder, bundle.manifest, target, reporter)
        after = _sizes(folder)
    changed = [name for name in before if before[name] != after[name]]
    return Conversion(
        output,
        {name: before[name] for name in changed},
        {name: after[name] for name in changed},
        manifest,
    )


def convert_in_place(
    folder: Path,
    manifest: Manifest,
    target: Target,
    reporter: Reporter | None = None,
) -> Manifest:
    """Rewrite the quantized models of a whole bundle, and its manifest.

    Args:
        folder: the bundle; where it is interrupted, it is of no use.
        manifest: the bundle's.
        target: what to make of it.
        reporter: progress.

    Returns:
        The new manifest.
    """
    facts = _rewritten(folder, target, reporter or SilentReporter())
    return write_manifest(folder, replace(manifest, target=target.name, converted=facts))


def _rewritten(folder: Path, target: Target, reporter: Reporter) -> dict[str, Converted]:
    """Rewrites the models in place; gives what the manifest says of each, by its folder.

    None is replaced before all are written: a target may generate images with the old bundle.
    """
    facts: dict[str, Mapping[str, Any]] = {}
    made: dict[str, Path] = {}
    rewrite = _rewrite_of(target)
    for model in quantized_models(folder):
        place = folder / f".{model}.{target.name}"
        place.mkdir()
        facts[model] = rewrite(folder / model, place, folder, reporter)
        made[model] = place
    for model, place in made.items():
        for old in (folder / model).glob("model.onnx*"):
            old.unlink()
        for new in place.iterdir():
            shutil.move(new, folder / model / new.name)
        place.rmdir()
    sizes = _sizes(folder)
    return {model: Converted(sizes[model], **found) for model, found in facts.items()}


def _rewrite_of(target: Target) -> Rewrite:
    """Its function.

    Raises:
        UsageError: there is none.
    """
    if target.rewrite is None:
        raise UsageError(
            f"target {target.name} is what export writes: expected one that bundles are converted to; "
            "convert --list shows them"
        )
    return target.rewrite


def rewritable(source: Path, target: Target) -> dict[str, int]:
    """What `convert` would rewrite: bytes of each model, its data included, by its folder.

    Raises:
        BundleError: no readable bundle.
        UsageError: it cannot be converted.
    """
    bundle = Bundle.open(source)
    _check_source(bundle, target)
    sizes = _sizes(bundle.folder)
    return {name: sizes[name] for name in quantized_models(bundle.folder)}


def _check_source(bundle: Bundle, target: Target) -> None:
    found = bundle.manifest.target
    _rewrite_of(target)
    if found != DEFAULT_TARGET:
        raise UsageError(
            f"{bundle.folder} is for the target {found} already: expected a bundle as export "
            "writes it; convert the original bundle"
        )
    bundle.check_files(deep=True)
    for formats in quantized_models(bundle.folder).values():
        target.check(formats)


def quantized_models(folder: Path) -> dict[str, set[str]]:
    """Folder of each model in the bundle `folder` that holds our operators -> its weights' formats."""
    models = {}
    for path in sorted(folder.glob("*/model.onnx")):
        graph = load_graph(path).graph
        nodes = [(node, op) for node in graph.node if (op := ops.operator_of(node))]
        if nodes:
            models[path.parent.name] = {
                attributes(node)[op.weight_format] for node, op in nodes if op.weight_format
            }
    return models


def _copy(source: Path, target: Path) -> None:
    """No hard link: onnx refuses data files that have several names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        part.parent.name: sum(p.stat().st_size for p in part.parent.glob("model.onnx*"))
        for part in sorted(folder.glob("*/model.onnx"))
    }
