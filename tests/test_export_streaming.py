"""Exports that never load the model: what they measure and write, and how a killed one resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import numpy as np

from fp4dit_onnx.bundle.bundle import REQUIRED_FILES, Bundle
from fp4dit_onnx.bundle.probe import load_model, read_state
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.export import ExportRequest, ExportResult, export, plan
from fp4dit_onnx.spec.state import load_state
from fp4dit_onnx.system.progress import Advance
from fp4dit_onnx.verification.verify import verify


def request(output: Path, **changes: object) -> ExportRequest:
    """The demo's transformer alone, rounded to nearest from its files."""
    settings = {"method": "fp-rtn", "components": "transformer", "measure": False, **changes}
    return ExportRequest(output=output, **settings)  # type: ignore[arg-type]


def files(bundle: Path) -> dict[str, bytes]:
    """The transformer's files, byte for byte."""
    folder = Bundle.open(bundle).transformer.parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    folder = tmp_path_factory.mktemp("streamed")
    return export(request(folder / "bundle", state=folder / "state.safetensors"))


def test_nothing_is_measured_but_the_weights(streamed: ExportResult) -> None:
    manifest = streamed.manifest
    assert manifest.case_sqnr_db == ()
    assert manifest.model_sqnr_db is None
    assert {row.output_sqnr_db for row in manifest.layers} == {None}
    assert all(10 < row.weight_sqnr_db < 30 for row in manifest.layers)
    assert all(2 < row.weight_kurtosis < 30 for row in manifest.layers)
    assert {row.outliers for row in manifest.layers} == {None}
    assert len(manifest.layers) == 86


def test_the_state_that_is_asked_for_is_that_of_the_graph(streamed: ExportResult) -> None:
    state = load_state(streamed.bundle.with_name("state.safetensors"))
    found = read_state(load_model(Bundle.open(streamed.bundle).transformer))
    assert state.attention == found.attention
    assert state.layers.keys() == found.layers.keys()
    for name, layer in found.layers.items():
        assert state.layers[name].spec == layer.spec
        for role, part in layer.parts.items():
            np.testing.assert_array_equal(state.layers[name].parts[role], part)


def test_the_transformer_alone_is_a_bundle(streamed: ExportResult) -> None:
    bundle = Bundle.open(streamed.bundle)
    assert not bundle.whole
    assert set(bundle.manifest.files) == {
        *REQUIRED_FILES,
        "report.html",
        "transformer/model.onnx.data",
    }
    assert not streamed.bundle.with_name("bundle.calibration").exists()
    checked = verify(streamed.bundle, quick=True)
    assert checked.ok, [c for c in checked.checks if not c.ok]


def test_time_and_memory_are_noted(streamed: ExportResult) -> None:
    found = streamed.manifest.resources
    stages = [seconds for name, seconds in found.seconds.items() if name != "total"]
    assert len(stages) >= 3
    assert sum(stages) <= found.seconds["total"] + 0.01 * len(stages)
    assert found.seconds["total"] <= streamed.seconds + 0.01
    before, after = found.peak_rss_bytes_after_imports, found.peak_rss_bytes
    if before is not None and after is not None:
        assert 2**26 < before <= after < 2**34


def test_layers_are_those_of_an_export_that_loads_the_model(
    streamed: ExportResult, tmp_path: Path
) -> None:
    """Bit for bit, and so are the errors of the weights."""
    changes = {"measure": True, "components": "all", "steps": 2, "report": False}
    other = export(request(tmp_path / "out", **changes))
    noted = other.manifest.resources
    within = ("loading the model", "encoding the prompts")
    assert 0 < sum(noted.seconds[stage] for stage in within) < noted.seconds["calibration"]
    assert not noted.peaks or noted.peaks[within[0]] <= noted.peaks[within[1]]
    mine, theirs = (
        read_state(load_model(Bundle.open(made.bundle).transformer)).layers
        for made in (streamed, other)
    )
    assert mine.keys() == theirs.keys()
    for name, layer in mine.items():
        assert layer.spec == theirs[name].spec
        np.testing.assert_array_equal(layer.codes, theirs[name].codes)
        np.testing.assert_array_equal(layer.scale, theirs[name].scale)
    mine_db, theirs_db = (
        [row.weight_sqnr_db for row in made.manifest.layers] for made in (streamed, other)
    )
    assert mine_db == pytest.approx(theirs_db, abs=1e-3)
    assert all(row.output_sqnr_db > 10 for row in other.manifest.layers)
    assert len(other.manifest.case_sqnr_db) == 3


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({}, False),
        ({"components": "all"}, False),
        ({"components": "all", "measure": None}, True),  # a small pipeline
        ({"measure": True}, False),  # there is no pipeline to run
        ({"method": "fp4dit"}, True),
    ],
)
def test_what_is_measured(tmp_path: Path, changes: dict[str, object], measured: bool) -> None:
    assert plan(request(tmp_path / "out", **changes)).measured is measured


class Killer:
    """A reporter that ends the export after some steps of one stage."""

    def __init__(self, stage: str, steps: int) -> None:
        self._stage, self._steps = stage, steps

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Counts the steps of its own stage."""
        done = 0.0

        def advance(steps: float, detail: str = "", *, timed: bool = True) -> None:
            nonlocal done
            done += steps
            if name == self._stage and done >= self._steps:
                raise KeyboardInterrupt

        yield advance

    def note(self, text: str) -> None:
        """Drop the line."""


def test_a_killed_export_goes_on(
    streamed: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, asked = tmp_path / "bundle", list[str]()
    with pytest.raises(KeyboardInterrupt):
        export(request(output), Killer("writing transformer", 200))
    assert not output.exists()
    work = tmp_path / "bundle.calibration"
    written = [path.stat().st_size for path in work.rglob("*.data")]
    assert written
    assert 0 < written[0] < len(files(streamed.bundle)["model.onnx.data"])
    with pytest.raises(UsageError, match=r"it differs in recipe\.bits"):
        export(request(output, bits="w4a8"))

    from fp4dit_onnx.calibration import applying as methods

    real = methods.quantize_measured

    def noted(name: str, *given: object) -> object:
        asked.append(name)
        return real(name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(methods, "quantize_measured", noted)
    result = export(request(output))
    assert 0 < len(set(asked)) < 86
    assert files(output) == files(streamed.bundle)
    assert result.manifest.layers == streamed.manifest.layers
    assert not work.exists()
