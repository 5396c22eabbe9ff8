"""Bundles for other runtimes: bodies inlined, and standard types."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

import target_quality

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import Bundle, write_manifest
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.exporting.export import ExportRequest, plan
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.targets import Target, convert, convert_in_place, target_by_name
from fp4dit_onnx.targets.inline import inline
from fp4dit_onnx.verification.verify import verify

Array = npt.NDArray[Any]


def run(path: Path, feed: Mapping[str, Array]) -> Array:
    found: Array = session(path, library=False, threads=1).run(None, dict(feed))[0]
    return found


@pytest.fixture(scope="module")
def inlined(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inline") / "bundle"
    return convert(demo_bundle, folder, target_by_name("inline")).bundle


def test_inlined_has_standard_operators_only(inlined: Path) -> None:
    model = onnx.load(inlined / "transformer" / "model.onnx", load_external_data=False)
    assert not model.functions
    assert [(o.domain, o.version) for o in model.opset_import] == [("", ops.OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "transformer_blocks.3.ff.net.0.proj/y" in names
    onnx.checker.check_model(inlined / "transformer" / "model.onnx", full_check=True)


def test_inlined_computes_the_same_bits(
    inlined: Path, demo_bundle: Path, demo_feed: dict[str, Array]
) -> None:
    path = demo_bundle / "transformer" / "model.onnx"
    expected = run(path, demo_feed)
    assert np.array_equal(run(inlined / "transformer" / "model.onnx", demo_feed), expected)
    demo_feed["timestep"] += 1  # the comparison sees a difference
    assert not np.array_equal(run(inlined / "transformer" / "model.onnx", demo_feed), expected)


def test_notes_stay_with_the_layer(inlined: Path) -> None:
    model = onnx.load(inlined / "transformer" / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name == "transformer_blocks.0.attn1.to_q/y")
    assert "weight SQNR" in {entry.key for entry in node.metadata_props}


def test_an_inlined_bundle_draws(inlined: Path) -> None:
    manifest = Bundle.open(inlined).manifest
    assert manifest.target == "inline"
    Bundle.open(inlined).check_files(deep=True)
    picture = Pipeline(inlined, library=False).generate(["tiger face"], steps=2)[0]
    assert picture.size == (64, 64)


def test_constants_are_shared(demo_bundle: Path) -> None:
    path = demo_bundle / "transformer" / "model.onnx"
    model = inline(onnx.load(path, load_external_data=False))
    assert "Constant" not in {node.op_type for node in model.graph.node}
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(set(names)) == len(names)
    limits = [t for t in model.graph.initializer if t.name.startswith("candidate")]
    assert len(limits) == 1  # every quantizer of the demo is e2m3


def test_a_model_is_not_changed_by_inlining(demo_bundle: Path) -> None:
    model = onnx.load(demo_bundle / "transformer" / "model.onnx", load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    inline(model)
    assert model.SerializeToString(deterministic=True) == before


def test_inspect_names_the_target(inlined: Path, run: Any) -> None:
    said = run("inspect", inlined).out
    assert "transformer for the target inline: activations as exported" in said


def test_models_are_replaced_when_all_are_written(demo_bundle: Path, tmp_path: Path) -> None:
    """A target may run the bundle, to measure ranges, so no model of it is replaced before."""
    seen = []

    def rewrite(source: Path, made: Path, bundle: Path, reporter: Reporter) -> dict[str, str]:
        shutil.copytree(source, made, dirs_exist_ok=True)
        seen.append(Bundle.open(bundle).check_files(deep=True))
        return {"activations": "test"}

    both = shutil.copytree(demo_bundle, tmp_path / "both")
    shutil.copyfile(both / "transformer/model.onnx", both / "vae_decoder/model.onnx")
    manifest = write_manifest(both, Bundle.open(demo_bundle).manifest)
    target = Target("copied", "a copy", ops.OPSET, rewrite)
    made = convert_in_place(both, manifest, target)
    assert len(seen) == 2
    assert made.converted["transformer"].activations == "test"


def test_a_failure_leaves_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    def rewrite(source: Path, made: Path, bundle: Path, reporter: Reporter) -> dict[str, str]:
        (made / "model.onnx").write_bytes(b"half")
        raise OSError("disk full")

    target = Target("broken", "fails", ops.OPSET, rewrite)
    with pytest.raises(OSError, match="disk full"):
        convert(demo_bundle, tmp_path / "made", target)
    assert list(tmp_path.iterdir()) == []


def test_refusals(inlined: Path, demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for the target inline already"):
        convert(inlined, tmp_path / "again", target_by_name("standard"))
    with pytest.raises(
        UsageError, match="target 'tensorrt': expected one of fp4dit, inline, standard"
    ):
        target_by_name("tensorrt")
    with pytest.raises(BundleError, match="is for the target inline: expected a bundle of our"):
        verify(inlined)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        convert(demo_bundle, taken, target_by_name("inline"))
    altered = shutil.copytree(demo_bundle, tmp_path / "altered")
    data = altered / "transformer" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="has sha256"):
        convert(altered, tmp_path / "never", target_by_name("inline"))
    assert not (tmp_path / "never").exists()


def test_an_export_is_refused_before_it_begins(tmp_path: Path) -> None:
    request = ExportRequest(
        tmp_path / "b", bits="w8a8", method="fp-rtn", target="standard", weight_format="e3m4"
    )
    with pytest.raises(UsageError, match="weights of e3m4"):
        plan(request)
    with pytest.raises(UsageError, match="target 'onnx'"):
        plan(ExportRequest(tmp_path / "b", method="fp-rtn", target="onnx"))


def test_export_inlines_by_itself(tmp_path: Path) -> None:
    from fp4dit_onnx.exporting.export import export

    request = ExportRequest(
        tmp_path / "bundle",
        method="fp-rtn",
        components="transformer",
        measure=False,
        target="inline",
    )
    export(request)
    made = Bundle.open(tmp_path / "bundle")
    assert made.manifest.target == "inline"
    made.check_files(deep=True)
    model = onnx.load(tmp_path / "bundle/transformer/model.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}


def test_the_page_holds_the_table_that_the_tool_writes() -> None:
    rows = target_quality.TABLE.read()
    assert all(f"| {variant.title} | " in rows for variant in target_quality.VARIANTS)
    assert target_quality.TABLE.replaced(rows) == target_quality.TABLE.path.read_text()
