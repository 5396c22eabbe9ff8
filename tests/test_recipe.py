"""Recipes: bits, rules and formats become a specification per layer; and the families' own rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import plain
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.products import check_product
from fp4dit_onnx.spec.recipe import Recipe, Rule, make_recipe, parse_bits
from fp4dit_onnx.spec.spec import DEFAULT_GROUP_SIZE, LayerSpec

PAPER = (("*.ff.net.0.proj", "e3m0"), ("*", "e2m1"))
LAYERS = (
    "adaln_single.linear",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn2.to_k",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
    "proj_out",
)


def recipe(bits: str = "w4a6", **changes: Any) -> Recipe:
    method = method_by_name(changes.pop("method", "fp-rtn"))
    return make_recipe(bits, **{"method": method, "paper_rules": PAPER, **changes})


def weights(of: Recipe) -> dict[str, str]:
    return {name: spec.weight.format for name, spec in of.assign(LAYERS)[0].items()}


# --- bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [4, 6, 8])
@pytest.mark.parametrize("activation", [4, 6, 8, 16, 32])
def test_parse_bits(weight: int, activation: int) -> None:
    assert parse_bits(f"w{weight}a{activation}") == (weight, activation)
    assert parse_bits(f"W{weight}A{activation}") == (weight, activation)


@pytest.mark.parametrize(
    "bits",
    [
        *("", "4", "w4", "a6", "a6w4", "w4a", "wa", "w4a6x", "xw4a6", " w4a6", "w4a6\n", "w4 a6"),
        *("w3a6", "w4a5", "w16a16", "w0a0", "w-4a6", "w4.0a6", "int4", "w4a6/w8a8", "w44a6"),
    ],
)
def test_parse_bits_refuses(bits: str) -> None:
    with pytest.raises(UsageError, match=r"expected w<4\|6\|8>a<4\|6\|8\|16\|32>") as caught:
        parse_bits(bits)
    assert repr(bits) in str(caught.value)


@pytest.mark.parametrize(
    ("bits", "weight", "activation"),
    [
        ("w4a4", "e2m1", "e2m1"),
        ("w4a6", "e2m1", "e2m3"),
        ("w6a6", "e2m3", "e2m3"),
        ("w4a8", "e2m1", "e3m4"),
        ("w8a8", "int8", "e3m4"),
        ("w8a16", "int8", None),
        ("w4a32", "e2m1", None),
    ],
)
def test_default_formats(bits: str, weight: str, activation: str | None) -> None:
    specs, skipped = recipe(bits).assign(LAYERS[:2])
    assert set(specs.values()) == {LayerSpec.of(weight, activation, DEFAULT_GROUP_SIZE)}
    assert skipped == ()


def test_spec_formats() -> None:
    spec = LayerSpec.of("e3m0", "e3m4", 128)
    assert spec.weight_format is FORMATS["e3m0"]
    assert spec.activation_format is FORMATS["e3m4"]
    assert LayerSpec.of("e3m0", None, 128).activation_format is None


# --- rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("*=e2m1", Rule("*", "e2m1")),
        ("*.attn2.*=e2m1/e3m4", Rule("*.attn2.*", "e2m1", "e3m4")),
        ("proj_out=none", Rule("proj_out", "none")),
        ("a=int4/none", Rule("a", "int4", "none")),
        ("a=b=int4", Rule("a=b", "int4")),
    ],
)
def test_rule_parse(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule
    assert rule.required


@pytest.mark.parametrize("text", ["", "e2m1", "=e2m1", "proj_out=", "="])
def test_rule_parse_refuses_what_is_no_rule(text: str) -> None:
    with pytest.raises(UsageError, match="expected PATTERN=FORMAT"):
        Rule.parse(text)


@pytest.mark.parametrize("text", ["a=fp4", "a=e2m1/fp8", "a=/e2m3", "a=e2m1/e2m3/e2m3", "a=E2M1"])
def test_rule_parse_refuses_an_unknown_format(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown format .* expected one of e2m1"):
        Rule.parse(text)


def test_first_match_wins() -> None:
    found = weights(recipe(rules=["*.attn1.*=e1m2", "*.attn?.*=int4", "*_q=e3m0"]))
    assert found["transformer_blocks.0.attn1.to_q"] == "e1m2"
    assert found["transformer_blocks.0.attn2.to_k"] == "int4"
    assert found["proj_out"] == "e2m1"


def test_paper_rules() -> None:
    found = weights(recipe())
    assert found.pop("transformer_blocks.0.ff.net.0.proj") == "e3m0"
    assert set(found.values()) == {"e2m1"}
    assert weights(recipe(weight_format="paper")) == weights(recipe())


def test_paper_rules_need_not_match() -> None:
    assert list(recipe().assign(["proj_out"])[0]) == ["proj_out"]


@pytest.mark.parametrize(
    ("bits", "weight_format", "expected"),
    [
        ("w4a6", "e2m1", "e2m1"),
        ("w4a6", "int4", "int4"),
        ("w8a8", None, "int8"),
        ("w8a8", "paper", "int8"),
        ("w6a6", "e3m2", "e3m2"),
    ],
)
def test_one_weight_format_for_all(bits: str, weight_format: str | None, expected: str) -> None:
    assert set(weights(recipe(bits, weight_format=weight_format)).values()) == {expected}


def test_user_rules_come_before_the_paper() -> None:
    found = weights(recipe(rules=["*.ff.net.0.proj=e2m1"]))
    assert set(found.values()) == {"e2m1"}


def test_user_rule_that_matches_nothing() -> None:
    with pytest.raises(UsageError) as caught:
        recipe(rules=["*=e2m1", "blocks.*=e3m0"]).assign(LAYERS)
    message = str(caught.value)
    assert "'blocks.*' matches none of the 6 linear layers" in message
    assert "adaln_single.linear, transformer_blocks.0.attn1.to_q" in message


def test_none_skips_with_a_reason() -> None:
    skip = [("adaln_single.*", "shared by all blocks")]
    specs, skipped = recipe(rules=["proj_out=none"], skip=skip).assign(LAYERS)
    assert skipped == (
        ("adaln_single.linear", "shared by all blocks"),
        ("proj_out", "kept in float by rule"),
    )
    assert list(specs) == list(LAYERS[1:5])


def test_user_rules_come_before_skip() -> None:
    of = recipe(rules=["adaln*=int4"], skip=[("adaln*", "small"), ("absent.*", "need not match")])
    specs, skipped = of.assign(LAYERS)
    assert specs["adaln_single.linear"].weight.format == "int4"
    assert skipped == ()


def test_activation_override() -> None:
    specs, _ = recipe(rules=["*.attn1.*=e2m1/e3m4", "*.ff.*=e2m1/none"]).assign(LAYERS)
    found = {name: spec.formats[1] for name, spec in specs.items()}
    assert found["transformer_blocks.0.attn1.to_q"] == "e3m4"
    assert found["transformer_blocks.0.ff.net.2"] is None
    assert found["proj_out"] == "e2m3"
    assert recipe(activation_format="int6").activation == "int6"
    assert recipe("w4a16", rules=["proj_out=e2m1/e3m4"]).assign(LAYERS)[0]["proj_out"].formats[
        1
    ] == ("e3m4")


# --- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "changes", "expected"),
    [
        ("w4a6", {}, "e2m3"),
        ("w4a8", {}, "e3m4"),
        ("w4a16", {}, None),
        ("w4a6", {"activation_format": "int6"}, "int6"),
        ("w4a6", {"attention_format": "int6"}, "int6"),
        ("w4a6", {"attention_format": "none"}, None),
        ("w4a16", {"attention_format": "none"}, None),
        ("w4a6", {"activation_format": "none"}, None),
        ("w4a6", {"activation_format": "none", "attention_format": "e2m3"}, "e2m3"),
    ],
)
def test_attention_format(bits: str, changes: dict[str, str], expected: str | None) -> None:
    assert recipe(bits, **changes).attention == expected


# --- contradictions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight_format": "int8"},
            "weight format int8 has 8 bits, but the bits asked for give 4",
        ),
        ({"bits": "w8a6", "weight_format": "e2m1"}, "weight format e2m1 has 4 bits"),
        ({"activation_format": "e3m4"}, "activation format e3m4 has 8 bits"),
        ({"bits": "w4a16", "activation_format": "e3m4"}, "activation format e3m4 has 8 bits"),
        ({"attention_format": "int4"}, "attention format int4 has 4 bits, but .* give 6"),
        ({"bits": "w4a16", "attention_format": "e2m3"}, "attention format e2m3 has 6 bits"),
        ({"attention_format": "fp6"}, "unknown format 'fp6'"),
        ({"weight_format": "fp4"}, "unknown format 'fp4'"),
        ({"activation_format": "fp6"}, "unknown format 'fp6'"),
        ({"rules": ["x"]}, "expected PATTERN=FORMAT"),
        ({"bits": "w5a6"}, "unknown bits"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**changes)


@pytest.mark.parametrize("size", [-8, 0, 1, 7, 12, 100])
def test_group_size_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"group size {size}: expected a positive multiple of 8"):
        recipe(group_size=size)


@pytest.mark.parametrize("size", [8, 24, 128, 4608])
def test_group_size(size: int) -> None:
    specs, _ = recipe(group_size=size).assign(LAYERS)
    assert {spec.group_size for spec in specs.values()} == {size}


def test_integer_activations_need_integer_weights() -> None:
    with pytest.raises(UsageError, match="layer proj_out: weights in e4m3 need float"):
        recipe(rules=["proj_out=e4m3"]).assign(LAYERS)
    specs, _ = recipe(rules=["proj_out=e4m3/none", "*.to_q=e4m3/e4m3"]).assign(LAYERS)
    assert specs["proj_out"].weight.format == "e4m3"


def test_group_sums_stay_below_two_to_the_31() -> None:
    # int8 x e3m4: 127 * 2048 = 260096 a product, with 1984 in whole bytes; 8256 of them fit.
    assert recipe("w8a8", group_size=8256).assign(LAYERS)[0]
    refused = "a group of 8264 .* can reach 2149433344, .* use groups of at most 8256"
    with pytest.raises(UsageError, match=refused):
        recipe("w8a8", group_size=8264).assign(LAYERS)


def test_a_group_is_no_longer_than_its_row() -> None:
    wide = recipe("w8a8", group_size=10**6)
    assert wide.assign(dict.fromkeys(LAYERS, (4, 8256)))[0]
    with pytest.raises(UsageError, match="a group of 8257 "):
        wide.assign(dict.fromkeys(LAYERS, (4, 8257)))


# --- as data -----------------------------------------------------------------------------------


def test_recipe_as_json() -> None:
    made = recipe("W4A16", rules=["proj_out=none"], skip=[("adaln*", "small")])
    rule = {"activation": None, "required": False, "reason": "kept in float by rule"}
    assert json.loads(json.dumps(plain(made))) == {
        "bits": "w4a16",
        "method": "fp-rtn",
        "activation": None,
        "attention": None,
        "group_size": 128,
        "scale": "float16",
        "rules": [
            {**rule, "pattern": "proj_out", "weight": "none", "required": True},
            {**rule, "pattern": "adaln*", "weight": "none", "reason": "small"},
            {**rule, "pattern": "*.ff.net.0.proj", "weight": "e3m0"},
            {**rule, "pattern": "*", "weight": "e2m1"},
        ],
        "search": [],
        "activation_group_size": None,
    }


def test_integer_methods_take_integers_of_the_same_bits() -> None:
    made = recipe("w4a6", method="int-adaround")
    specs, _ = made.assign(LAYERS)
    assert {spec.formats for spec in specs.values()} == {("int4", "int6")}
    assert made.attention == "int6"


def test_auto_leaves_named_layers_alone() -> None:
    made = recipe(weight_format="auto", rules=["*.to_q=e3m0"], skip=[("proj_out", "small")])
    specs, _ = made.assign(LAYERS)
    searched = made.candidates(tuple(specs))
    assert set(searched) == {name for name in specs if not name.endswith("to_q")}
    assert set(searched.values()) == {("e2m1", "e1m2", "e3m0")}
    assert recipe().candidates(LAYERS) == {}


@pytest.mark.parametrize("changes", [{"bits": "w8a8"}, {"method": "int-rtn"}])
def test_auto_is_for_4_bits_of_floating_point(changes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="auto chooses among 4-bit floating-point formats"):
        recipe(**{"weight_format": "auto", **changes})


def test_outer_layers_and_groups_of_a_token() -> None:
    made = recipe(
        scale="int4*f32",
        group_size=32,
        activation_group_size=16,
        attention_format="int8",
        outer_layers="int8/int8",
        outer=("proj_out", "caption_projection.*"),
    )
    specs, _ = made.assign({"blocks.0.fc": (8, 192), "proj_out": (32, 192)})
    assert specs["blocks.0.fc"] == LayerSpec.of("e2m1", "e2m3", 32, "int4*f32", 16)
    # int8 leaves no room for multipliers: a row is one group, and its sum one integer.
    assert specs["proj_out"] == LayerSpec.of("int8", "int8", 192, "float16")
    assert made.attention == "int8"
    with pytest.raises(UsageError, match="activation group size 12: expected a positive multiple"):
        recipe(activation_group_size=12)


@pytest.mark.parametrize(("scale", "k"), [("float16", 1152), ("int4*f32", 1152), ("float16", 96)])
def test_groups_of_weights_and_tokens_fit_each_other(scale: str, k: int) -> None:
    """Kernels fold sums of whole groups; where integers make the weights' scales there is one a row."""
    spec = LayerSpec.of("e2m1", "int6", 128, scale, activation_group_size=96)
    if scale == "float16" and k > 128:
        with pytest.raises(UsageError, match="groups of 128 inputs of the weight and of 96 of a"):
            check_product("fc", spec, k)
    else:
        check_product("fc", spec, k)


# --- inputs of several tensors -----------------------------------------------------------------

JOINED = {"blocks.9.skip": 2}


def groups(k: int, fmt: str = "", **changes: Any) -> tuple[int, int | None]:
    """Inputs per scale of the weight and of the activations of a layer that joins two tensors."""
    rules = [f"*.skip={fmt}"] if fmt else []
    specs, _ = recipe(rules=rules, **changes).assign({"blocks.9.skip": (8, k)}, JOINED)
    return specs["blocks.9.skip"].group_size, specs["blocks.9.skip"].activation_group_size


def test_tensors_side_by_side_have_scales_of_their_own() -> None:
    assert groups(2816) == (128, 1408)
    assert groups(192) == (96, 96)
    assert groups(2816, group_size=256) == (176, 1408)
    assert groups(2816, activation_group_size=256) == (128, 128)  # 176 has no whole 128
    assert groups(2816, activation_group_size=64) == (128, 64)
    assert groups(2816, activation_group_size=4096) == (128, 1408)
    assert groups(2816, fmt="e2m1/int8") == (128, 1408)
    assert groups(2816, bits="w4a16") == (128, None)
    assert groups(2816, fmt="int8", scale="int4*f32", group_size=32) == (1408, 1408)
    assert groups(2816, scale="int4*f32", group_size=32) == (32, 1408)
    specs, _ = recipe().assign({"blocks.9.skip": (8, 2816)})
    assert specs["blocks.9.skip"] == LayerSpec.of("e2m1", "e2m3", 128)


def test_tensors_side_by_side_without_whole_groups() -> None:
    with pytest.raises(
        UsageError, match=r"its 200 inputs are 2 tensors .* expected a multiple of 16; keep it in"
    ):
        groups(200)
    _, skipped = recipe(rules=["*.skip=none"]).assign({"blocks.9.skip": (8, 200)}, JOINED)
    assert [name for name, _ in skipped] == ["blocks.9.skip"]


def test_precisions_of_a_budget_end_where_joined_tensors_do() -> None:
    budget = Budget(bits=4.5)
    spec = LayerSpec.of("e2m1", "e2m3", 96, activation_group_size=96)
    made = budget.precisions(spec, ("e2m1",), "int4*f32", 192, 96)
    assert {(w.format, w.group_size, w.scale) for w in made} == {
        *(("e2m1", size, "int4*f32") for size in (16, 32, 48)),
        ("e2m1", 96, "float16"),
        ("int8", 96, "float16"),
    }
