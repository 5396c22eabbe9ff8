"""Formats by a weight's spread, and rotations that no error is asked about."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.stages import STAGES, Evidence
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.hadamard import hadamard
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.spec import LayerSpec

SPEC = LayerSpec.of("e2m1", "e2m1", 128)
FORMATS = ("e2m1", "e1m2", "e3m0")


def evidence() -> Evidence:
    """Nothing was rounded or measured."""

    def never(draft: Draft) -> Draft:
        raise AssertionError(draft.name)

    return Evidence(never, never)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("uniform", "e1m2"), ("normal", "e2m1"), ("laplace", "e2m1"), ("wide", "e3m0")],
)
def test_formats_by_spread(kind: str, wanted: str) -> None:
    """Against numpy; the wide one has magnitudes that are even in their logarithms."""
    random = np.random.default_rng(0)
    made = {
        "uniform": lambda: random.uniform(-1, 1, (16, 300)),
        "normal": lambda: random.standard_normal((16, 300)),
        "laplace": lambda: random.laplace(size=(16, 300)),
        "wide": lambda: np.exp2(random.uniform(-9, 0, (16, 300))),
    }[kind]().astype(np.float32)
    groups = np.sort(np.abs(made[:, :256].reshape(-1, 128)), axis=1)
    spread = np.median(groups[:, -1] / groups[:, 25])
    distances = {
        name: abs(np.log(spread / most)) for name, most in zip(FORMATS, (12, 7, 64), strict=True)
    }
    assert min(distances, key=distances.__getitem__) == wanted
    draft = Draft("fc", torch.from_numpy(made), SPEC, FORMATS)
    found = ChooseFormat(by="spread").layer(draft, evidence())
    assert found.spec.weight.format == wanted
    assert ChooseFormat(by="spread").layer(replace(draft, candidates=()), evidence()).spec == SPEC


def test_zeros_have_no_spread() -> None:
    draft = Draft("fc", torch.zeros(4, 16), SPEC, FORMATS)
    assert ChooseFormat(by="spread").layer(draft, evidence()).spec.weight.format == "e2m1"
    with pytest.raises(
        UsageError, match=r"choose-format.by 'kurtosis': expected one of error, spread"
    ):
        ChooseFormat(by="kurtosis")


def test_every_input_is_rotated() -> None:
    """Nothing is asked; a layer whose activations stay in float is left alone."""
    stage = method_by_name("hq-dit").stages[0]
    assert stage == STAGES["hadamard"](block=128, always=True)
    assert pickle.loads(pickle.dumps(stage)) == stage
    weight = torch.randn(8, 160, generator=torch.Generator().manual_seed(0))
    drafts = {
        "in": Draft("in", weight, SPEC),
        "float": Draft("float", weight, replace(SPEC, input=None)),
    }
    reads = replace(evidence(), inputs=lambda draft: Reader())
    found = stage.apply(drafts, reads)
    assert found["in"].spec.input_ops == (Hadamard(128),)
    assert np.allclose(found["in"].weight, hadamard(weight.double().numpy(), 128), atol=1e-6)
    assert found["float"] == drafts["float"]


class Reader:
    """Inputs of a layer of which only their reader is known."""

    reader = "in"
