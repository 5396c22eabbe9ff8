"""Reports in bundles and elsewhere: what is listed, what a kill leaves, what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import Run

from fp4dit_onnx.bundle.bundle import Bundle, put_files
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import plain
from fp4dit_onnx.report.data import read_evidence
from fp4dit_onnx.report.writing import add_report, report_html


def test_a_report_in_a_bundle_is_listed_with_its_hash(
    cases: SimpleNamespace, stub_bundle: Bundle
) -> None:
    before = dict(stub_bundle.manifest.files)
    add_report(stub_bundle, cases.evidence())
    opened = Bundle.open(stub_bundle.folder)
    opened.check_files(deep=True)
    assert set(opened.manifest.files) == {*before, "report.html", "report.json"}
    for name in ("report.html", "report.json"):
        content = (stub_bundle.folder / name).read_bytes()
        assert opened.manifest.files[name].sha256 == hashlib.sha256(content).hexdigest()
    assert read_evidence(stub_bundle.folder / "report.json") == cases.evidence()
    add_report(opened)  # rendered again from what is kept
    assert "30.5 dB" in (stub_bundle.folder / "report.html").read_text()
    assert {k: v for k, v in opened.manifest.files.items() if k in before} == before


def test_a_bundle_opens_without_its_report(cases: SimpleNamespace, stub_bundle: Bundle) -> None:
    add_report(stub_bundle, cases.evidence())
    (stub_bundle.folder / "report.html").unlink()
    opened = Bundle.open(stub_bundle.folder)
    with pytest.raises(BundleError, match=r"report\.html not found"):
        opened.check_files(deep=True)


def test_a_kill_at_any_moment_leaves_a_valid_bundle(
    cases: SimpleNamespace, stub_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_report(stub_bundle, cases.evidence())
    replace, moments = Path.replace, 0
    while True:
        left = moments

        def dying(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", dying)
        try:
            put_files(stub_bundle.folder, {"report.html": b"1", "report.json": b"2"})
            break
        except KeyboardInterrupt:
            Bundle.open(stub_bundle.folder).check_files(deep=True)
        moments += 1
    assert moments >= 3
    assert not list(stub_bundle.folder.glob(".*partial"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e["quality"]["pictures"][1].update(seed="x"), "quality.pictures[1].seed"),
        (lambda e: e["quality"]["pictures"][0].update(float_png="eA=="), "is not an image"),
        (lambda e: e["speed"]["timings"][0].pop("seconds"), "speed.timings[0].seconds is absent"),
        (lambda e: e["memory"].append(3), "memory[3] is 3, expected an object"),
        (lambda e: e["histograms"][0].update(counts=[]), "histograms[0] has no bins"),
        (lambda e: e.update(version=9), "version 9"),
    ],
)
def test_altered_evidence_gives_one_sentence(
    cases: SimpleNamespace,
    stub_bundle: Bundle,
    run: Run,
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    content = plain(cases.evidence())
    change(content)
    (stub_bundle.folder / "report.json").write_text(json.dumps(content))
    code, _, err = run("report", stub_bundle.folder)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (stub_bundle.folder / "report.html").exists()


def test_a_damaged_manifest_gives_one_sentence(cases: SimpleNamespace, tmp_path: Path) -> None:
    damaged = cases.make(tmp_path / "damaged", cases.manifest()).folder
    content = json.loads((damaged / "quantization.json").read_text())
    content["layers"][1].pop("weight_format")
    (damaged / "quantization.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"layers\[1\]\.weight_format is absent"):
        report_html(Bundle.open(damaged))


def test_truncated_evidence_gives_one_sentence(stub_bundle: Bundle) -> None:
    (stub_bundle.folder / "report.json").write_text('{"version": 1, "mod')
    with pytest.raises(BundleError, match="is not JSON"):
        report_html(stub_bundle)


def test_a_report_goes_where_it_is_wanted(
    cases: SimpleNamespace,
    stub_bundle: Bundle,
    tmp_path: Path,
    run: Run,
) -> None:
    add_report(stub_bundle, cases.evidence())
    before = (stub_bundle.folder / "quantization.json").read_bytes()
    code, out, _ = run("report", stub_bundle.folder, "-o", tmp_path / "new" / "r.html", "--json")
    assert code == 0
    assert json.loads(out)["evidence"] == plain(cases.evidence())
    assert (tmp_path / "new" / "r.html").read_text() == report_html(stub_bundle)
    assert (stub_bundle.folder / "quantization.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--count", "2"], "not from the embedded demo pipeline"),
        (["other", "--seeds", "2"], "compared as they were measured"),
        (["other", "third"], "expected one, or two"),
        (["-o", "bundle"], "bundle is a folder: expected the name of a file"),
    ],
)
def test_requests_that_cannot_be_carried_out(
    stub_bundle: Bundle,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(stub_bundle.folder.parent)
    shutil.copytree(stub_bundle.folder, "other")
    code, _, err = run("report", "bundle", *words)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_a_missing_package_is_named_with_its_extra(
    stub_bundle: Bundle, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    code, _, err = run("report", stub_bundle.folder)
    assert code == 2
    assert "pip install 'fp4dit-onnx[report]'" in err
