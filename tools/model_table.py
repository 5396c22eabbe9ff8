"""Check every family of models on its small random twin and write the table in docs/models.md.

    python tools/model_table.py --write

For each official model of fp4dit_onnx/official/models.py whose family the tool knows: its twin is
made; its float graph, traced without weights, is compared with diffusers' own network at up to four
sizes and two batches; it is exported to W4A6; the bundle is verified, with the custom-op library and
without; and where the tool knows the family's pipeline the bundle generates an image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pages import Section, commit
from random_pipeline import make

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.exporting.streaming import GraphValues, write_model
from fp4dit_onnx.families import FAMILIES, Family, family_of
from fp4dit_onnx.official.models import MODELS
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.spec.state import Layout
from fp4dit_onnx.verification.cases import PACKED_SIZE, inputs_of_sizes
from fp4dit_onnx.verification.verify import verify

__all__ = ["Size", "float_distances", "run", "table"]

Array = npt.NDArray[Any]
TABLE = Section("models.md", "families")
HEADS = (
    *("model", "family", "float graph against torch", "sizes x batches", "W4A6 verified"),
    *("images", "measured at"),
)
TEXT = 9
NEAR = 1e-4
"""Of the output's largest value. float32 rounding over 4 to 6 blocks gives up to 3e-5 on the twins,
whose timestep embedding magnifies it; a table of positions that is one patch off gives 1e-1."""


@dataclass(frozen=True)
class Size:
    """Rows and patches of one comparison, as shares of the model's own grid.

    Attributes:
        batch: rows.
        height: of the grid.
        width: of the grid.
    """

    batch: int
    height: float
    width: float


SIZES = tuple(
    Size(batch, *shape) for shape in ((1, 1), (0.5, 0.5), (1, 1.5), (2 / 3, 1)) for batch in (1, 2)
)
SMALLER_ONLY = ("AuraFlow",)
"""Its positions are a stored table of its own size."""
SQUARE_ONLY = ("DiT",)
"""diffusers' own network takes every image for a square; the exported graph does not."""


def float_distances(folder: Path) -> dict[Size, float]:
    """Largest difference between the float graph and diffusers' network, over the largest value.

    Args:
        folder: a checkpoint.
    """
    import diffusers
    import torch

    from fp4dit_onnx.network.networks import fake_transformer
    from fp4dit_onnx.network.positions import arguments_of

    source = open_checkpoint(folder, only=("transformer",))
    family = family_of(source.pipeline_class, source.transformer_class)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        write_float(folder, path)
        ours = session(path, library=False)
        config = fake_transformer(family.transformer, source.transformer_config).config
        cls = getattr(diffusers, family.transformer)
        network = cls.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()
        found = {}
        for index, size in enumerate(sizes_of(family)):
            feed = _feed(family, config, size, index)
            tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
            arguments = arguments_of(family.interface(config), tensors)
            with torch.no_grad():
                wanted: Array = prediction(network, arguments).numpy()
            result: Array = ours.run(None, feed)[0]
            same = result.shape == wanted.shape
            distance = np.abs(result - wanted).max() / np.abs(wanted).max() if same else np.inf
            found[size] = float(distance)
    return found


def prediction(network: Any, arguments: Mapping[str, Any]) -> Any:
    """What a network of diffusers gives for a batch; Z-Image's takes lists."""
    if type(network).__name__ != "ZImageTransformer2DModel":
        return network(**arguments)[0]
    import torch

    texts = zip(
        arguments["encoder_hidden_states"], arguments["encoder_attention_mask"], strict=True
    )
    images = list(arguments["hidden_states"].unsqueeze(2))
    found = network(images, arguments["timestep"], [text[mask.bool()] for text, mask in texts])
    return torch.stack(found[0]).squeeze(2)


def sizes_of(family: Family) -> tuple[Size, ...]:
    """Those at which diffusers' own network can be compared."""
    square, small = family.name in SQUARE_ONLY, family.name in SMALLER_ONLY
    return tuple(
        s
        for s in SIZES
        if not (square and s.height != s.width) and not (small and max(s.height, s.width) > 1)
    )


def _feed(family: Family, config: Mapping[str, Any], size: Size, seed: int) -> dict[str, Array]:
    patch = int(config.get("patch_size") or 1)
    own = int(config.get("sample_size") or PACKED_SIZE * patch) // patch
    height, width = (max(1, round(own * share)) for share in (size.height, size.width))
    sizes = {"batch": size.batch, "text": TEXT, "image": height * width}
    sizes |= {"height": height * patch, "width": width * patch}
    feed = inputs_of_sizes(family, config, sizes, 500.0, seed)
    if "guidance" in feed:  # trained on values about 3.5, in thousandths of which it is embedded
        feed["guidance"][:] = 3.5
    return feed


def write_float(folder: Path, path: Path) -> None:
    """The transformer of the checkpoint `folder` in float, as an export traces it."""
    from fp4dit_onnx.network.networks import fake_transformer
    from fp4dit_onnx.passes.pipeline import quantized_graph
    from fp4dit_onnx.tracing.trace import traced_once

    source = open_checkpoint(folder, only=("transformer",))
    family = family_of(source.pipeline_class, source.transformer_class)
    net = fake_transformer(family.transformer, source.transformer_config)
    tensors = net.stored_under(source.tensors)
    traced = traced_once(net, family.interface(net.config))
    model, _ = quantized_graph(traced, Layout({}, {}), "fused")
    write_model(model, GraphValues(tensors, {}), path)


@dataclass(frozen=True)
class Row:
    """What was found of one model.

    Attributes:
        model: its name.
        family: the tool's.
        distances: of the float graph from torch.
        checks: of `verify` that hold, and all.
        images: that the bundle generated; None where the tool does not know the family's pipeline.
        error: why there is nothing more.
    """

    model: str
    family: str
    distances: Mapping[Size, float]
    checks: tuple[int, int]
    images: int | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        near = self.distances and max(self.distances.values()) <= NEAR
        verified = self.checks[0] == self.checks[1] > 0
        return bool(near) and verified and self.images in (None, 1)


def check(name: str, place: Path, *, quick: bool = False) -> Row:
    """Make the twin of a model, compare, export, verify and generate.

    Args:
        name: of the model.
        place: empty folder, which gets the folders twin and bundle.
        quick: verify fewer cases.
    """
    folder, bundle = place / "twin", place / "bundle"
    make(name, folder, twin=True)
    source = open_checkpoint(folder, only=("transformer",))
    record = family_of(source.pipeline_class, source.transformer_class)
    family, generates = record.name, record.generates
    components = "all" if generates else "transformer"
    try:
        distances = float_distances(folder)
        export(
            ExportRequest(bundle, folder, method="fp-rtn", measure=False, components=components)
        )
        found = verify(bundle, quick=quick).checks
        images = _images(bundle) if generates else None
    except Fp4DitError as error:
        return Row(name, family, {}, (0, 0), error=str(error))
    failed = [c for c in found if not c.ok]
    for bad in failed:
        print(f"{name}: {bad.name}: {bad.detail}: {bad.found}, {bad.bound}", file=sys.stderr)
    return Row(name, family, distances, (len(found) - len(failed), len(found)), images)


def _images(bundle: Path) -> int:
    """How many images that are not of one value two steps give, of one that is asked for."""
    pipeline = Pipeline(bundle)
    made = pipeline.generate(pipeline.example_prompts()[:1], steps=2)
    return sum(bool(np.ptp(np.asarray(image)) > 0) for image in made)


def table(rows: Sequence[Row], at: str) -> str:
    """The rows as Markdown, with the commit `at` which they were measured."""
    lines = [
        f"| {' | '.join(HEADS)} | |",
        "|" + " --- |" * (len(HEADS) + 1),
    ]
    for row in rows:
        grids = {(s.height, s.width) for s in row.distances}
        batches = {s.batch for s in row.distances}
        distance = f"{max(row.distances.values()):.1e}" if row.distances else "-"
        lines.append(
            f"| {row.model} | {row.family} | {distance} | {len(grids)} x {len(batches)} "
            f"| {row.checks[0]} of {row.checks[1]} checks | {'-' if row.images is None else row.images} "
            f"| commit {at} | {row.error or ('ok' if row.ok else 'no')} |"
        )
    return "\n".join(lines)


def merged(new: str, old: str, names: Iterable[str] | None = None) -> str:
    """The table `new`, with the rows of `old` for the models that it lacks.

    Args:
        new: its rows take the place of old ones that begin alike.
        old: what was measured before.
        names: with which rows begin, in their order; those of known models by default.
    """
    rows = {
        line.split(" | ")[0].removeprefix("| "): line
        for text in (old, new)
        for line in text.splitlines()[2:]
    }
    kept = (rows[name] for name in names or known_models() if name in rows)
    return "\n".join([*new.splitlines()[:2], *kept])


def known_models() -> list[str]:
    """Official models of a family that the tool knows."""
    pipelines = {name for family in FAMILIES for name in family.pipelines}
    return [name for name, model in MODELS.items() if model.class_name in pipelines]


class _Checked(Protocol):
    """A model's row."""

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        ...


Result = TypeVar("Result", bound=_Checked)


def run(
    section: Section,
    check: Callable[[str, Path], Result],
    table: Callable[[Sequence[Result], str], str],
    said: str | None,
    arguments: Sequence[str] | None,
) -> int:
    """The command line of a table of models; 1 where something does not hold.

    Args:
        section: the table's place.
        check: of a model, by name, in an empty folder.
        table: of what was found, and the commit.
        said: the program's docstring.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=(said or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names; all known ones by default")
    parser.add_argument("--write", action="store_true", help=f"put the rows into {section.page}")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # third parties' deprecations
    names, at, good = known_models(), commit(), True  # the page that is written makes a tree dirty
    try:
        for name in given.models or names:
            if name not in names:
                raise UsageError(f"unknown model {name}: expected some of {', '.join(names)}")
            with tempfile.TemporaryDirectory() as place:
                row = check(name, Path(place))
            good = good and row.ok
            text = table([row], at)
            print(text.splitlines()[-1], flush=True)
            if given.write:
                section.write(merged(text, section.read()))
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0 if good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where something does not hold."""
    return run(TABLE, check, table, __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
