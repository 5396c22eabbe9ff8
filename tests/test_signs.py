"""Weights of which most inputs have a sign alone (PTQ1.61): storage, operators, kernels, calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from one_operator import one_operator, run_library, run_ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import ops
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.layer_inputs import LayerInputs, Second
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.moments import HalfWeights, Rows
from fp4dit_onnx.calibration.rounding import rounded_to_nearest
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.transforming import transformed_moments
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.manifest_of import manifest_of
from fp4dit_onnx.exporting.plan import ExportRequest, plan
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.runtime.library import Library
from fp4dit_onnx.spec.salient import Salient, salient_first
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState, load_state, save_state
from fp4dit_onnx.spec.vector import Vector
from fp4dit_onnx.targets.weights import stored_weight

Array = npt.NDArray[np.generic]
INT4 = FORMATS["int4"]
SHAPES = ((7, 24, 8, 8), (33, 101, 16, 32), (70, 150, 32, 64), (1, 9, 8, 8))
"""N, K, group size, inputs with codes."""


def codes(seed: int, n: int, k: int, wide: int) -> npt.NDArray[np.uint8]:
    """Codes of int4 up to `wide`, then those of 1 and -1."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 16, (n, k)).astype(np.uint8)
    found[:, wide:] = random.choice([1, 9], (n, k - wide))
    return found


def by_hand(row: list[int], wide: int) -> list[int]:
    """The bytes of a row of codes, bit by bit."""
    text = "".join(f"{code:04b}"[::-1] for code in row[:wide])
    text += "".join(str(code >> 3) for code in row[wide:])
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)]


@pytest.mark.parametrize(("n", "k", "group", "wide"), SHAPES)
def test_packing_is_that_by_hand(n: int, k: int, group: int, wide: int) -> None:
    given = codes(0, n, k, wide)
    packed = numerics.pack(given, 4, wide)
    assert packed.tolist() == [by_hand(row.tolist(), wide) for row in given]
    assert packed.shape[1] == wide // 2 + -(-(k - wide) // 8)
    assert np.array_equal(numerics.unpack(packed, k, 4, wide), given)


def parts(seed: int, n: int, k: int, group: int, wide: int) -> tuple[Array, ...]:
    """Packed codes, multipliers, channel scales, bias."""
    random = np.random.default_rng(seed)
    times = random.integers(0, 16, (n, -(-k // group))).astype(np.uint8)
    channel = random.standard_normal(n).astype(np.float32)
    bias = random.standard_normal(n).astype(np.float32)
    return numerics.pack(codes(seed, n, k, wide), 4, wide), numerics.pack(times, 4), channel, bias


@pytest.mark.parametrize("op", ["FpUnpackSigns", "FpLinearSigns"])
@pytest.mark.parametrize(("n", "k", "group", "wide"), SHAPES)
def test_bodies_have_the_references_bits(op: str, n: int, k: int, group: int, wide: int) -> None:
    packed, *rest = parts(1, n, k, group, wide)
    signs = ops.sign_attributes(k, wide)
    if op == ops.UNPACK_SIGNS:
        given, inputs = ops.unpack_attributes(INT4, k) | signs, [packed]
    else:
        x = np.random.default_rng(2).standard_normal((5, k)).astype(np.float32)
        q, scale = numerics.quantize(x, FORMATS["int6"])
        given = ops.linear_integer_attributes(FORMATS["int6"], INT4, k, group) | signs
        inputs = [q, scale, packed, *rest]
    (wanted,) = ops.OPERATORS[op].reference(given, inputs)
    model = one_operator(op, given, *inputs)
    feed = dict(zip(ops.function(op).input, inputs, strict=True))
    for found in (run_ort(model, feed)[0], ReferenceEvaluator(model).run(None, feed)[0]):
        assert same_bits(wanted, found).ok


@pytest.mark.parametrize("name", Library().isas)
def test_kernels_have_the_references_bits(name: str) -> None:
    library = Library()
    library.select_isa(name)
    library.reset_counters()
    try:
        for index, (n, k, group, wide) in enumerate(SHAPES):
            signs, act = ops.sign_attributes(k, wide), FORMATS["int8" if index % 2 else "e2m3"]
            weights = parts(index, n, k, group, wide)
            given = ops.unpack_attributes(INT4, k) | signs
            check(ops.UNPACK_SIGNS, given, weights[0])
            given = ops.linear_integer_attributes(act, INT4, k, group) | signs
            for rows in (1, 5, 150):
                x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
                check(ops.LINEAR_SIGNS, given, *numerics.quantize(x, act), *weights, constant=4)
    finally:
        library.select_isa(None)
    counted = library.counters()
    assert counted[f"FpLinearSigns/int8/{name}"] == 3 * len(SHAPES)


def check(op: str, given: dict[str, object], *inputs: Array, constant: int = 0) -> None:
    """The library's output, the last inputs being constants, has the reference's bits."""
    model = one_operator(op, given, *inputs)
    names = [value.name for value in model.graph.input]
    feed = dict(zip(names, inputs, strict=True))
    for name in names[len(names) - constant :]:
        model.graph.initializer.append(numpy_helper.from_array(feed.pop(name), name))
        del model.graph.input[-1]
    (wanted,) = ops.OPERATORS[op].reference(given, inputs)
    outcome = same_bits(wanted, run_library(model, feed)[0])
    assert outcome.ok, f"{op} {given}: {outcome.detail}"


def layer(seed: int = 3) -> QuantizedLayer:
    """A layer of 8 outputs and 40 inputs, 8 of them with codes."""
    n, k, group, wide = 8, 40, 8, 8
    packed, times, channel, _ = parts(seed, n, k, group, wide)
    mask = np.packbits(np.arange(k) % 5 == 2, bitorder="little")
    ops_before = (Salient("fc", Vector(mask)),)
    spec = LayerSpec.of("int4", "int8", group, "int4*f32", None, ops_before, wide=wide)
    scales = {"multipliers": times, "channel_scale": np.abs(channel)}
    return QuantizedLayer("fc", spec, k, {"codes": packed, **scales})


def test_a_layer_takes_its_bits_and_is_restored(tmp_path: Path) -> None:
    own = layer()
    assert own.parts["codes"].shape == (8, 4 + 4)
    assert own.nbytes == 8 * (4 + 4 + 3 + 4) + 5
    assert set(np.unique(own.integers()[:, 8:])) == {-1, 1}
    save_state(QuantizedState({"fc": own}), tmp_path / "state")
    again = load_state(tmp_path / "state").layers["fc"]
    assert again.spec == own.spec
    assert np.array_equal(again.weight(), own.weight())
    other = replace(own.spec, input_ops=()).with_weight(wide=12)
    with pytest.raises(UsageError, match=r"fc: 12 of 40 inputs in int4.* whole groups of 8"):
        replace(own, spec=other, parts={**own.parts, "codes": np.zeros((8, 10), np.uint8)})


def test_salient_inputs_come_first() -> None:
    mask = np.array([0b00100100, 0b1], np.uint8)
    order = [2, 5, 8, 0, 1, 3, 4, 6, 7, 9]
    assert salient_first(mask, 10).tolist() == order
    one, x = Salient("fc", Vector(mask)), torch.arange(20.0).reshape(2, 10)
    assert torch.equal(one(x, torch), x[:, order])
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    product = one(x, torch) @ one.of_weight(weight, torch).T
    torch.testing.assert_close(product, x @ weight.T)


def test_the_stages_of_the_recipe() -> None:
    make = torch.Generator().manual_seed(4)
    rows = torch.randn(64, 1, 40, generator=make)
    rows[:, :, [3, 17, 22, 23, 30, 35, 38, 39]] *= 9
    weight = torch.randn(6, 40, generator=make)
    flat = rows.flatten(0, 1).double()

    def inputs(draft: Draft) -> LayerInputs:
        moments = transformed_moments(flat.T @ flat / len(flat), draft.spec.input_ops)
        given = Rows(rows, torch.ones(64), HalfWeights(1.0, 0.0))
        return LayerInputs(
            "fc",
            Second(moments),
            lambda: given,
            weight,
            None,
            peaks=lambda: flat.float(),
            first="fc",
        )

    stages = method_by_name("ptq1.61").stages
    draft = Draft("fc", weight, LayerSpec.of("int4", None, 8, "int4*f32"))
    drafts = {"fc": draft}
    for stage in stages:
        drafts = stage.apply(drafts, Evidence(lambda d: d, inputs=inputs))
    made = drafts["fc"].layer()
    (one,) = made.spec.input_ops
    assert isinstance(one, Salient)
    assert one.mask is not None
    order = salient_first(one.mask.values, 40)
    assert order[:8].tolist() == [3, 17, 22, 23, 30, 35, 38, 39]
    arranged = weight.numpy()[:, order]
    assert set(np.unique(made.integers()[:, 8:])) == {-1, 1}
    assert len(np.unique(made.integers()[:, :8])) > 6
    assert drafts["fc"].error is not None
    assert drafts["fc"].error < 1, "better than nearest"

    (nearest,) = (
        stages[1]
        .apply({"fc": replace(drafts["fc"], codes=None)}, Evidence(lambda d: d, inputs=inputs))
        .values()
    )
    signs = rounded_to_nearest(nearest).layer()
    assert np.array_equal(signs.integers()[:, 8:], np.where(arranged[:, 8:] < 0, -1, 1))
    # The best scale of signs is the mean magnitude; weighted, it is searched for around that.
    means = np.abs(arranged[:, 8:].reshape(6, 4, 8)).mean(axis=2)
    assert (np.abs(signs.scale[:, 1:] / means - 1) < 0.6).all()


def test_bundles_say_the_mean_bits(tmp_path: Path) -> None:
    made = plan(ExportRequest(tmp_path / "b", method="ptq1.61", bits="W4A8"))
    assert (made.bits, made.summary["bits"]) == ("w1.6a8", "w1.6a8")
    assert manifest_of(made, made.layers, ()).recipe.bits == "w1.6a8"
    assert method_by_name("gptq").label("w4a8") == "w4a8"


def test_trained_rounding_of_signs_is_refused() -> None:
    method = method_by_name("ptq1.61")
    with pytest.raises(UsageError, match=r"ptq1\.61: adaround trains .* another rounding"):
        method.with_stage("adaround")


def test_other_targets_have_four_bits_for_a_sign() -> None:
    given, scale = codes(5, 3, 24, 8), np.ones((3, 3), np.float32)
    found = stored_weight(numerics.pack(given, 4, 8), scale, 24, INT4, 8, 8)
    assert np.array_equal(found, stored_weight(numerics.pack(given, 4), scale, 24, INT4, 8))
