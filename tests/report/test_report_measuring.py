"""The evidence of a report, measured on the demo pipeline; and where its parts come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from manifests import layer

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.manifest import Layer, read_manifest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.layers import linear_layers
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.report.data import FLOAT, FUNCTIONS, LIBRARY, Evidence, read_evidence
from fp4dit_onnx.report.histograms import chosen_layers, quantizer_input
from fp4dit_onnx.report.layer_names import arranged


def test_blocks_are_read_off_names_of_any_family() -> None:
    names = [
        "proj_out",
        "caption.0.linear",
        *(
            f"transformer_blocks.{i}.{n}"
            for i in range(60)
            for n in ("attn.to_q", "ff.net.0.proj")
        ),
        *(f"single_transformer_blocks.{i}.proj_mlp" for i in (0, 2)),
        "blocks.0.attn1.to_q",
        "blocks.0.attn1.to_v",
    ]
    lists, outside = arranged(names)
    assert outside == ["proj_out", "caption.0.linear"]
    assert {b.name: (len(b.numbers), b.linears) for b in lists} == {
        "transformer_blocks": (60, ("attn.to_q", "ff.net.0.proj")),
        "single_transformer_blocks": (2, ("proj_mlp",)),
        "blocks": (1, ("attn1.to_q", "attn1.to_v")),
    }


def row(name: str, output: float | None, weight: float | None = None) -> Layer:
    return layer(name, output_sqnr_db=output, weight_sqnr_db=weight)


def test_characteristic_layers_are_chosen_by_rule() -> None:
    rows = [row("a", 20.0), row("b.0.ff.net.0.proj", 18.0), row("c", 11.0), row("d", None)]
    found = {layer.name: layer.why for layer in chosen_layers(rows)}
    assert found == {
        "c": "lowest output SQNR",
        "a": "highest output SQNR",
        "b.0.ff.net.0.proj": "first feed-forward linear, middle block",
    }
    weights = [row("a", None, 18.0), row("b", None, 12.0)]
    assert [layer.name for layer in chosen_layers(weights)] == ["b", "a"]
    assert chosen_layers([row("a", None)]) == []


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ('q, s = t.FpQuantize (x)  y = t.FpLinear (q, s, "l.weight.codes", w)', ("x", 0)),
        (
            """z = Mul (x, "l.input.factor")  h = t.FpHadamard <block = 8> (z)
               q, s = t.FpQuantize (h)  y = t.FpLinear (q, s, "l.weight.codes", w)""",
            ("x", 2),
        ),
        ('y = t.FpLinear (x, w, "l.weight.codes", w)', None),
        (
            """q, s = t.FpQuantize (x)  xf = t.FpDequantize (q, s)  c = t.FpUnpack ("l.weight.codes")
               wf = t.FpDequantize (c, w)  wt = Transpose (wf)  y = MatMul (xf, wt)""",
            ("x", 0),
        ),
    ],
)
def test_a_layer_s_quantizer_is_found_in_both_forms(
    nodes: str, expected: tuple[str, int] | None
) -> None:
    text = nodes.replace("t.Fp", "com.fp4dit.Fp")
    graph = onnx.parser.parse_graph(
        f"g (float[M] a, float[M] w) => (float[M] y) {{ x = Abs (a) {text} }}"
    )
    assert quantizer_input(graph, "l") == expected


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> Path:
    from fp4dit_onnx.exporting.export import ExportRequest, export

    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("measured") / "bundle"
    request = ExportRequest(folder, method="fp-rtn", steps=3, calibration_prompts=2)
    result = export(request)
    assert torch.get_num_threads() == 1  # not what the float model was timed on
    assert result.manifest == read_manifest(folder / "quantization.json")
    return folder


@pytest.fixture(scope="module")
def found(exported: Path) -> Evidence:
    evidence = read_evidence(exported / "report.json")
    assert evidence is not None
    return evidence


def test_an_export_measures_everything(exported: Path, found: Evidence) -> None:
    assert found.absent == {}
    bundle = Bundle.open(exported)
    bundle.check_files(deep=True)
    assert {"report.html", "report.json"} <= set(bundle.manifest.files)
    assert "Not measured" not in (exported / "report.html").read_text()


def test_pictures_are_drawn_as_evaluate_draws(found: Evidence) -> None:
    quality = found.quality
    assert quality is not None
    assert len(quality.pictures) == len({p.prompt for p in quality.pictures}) == 4
    assert quality.sampling.steps == len(quality.latent_sqnr_db) == 3
    mean = np.mean([picture.psnr_db for picture in quality.pictures])
    assert quality.scores["psnr"].mean == pytest.approx(mean)
    assert all(p.float_png != p.quantized_png for p in quality.pictures)


def test_histograms_count_every_value(exported: Path, found: Evidence, demo_folder: Path) -> None:
    from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint

    shapes = linear_layers(open_checkpoint(demo_folder))
    rows = {r.name: r for r in Bundle.open(exported).manifest.layers}
    weights = [h for h in found.histograms if h.part == "weight"]
    inputs = [h for h in found.histograms if h.part == "input"]
    assert len(weights) == 3
    assert {(h.layer, h.step) for h in inputs} == {
        (h.layer, s) for h in weights for s in (0, 1, 2)
    }
    for histogram in weights:
        largest = format_by_name(histogram.format).max
        assert sum(histogram.counts) == np.prod(shapes[histogram.layer])
        assert histogram.format == rows[histogram.layer].weight_format
        assert histogram.high == -histogram.low == pytest.approx(1.1 * largest)
        filled = np.flatnonzero(histogram.counts)
        width = (histogram.high - histogram.low) / len(histogram.counts)
        reach = histogram.high - width * filled[0]
        assert largest - width <= reach <= largest + 2 * width  # that of each group
    for histogram in inputs:
        assert histogram.format == "e2m3"
        assert histogram.sqnr_db is not None
        assert 20 < histogram.sqnr_db < 40  # 6 bits


def test_time_and_memory_of_all_three_models(found: Evidence) -> None:
    assert found.speed is not None
    assert [t.name for t in found.speed.timings] == [FLOAT, LIBRARY, FUNCTIONS]
    assert all(
        0 < t.seconds.low <= t.seconds.median <= t.seconds.high for t in found.speed.timings
    )
    assert found.speed.batch == 2
    assert [one.name for one in found.memory] == [FLOAT, LIBRARY, FUNCTIONS]
    assert all(0 <= one.loaded_bytes <= one.peak_bytes < 2**31 for one in found.memory)


def test_another_pipeline_is_refused(exported: Path, demo_copy: Path) -> None:
    from fp4dit_onnx.report.measuring import measure

    index = demo_copy / "model_index.json"
    index.write_text(index.read_text().replace("PixArtAlphaPipeline", "PixArtSigmaPipeline"))
    bundle = Bundle.open(exported)
    with pytest.raises(UsageError, match="was made from a PixArtAlphaPipeline"):
        measure(bundle, demo_copy, ["x"], [0])
    with pytest.raises(UsageError, match="no prompt or no seed"):
        measure(bundle, demo_copy, [], [0])


def test_a_section_that_fails_does_not_cost_the_others(
    exported: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fp4dit_onnx.report import measuring

    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of order\nsecond line")

    monkeypatch.setattr(measuring, "evaluate", fails)
    monkeypatch.setattr(measuring.speed, "measure_speed", fails)
    monkeypatch.setattr(measuring.speed, "KINDS", {})
    evidence = measuring.measure(Bundle.open(exported), demo_folder, ["x"], [0])
    reason = "It fails here with RuntimeError: out of order"
    assert evidence.absent == {"quality": reason, "speed": reason}
    assert evidence.quality is None
    assert evidence.histograms
