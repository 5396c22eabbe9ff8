"""Scales of two levels: e4m3 numbers times a factor, chosen before the codes, and written as such."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

pytest.importorskip("diffusers")

import torch
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.calibration.applying import quantize_measured
from fp4dit_onnx.calibration.ranges import absmax_scale
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.mse import Mse
from fp4dit_onnx.exporting.export import ExportRequest, export, plan
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.numbers.scale_formats import SCALE_FORMATS, two_levels
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.targets.standard import standard
from fp4dit_onnx.targets.tiny_model import tiny_linear

E2M1 = format_by_name("e2m1")
PLAIN = LayerSpec.of("e2m1", "e2m3", 16)
NVFP4 = SCALE_FORMATS["nvfp4"]


def weight(scale: float = 0.02) -> torch.Tensor:
    """Rows of different sizes, a group of zeros, and one far below the others."""
    generator = torch.Generator().manual_seed(0)
    found = scale * torch.randn(24, 64, generator=generator)
    found *= torch.logspace(-1, 1, 24)[:, None]
    found[3, 16:32] = 0
    found[4, 16:32] *= 1e-9
    return found


@pytest.mark.parametrize("scale", [2.0**-30, 0.02, 7.0, 2.0**40])
def test_rounded_scales_have_two_levels(scale: float) -> None:
    full = absmax_scale(weight(scale), PLAIN).float().numpy()
    found = NVFP4.rounded(full, E2M1)
    levels = two_levels(found)
    assert levels is not None
    codes, factor = levels
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(values * factor, found)
    assert 224 <= values.max() <= 448
    assert np.frexp(factor)[0] == 0.5, "a power of two"
    assert np.array_equal(found > 0, full > 0), "no group vanishes"
    normal = values >= 2.0**-6
    assert (np.abs(found - full)[normal] <= full[normal] / 16).all()
    assert np.array_equal(NVFP4.rounded(found, E2M1), found)


def test_rounding_is_that_of_the_type() -> None:
    scale = np.abs(np.random.default_rng(0).standard_normal((50, 7))).astype(np.float32)
    scale[0, 0] = 448 / 4096
    scale = np.minimum(scale, scale[0, 0])
    expected = (scale * 4096).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) / 4096
    assert np.array_equal(NVFP4.rounded(scale, E2M1), expected)


def test_other_scales_have_one_level() -> None:
    full = absmax_scale(weight(), PLAIN).float().numpy()
    assert two_levels(full) is None
    far = np.array([[1.0, 2.0**-20]], np.float32)  # both powers of two, but too far apart
    assert two_levels(far) is None
    assert two_levels(np.zeros((2, 2), np.float32)) is not None


def test_codes_are_nearest_under_the_rounded_scale() -> None:
    """Scales come first: re-rounding them under given codes would lose more."""
    w, spec = weight(), PLAIN.with_weight(scale="nvfp4")
    w[4] = w[5]  # all within float16's range
    layer, sqnr = quantize_measured("layer", w, spec)
    assert layer.scale.dtype == np.float16, "exact: four significant bits"
    assert np.array_equal(layer.scale, absmax_scale(w, spec).numpy())
    codes = numerics.quantize_groups(w.numpy(), layer.scale.astype(np.float32), E2M1, 16)
    q, scale = numerics.decode(codes, E2M1), layer.scale.astype(np.float32)
    assert np.array_equal(numerics.decode(numerics.unpack(layer.codes, 64, 4), E2M1), q)
    plain, plain_sqnr = quantize_measured("layer", w, PLAIN)
    wrong = numerics.decode(numerics.unpack(plain.codes, 64, 4), E2M1)
    error, later = (
        float(((numerics.dequantize(x, scale, 16) - w.numpy()) ** 2).sum()) for x in (q, wrong)
    )
    assert error < later
    assert plain_sqnr - 1.5 < sqnr < plain_sqnr + 0.5


def test_two_levels_are_written_as_two_nodes() -> None:
    """The first node's scale is a scalar, its result the scale of the second, of blocks of 16."""
    made = standard(tiny_linear(16), {})
    onnx.checker.check_model(made, full_check=True)
    first, second = (n for n in made.graph.node if n.op_type == "DequantizeLinear")
    stored = {t.name: t for t in made.graph.initializer}
    kinds = [stored[n].data_type for n in (*first.input, second.input[0])]
    assert len(stored) == len(made.graph.initializer)
    assert kinds == [
        onnx.TensorProto.FLOAT8E4M3FN,
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT4E2M1,
    ]
    assert list(stored[first.input[0]].dims) == [4, 2]
    assert list(stored[first.input[1]].dims) == []
    assert second.input[1] == first.output[0]
    given = {a.name: a.i for a in second.attribute}
    assert given == {"axis": 1, "block_size": 16}
    x = np.eye(32, dtype=np.float32)
    columns = ReferenceEvaluator(made).run(None, {"x": x})[0]
    source = {t.name: onnx.numpy_helper.to_array(t) for t in tiny_linear(16).graph.initializer}
    q = numerics.decode(numerics.unpack(source["codes"], 32, 4), E2M1)
    expected = numerics.dequantize(q, source["weight_scale"], 16).T + source["bias"]
    assert np.array_equal(columns, expected)


def test_one_level_where_scales_are_not_such() -> None:
    model = tiny_linear(16)
    scale = next(t for t in model.graph.initializer if t.name == "weight_scale")
    scale.raw_data = np.geomspace(0.1, 0.2, 8).astype(np.float16).tobytes()
    made = standard(model, {})
    kinds = [n.op_type for n in made.graph.node]
    assert kinds.count("DequantizeLinear") == 1
    assert onnx.TensorProto.FLOAT8E4M3FN not in {t.data_type for t in made.graph.initializer}


def test_an_export_for_the_target_has_them(tmp_path: Path) -> None:
    request = ExportRequest(
        tmp_path / "bundle",
        method="fp-rtn",
        components="transformer",
        measure=False,
        report=False,
        target="standard",
    )
    manifest = export(request).manifest
    assert {row.group_size for row in manifest.layers} == {16}
    assert {row.weight_format for row in manifest.layers} == {"e2m1"}
    assert manifest.converted["transformer"].activations == "float"  # it cannot generate
    Bundle.open(tmp_path / "bundle").check_files(deep=True)
    path = tmp_path / "bundle" / "transformer" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path, load_external_data=False).graph
    kinds = [tensor.data_type for tensor in graph.initializer]
    layers = len(manifest.layers)
    assert kinds.count(onnx.TensorProto.FLOAT4E2M1) == layers
    assert kinds.count(onnx.TensorProto.FLOAT8E4M3FN) == layers


def test_what_is_asked_for_wins_over_the_target(tmp_path: Path) -> None:
    asked = {"group_size": 64, "range": "mse", "weight_format": "e1m2"}
    planned = plan(ExportRequest(tmp_path, method="fp-rtn", target="standard", **asked))
    assert planned.method.range == Mse()
    assert {spec.group_size for spec in planned.specs.values()} == {64}
    assert {spec.weight.format for spec in planned.specs.values()} == {"e1m2"}
    usual = plan(ExportRequest(tmp_path, method="fp-rtn"))
    assert usual.method.range == Absmax()
    assert {spec.group_size for spec in usual.specs.values()} == {128}
    assert {spec.weight.format for spec in usual.specs.values()} == {"e2m1", "e3m0"}
