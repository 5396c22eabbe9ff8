"""Model families: which pipelines they are, what their layers become, what their networks take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.families import DYNAMIC, FAMILIES, Family, InputSpec, family_of
from fp4dit_onnx.families.dit import DIT
from fp4dit_onnx.families.flux import FLUX
from fp4dit_onnx.families.hunyuan import HUNYUAN_DIT
from fp4dit_onnx.families.pixart import (
    FIRST_FFN_LINEAR,
    PIXART_ALPHA,
    PIXART_SIGMA,
    has_conditions,
)
from fp4dit_onnx.families.request import Encoded, Request
from fp4dit_onnx.families.sd3 import SD3
from fp4dit_onnx.spec.recipe import make_recipe
from fp4dit_onnx.spec.spec import LayerSpec

LAYERS = (
    "adaln_single.linear",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn2.to_k",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
    "proj_out",
)


def assigned(
    family: Family, layers: tuple[str, ...], *, skip: bool = False
) -> tuple[dict[str, LayerSpec], list[str]]:
    """Specs by layer, and the layers left in float."""
    recipe = make_recipe(
        "w4a6",
        method=method_by_name("fp-rtn"),
        paper_rules=family.paper_rules,
        skip=family.skip if skip else (),
    )
    specs, skipped = recipe.assign(layers)
    return dict(specs), [name for name, _ in skipped]


@pytest.mark.parametrize(
    ("pipeline", "transformer", "family"),
    [
        ("PixArtAlphaPipeline", "PixArtTransformer2DModel", PIXART_ALPHA),
        ("PixArtSigmaPipeline", "PixArtTransformer2DModel", PIXART_SIGMA),
        ("HunyuanDiTPipeline", "HunyuanDiT2DModel", HUNYUAN_DIT),
        ("DiTPipeline", "DiTTransformer2DModel", DIT),
    ],
)
def test_family_of(pipeline: str, transformer: str, family: Family) -> None:
    assert family_of(pipeline, transformer) is family


@pytest.mark.parametrize(
    ("pipeline", "transformer"),
    [
        ("StableDiffusionPipeline", "UNet2DConditionModel"),
        ("PixArtSigmaPipeline", "HunyuanDiT2DModel"),
        ("StableDiffusionPipeline", "PixArtTransformer2DModel"),
    ],
)
def test_family_of_refuses(pipeline: str, transformer: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of(pipeline, transformer)
    message = str(caught.value)
    assert f"{pipeline} with transformer {transformer}" in message
    assert "PixArtAlphaPipeline, PixArtSigmaPipeline" in message


@pytest.mark.parametrize("family", FAMILIES, ids=[f.name for f in FAMILIES])
def test_rules_of_a_family_cover_every_layer(family: Family) -> None:
    layers = (*LAYERS, "context_embedder", "blocks.7.anything")
    specs, skipped = assigned(family, layers)
    assert (tuple(specs), skipped) == (layers, [])
    assert {spec.weight_format.bits for spec in specs.values()} == {4}


PAPER = (PIXART_ALPHA, PIXART_SIGMA, HUNYUAN_DIT, DIT)


@pytest.mark.parametrize("family", PAPER, ids=[f.name for f in PAPER])
def test_paper_has_e3m0_for_the_first_linear_of_the_feed_forward(family: Family) -> None:
    """For Hunyuan-DiT that of the blocks alone."""
    blocks = "blocks" if family is HUNYUAN_DIT else "transformer_blocks"
    layers = tuple(name.replace("transformer_blocks", blocks) for name in LAYERS)
    specs, _ = assigned(family, layers)
    assert [n for n, s in specs.items() if s.weight.format == "e3m0"] == [layers[3]]
    pattern = "blocks.*.ff.net.0.proj" if family is HUNYUAN_DIT else FIRST_FFN_LINEAR
    assert family.paper_rules[0] == (pattern, "e3m0")


def test_hunyuan_quantizes_its_blocks_alone() -> None:
    outside = (
        "time_extra_emb.pooler.q_proj",
        "text_embedder.linear_1",
        "norm_out.linear",
        "proj_out",
    )
    blocks = ("blocks.0.attn1.to_q", "blocks.39.skip_linear")
    specs, skipped = assigned(HUNYUAN_DIT, (*outside, *blocks), skip=True)
    assert (tuple(specs), tuple(skipped)) == (blocks, outside)


def test_sigma_has_e1m2_where_alpha_has_e2m1() -> None:
    assert [f.paper_rules[-1] for f in (PIXART_ALPHA, PIXART_SIGMA)] == [
        ("*", "e2m1"),
        ("*", "e1m2"),
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"sample_size": 128}, True),
        ({"sample_size": 64}, False),
        ({"sample_size": 128, "use_additional_conditions": None}, True),
        ({"sample_size": 128, "use_additional_conditions": False}, False),
        ({"sample_size": 64, "use_additional_conditions": True}, True),
    ],
)
def test_has_conditions(config: dict[str, Any], expected: bool) -> None:
    assert has_conditions(config) is expected


def test_input_shapes() -> None:
    """Height and width are open: not the config's sample size."""
    config = {"in_channels": 4, "sample_size": 128, "caption_channels": 4096}
    sizes = {"batch": 2, "text": 120, "height": 96, "width": 160}
    inputs = PIXART_ALPHA.interface(config).inputs
    found = {i.name: (i.dtype, i.shape(config, sizes)) for i in inputs}
    assert list(found.items()) == [
        ("hidden_states", ("float32", (2, 4, 96, 160))),
        ("encoder_hidden_states", ("float32", (2, 120, 4096))),
        ("timestep", ("float32", (2,))),
        ("encoder_attention_mask", ("int64", (2, 120))),
        ("resolution", ("float32", (2, 2))),
        ("aspect_ratio", ("float32", (2, 1))),
    ]
    plain = PIXART_ALPHA.interface({**config, "use_additional_conditions": False}).inputs
    assert [i.name for i in plain] == list(found)[:4]
    dynamic = {str(dim) for i in inputs for dim in i.dims} & set(DYNAMIC)
    assert dynamic == {"batch", "text", "height", "width"}


def test_dynamic_axis_goes_before_a_config_key() -> None:
    spec = InputSpec("x", "float32", ("text", 3, "width"))
    assert spec.shape({"text": 9, "width": 5}, {"text": 7}) == (7, 3, 5)


@pytest.mark.parametrize("conditions", [{}, {"resolution": 1, "aspect_ratio": 2}])
def test_arguments(conditions: dict[str, int]) -> None:
    arguments = PIXART_SIGMA.interface({"sample_size": 64}).keywords
    found = arguments({"hidden_states": 0, "timestep": 5, **conditions})
    expected = {"resolution": None, "aspect_ratio": None, **conditions}
    assert found == {
        "hidden_states": 0,
        "timestep": 5,
        "added_cond_kwargs": expected,
        "return_dict": False,
    }


def test_guidance_is_the_familys() -> None:
    """DiT has the rows with the condition first, Flux has no others, and 1 is no guidance."""
    rows = np.array([[1.0], [2.0], [4.0], [8.0]], np.float32)
    assert PIXART_ALPHA.guidance.combined(rows, 3.0).tolist() == [[10], [20]]
    assert DIT.guidance.combined(rows, 3.0).tolist() == [[-5], [-10]]
    for guidance, weight in ((FLUX.guidance, 3.0), (PIXART_ALPHA.guidance, 1.0)):
        assert guidance.combined(rows, weight) is rows
    assert [f.guidance.doubles(3.0) for f in (PIXART_ALPHA, DIT, FLUX, SD3)] == [
        True,
        True,
        False,
        True,
    ]


def test_rows_are_in_the_order_of_guidance() -> None:
    sampling = Sampling(1, 3.0, 64, 64, 16)
    index = {"id2label": {"7": "goose"}}

    def request(family: Family) -> Request:
        return Request(["goose", "3"], "", sampling, family.guidance, {}, index)

    labels = DIT.feed(request(DIT), never)["class_labels"]
    assert labels.tolist() == [7, 3, 1000, 1000]
    assert request(PIXART_ALPHA).in_order(["a", "b"], "none") == ["none", "none", "a", "b"]
    assert request(FLUX).in_order(["a", "b"], "none") == ["a", "b"]


def never(*_: object) -> Encoded:
    raise AssertionError


@pytest.mark.parametrize("length", [None, "nine", 0, True])
@pytest.mark.parametrize("key", ["text_len", "text_len_t5"])
def test_a_text_length_that_is_none_is_refused(key: str, length: object) -> None:
    sampling = Sampling(1, 3.0, 64, 64, 16)
    request = Request(["a"], "", sampling, HUNYUAN_DIT.guidance, {key: length}, {})
    text = next(text for text in HUNYUAN_DIT.texts if text.key == key)
    with pytest.raises(UsageError, match=f"{key} of the transformer is .*a whole number from 1"):
        text.tokens(request)


@pytest.mark.parametrize("config", [{}, {"joint_attention_dim": None}])
def test_the_width_of_an_encoder_that_is_left_out_has_to_be_known(config: dict[str, Any]) -> None:
    sampling = Sampling(1, 1.0, 64, 64, 16)
    request = Request(["a"], "", sampling, SD3.guidance, config, {})
    states = Encoded(np.zeros((1, 77, 4), np.float32), np.ones((1, 77), np.int64))
    with pytest.raises(CheckpointError, match=r"joint_attention_dim is (absent|null)"):
        SD3.feed(request, lambda *_: states)


def test_latents_are_the_familys() -> None:
    """Flux packs squares of two, DiT's network gives the variance beside, a VAE may shift."""
    shape = (1, 2, 4, 6)
    latents = np.arange(48, dtype=np.float32).reshape(shape)
    packed = FLUX.latents.pack(latents)
    assert packed.shape == (1, 6, 8)
    assert packed[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
    assert np.array_equal(FLUX.latents.prediction(packed, shape), latents)
    both = np.concatenate([latents, -latents], axis=1)
    assert np.array_equal(DIT.latents.prediction(both, shape), latents)
    half = SD3.latents.for_decoder(np.float32(3), {"scaling_factor": 1.5, "shift_factor": 0.5})
    assert half == 2.5
    for config in ({}, {"scaling_factor": None, "shift_factor": None}):
        assert SD3.latents.for_decoder(np.float32(0.18215), config) == 1


@pytest.mark.parametrize("family", [DIT, FLUX], ids=["DiT", "Flux"])
def test_no_negative_prompt_where_guidance_has_none(family: Family) -> None:
    request = Request(["0"], "dull", Sampling(1, 3.0, 64, 64, 16), family.guidance, {}, {})
    with pytest.raises(UsageError, match=r"negative prompt 'dull': .* takes no negative prompt"):
        family.check(request)
