"""The pages of one bundle and of two: true, well-formed and safe."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import Run

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import decoded, plain
from fp4dit_onnx.report.data import Evidence
from fp4dit_onnx.report.rendering import TEMPLATES
from fp4dit_onnx.report.writing import add_report, comparison_html, report_html


def test_a_strict_reader_finds_what_is_wrong(cases: SimpleNamespace) -> None:
    for text in ("<p><b></p>", "<p>", "</p>", "<p id='a' id='b'></p>"):
        with pytest.raises(AssertionError):
            cases.Page(text)


def test_numbers_are_those_of_manifest_and_evidence(
    cases: SimpleNamespace, stub_bundle: Bundle
) -> None:
    page = cases.check(report_html(stub_bundle, cases.evidence()))
    for expected in ("30.5 dB", "2.7 MiB", "13.6 % of 19.6 MiB", "12.5 ms", "2.0 MiB"):
        assert expected in page.text
    for row in stub_bundle.manifest.layers:
        assert row.name in page.words
        assert f"{row.output_sqnr_db:.1f}" in page.words
    for name, entry in stub_bundle.manifest.files.items():
        assert {name, entry.sha256} <= set(page.words)
    assert "10 layers have outlier inputs" in page.text
    assert f"the highest input kurtosis is 64, of {cases.HOSTILE}" in page.text
    assert "hadamard +4.2 dB, smoothing +1.5 dB" in page.words
    labels = list(page.values("aria-label"))
    assert any("12.5 to 20.5 dB over 3 blocks and 3 linears" in label for label in labels)
    assert any("lowest in attn1.to_q of block 0" in label for label in labels)
    alts = list(page.values("alt"))
    assert [alt for alt in alts if "tiger face, seed 7" in alt][:2] == [
        "float: tiger face, seed 7",
        "W4A6: tiger face, seed 7",
    ]


def test_texts_from_outside_are_escaped(cases: SimpleNamespace, stub_bundle: Bundle) -> None:
    text = report_html(stub_bundle, cases.evidence())
    page = cases.check(text)
    assert "<script>alert" not in text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert cases.HOSTILE in page.text
    other = cases.make(stub_bundle.folder.with_name("other"), cases.manifest(bits="w4a8"))
    assert "<script>alert" not in comparison_html(stub_bundle, other)


def test_what_was_not_measured_is_said_with_the_command(
    cases: SimpleNamespace, tmp_path: Path
) -> None:
    bare = cases.make(tmp_path / "bare", cases.manifest(measured=False))
    page = cases.check(report_html(bare))
    assert page.text.count("Not measured:") == 5
    assert "fp4dit-onnx report BUNDLE --model PIPELINE" in page.words
    assert "output SQNR not measured" in page.text
    assert "3.2" in page.words
    assert "layers have outlier inputs" not in page.text
    part = cases.make(tmp_path / "part", cases.manifest(measured=False), whole=False)
    assert "holds only the transformer" in cases.Page(report_html(part)).text


def test_a_reason_found_while_measuring_is_shown(
    cases: SimpleNamespace, stub_bundle: Bundle
) -> None:
    content = plain(cases.evidence()) | {"speed": None, "absent": {"speed": "no kernels <here>"}}
    page = cases.check(report_html(stub_bundle, decoded(Evidence, content)))
    assert "no kernels <here>" in page.text
    assert page.text.count("Not measured:") == 1


def test_times_of_a_busy_machine_give_no_ratio(
    cases: SimpleNamespace, stub_bundle: Bundle
) -> None:
    content = plain(cases.evidence())
    assert "1.0 times as fast" in cases.Page(report_html(stub_bundle, cases.evidence())).text
    content["machine"]["load"] = 3.5  # on 2 cores
    text = cases.Page(report_html(stub_bundle, decoded(Evidence, content))).text
    assert "times as fast" not in text
    assert "neither is reliable" in text


def test_a_page_is_the_same_every_time(cases: SimpleNamespace, stub_bundle: Bundle) -> None:
    assert report_html(stub_bundle, cases.evidence()) == report_html(stub_bundle, cases.evidence())


def test_two_bundles_are_compared(
    cases: SimpleNamespace,
    stub_bundle: Bundle,
    tmp_path: Path,
    run: Run,
) -> None:
    content = cases.manifest(bits="w4a8")
    content["layers"] = content["layers"][1:]
    content["layers"][0] |= {"weight_format": "e3m0", "output_sqnr_db": 15.0}
    other = cases.make(tmp_path / "other", content)
    add_report(stub_bundle, cases.evidence())
    add_report(other, cases.evidence(shift=-2.0))
    code, out, _ = run("report", stub_bundle.folder, other.folder, "-o", tmp_path / "both.html")
    assert code == 0
    assert "both.html written" in out
    page = cases.check((tmp_path / "both.html").read_text())
    for expected in (
        "-2.0 dB",
        "± 0.0, other against bundle, 2 images",
        "1 layer is quantized only in bundle",
    ):
        assert expected in page.text
    assert "e3m0 / e2m3" in page.words
    assert "+1.5" in page.words  # of the layer whose error changed from 13.5 to 15 dB
    assert sum("tiger face, seed 7" in alt for alt in page.values("alt")) == 3
    with pytest.raises(UsageError, match="given twice"):
        comparison_html(stub_bundle, stub_bundle)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"machine": {"cpu": "another"}}, "the machines differ"),
        ({"machine": {"load": 9.0}}, "a machine was busy"),
        ({"machine": {"load": 2.0}}, "the load of the machine differs"),
        ({"speed": {"threads": 1}}, "threads or kernels differ"),
    ],
)
def test_times_that_do_not_compare_give_no_difference(
    cases: SimpleNamespace,
    stub_bundle: Bundle,
    tmp_path: Path,
    changes: dict[str, dict[str, Any]],
    reason: str,
) -> None:
    content = plain(cases.evidence())
    content["machine"]["load"] = 0.5
    add_report(stub_bundle, decoded(Evidence, content))
    other = cases.make(tmp_path / "other", cases.manifest(bits="w4a8"))
    for part, values in changes.items():
        content[part] |= values
    add_report(other, decoded(Evidence, content))
    html = comparison_html(stub_bundle, other)
    page = cases.check(html)
    row = re.search(r"denoising step\s*</th>(.*?)</tr>", html, re.DOTALL)
    assert row
    assert row[1].count("%") == (0 if reason else 1)
    assert ("Times cannot be compared" in page.text) == bool(reason)
    assert reason in page.text


def test_decibels_are_explained(cases: SimpleNamespace, stub_bundle: Bundle) -> None:
    text = cases.check(report_html(stub_bundle, cases.evidence())).text
    found = re.search(r"(\d+) dB of 3 %.* so 30 dB are (\d+) of 255 levels", text)
    assert found
    assert 10 ** (-int(found[1]) / 20) == pytest.approx(0.03, abs=0.005)
    assert round(255 * 10 ** (-30 / 20)) == int(found[2])


def relative_luminance(colour: str) -> float:
    """WCAG 2.2's, of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(relative_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colours_meet_aa_in_light_and_in_dark() -> None:
    """Text 4.5 : 1, lines of plots 3 : 1."""
    style = (TEMPLATES / "style.css").read_text()
    modes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("dark)")
    ]
    assert len(modes) == 2
    for mode in modes:
        for text in ("ink", "muted", "link"):
            assert contrast(mode[text], mode["page"]) >= 4.5, text
        for line in ("series-0", "series-1", "series-2", "focus"):
            assert contrast(mode[line], mode["page"]) >= 3, line
        for i in range(6):
            assert contrast(mode[f"heat-ink-{i}"], mode[f"heat-{i}"]) >= 4.5, i
