"""LoRA files: added to weights wherever these are read, as diffusers, peft and kohya write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command_line import Run
from safetensors.numpy import save_file

from fp4dit_onnx.bundle.manifest import read_manifest
from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.checkpoint.checkpoint import demo_folder, open_checkpoint
from fp4dit_onnx.checkpoint.low_rank import named_file
from fp4dit_onnx.checkpoint.tensor_reading import read_chunks, read_float32, same_data
from fp4dit_onnx.errors import Fp4DitError, UsageError

Array = npt.NDArray[Any]

QUERY = "transformer_blocks.1.attn1.to_q"
FEED = "transformer_blocks.0.ff.net.0.proj"
PATCH = "pos_embed.proj"
TEXT = "encoder.block.0.layer.0.SelfAttention.q"
SHAPES = {QUERY: (192, 192), FEED: (768, 192), PATCH: (192, 4, 2, 2), TEXT: (128, 128)}


def pair(layer: str, rank: int = 3) -> tuple[Array, Array]:
    """What goes down, [rank, ...], and up again, [N, rank, 1 ...]."""
    n, *inputs = SHAPES[layer]
    rng = np.random.default_rng(len(layer))
    down, up = (
        rng.normal(size=(rank, *inputs)),
        rng.normal(size=(n, rank, *(1 for _ in inputs[1:]))),
    )
    return down.astype(np.float32), up.astype(np.float32)


def product(layer: str, rank: int = 3) -> Array:
    down, up = pair(layer, rank)
    found: Array = (up.reshape(len(up), -1) @ down.reshape(rank, -1)).reshape(SHAPES[layer])
    return found


def dotted(layer: str, start: str = "transformer.", rank: int = 3) -> dict[str, Array]:
    down, up = pair(layer, rank)
    return {f"{start}{layer}.lora_A.weight": down, f"{start}{layer}.lora_B.weight": up}


def older(tensors: Mapping[str, Array]) -> dict[str, Array]:
    words = {"lora_A": "lora.down", "lora_B": "lora.up"}
    return {
        re.sub("lora_.", lambda m: words[m[0]], name): value for name, value in tensors.items()
    }


def flat(layer: str, start: str = "lora_transformer_", alpha: float = 6) -> dict[str, Array]:
    name = start + layer.replace(".", "_")
    down, up = pair(layer)
    ends = (".lora_down.weight", ".lora_up.weight", ".alpha")
    return {name + e: v for e, v in zip(ends, (down, up, np.float32(alpha)), strict=True)}


def stored(layer: str, lora: tuple[str, ...] = ()) -> Any:
    part = "text_encoder" if layer == TEXT else "transformer"
    return open_checkpoint(lora=lora).components[part].tensors[f"{layer}.weight"]


Saved = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(tensors: Mapping[str, Array], **metadata: str) -> str:
        path = tmp_path / "lora.safetensors"
        save_file({name: np.asarray(value) for name, value in tensors.items()}, path, metadata)
        return str(path)

    return save


@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("scale", ["", ":1", ":-0.25"])
def test_a_weight_is_read_with_what_is_added(saved: Saved, layer: str, scale: str) -> None:
    start = "text_encoder." if layer == TEXT else "transformer."
    info = stored(layer, (saved(dotted(layer, start)) + scale,))
    wanted = read_float32(stored(layer)) + float(scale[1:] or 1) * product(layer)
    np.testing.assert_allclose(read_float32(info), wanted, rtol=1e-5, atol=1e-5)
    parts = list(read_chunks(info, 100))  # rows of 16 to 192, so that parts begin and end anywhere
    assert {len(part) for part in parts[:-1]} == {100}
    np.testing.assert_allclose(np.concatenate(parts), wanted.ravel(), rtol=1e-5, atol=1e-5)
    assert not same_data(info, stored(layer))


def test_other_weights_stay(saved: Saved) -> None:
    assert stored(FEED, (saved(dotted(QUERY)),)) == stored(FEED)


@pytest.mark.parametrize(
    ("tensors", "factor"),
    [
        (dotted(QUERY, "base_model.model."), 1),
        (dotted(QUERY, ""), 1),
        (older(dotted(QUERY)), 1),
        (flat(QUERY), 2),
        (flat(QUERY, "lora_unet_", alpha=3), 1),
        ({**dotted(QUERY), f"transformer.{QUERY}.alpha": np.float32(1.5)}, 0.5),
    ],
)  # fmt: skip
def test_layouts(saved: Saved, tensors: Mapping[str, Array], factor: float) -> None:
    found = read_float32(stored(QUERY, (saved(tensors),)))
    wanted = read_float32(stored(QUERY)) + factor * product(QUERY)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_text_encoders_have_names_of_their_own_in_kohyas(saved: Saved) -> None:
    found = read_float32(stored(TEXT, (saved(flat(TEXT, "lora_te1_")),)))
    wanted = read_float32(stored(TEXT)) + 2 * product(TEXT)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({"lora_alpha": 6}, 2), ({"lora_alpha": 6, "use_rslora": True}, 12**0.5)],
)
def test_alpha_of_pefts_settings(
    saved: Saved, tmp_path: Path, settings: dict[str, Any], factor: float
) -> None:
    wanted = read_float32(stored(QUERY)) + factor * product(QUERY)
    flatly = {f"transformer.{key}": value for key, value in settings.items()}
    file = saved(dotted(QUERY), lora_adapter_metadata=json.dumps(flatly))
    np.testing.assert_allclose(read_float32(stored(QUERY, (file,))), wanted, rtol=1e-5, atol=1e-5)
    file = saved(dotted(QUERY, "base_model.model."))
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(read_float32(stored(QUERY, (file,))), wanted, rtol=1e-5, atol=1e-5)


def test_several_add_up(saved: Saved) -> None:
    file = saved(dotted(QUERY))
    wanted = read_float32(stored(QUERY)) + 1.5 * product(QUERY)
    found = stored(QUERY, (file, f"{file}:0.5"))
    np.testing.assert_allclose(read_float32(found), wanted, rtol=1e-5, atol=1e-5)


def test_where_components_are_left_out_so_are_their_layers(saved: Saved) -> None:
    file = saved({**dotted(QUERY), **dotted(TEXT, "text_encoder.")})
    found = open_checkpoint(only=("transformer",), lora=(file,))
    assert found.tensors[f"{QUERY}.weight"].low_rank
    assert found.notes[-1] == "LoRA lora.safetensors times 1 is added to 1 weights"


DOWN, UP = dotted(QUERY)
NONE = dict(zip(flat(QUERY), (np.zeros((0, 192)), np.zeros((192, 0))), strict=False))
WRONG = {
    "another model's": (dotted(QUERY, "transformer.other."), "1 of its 1 layers"),
    "one layer unknown": ({**dotted(QUERY), **dotted(FEED, "unet.")}, "1 of its 2 layers"),
    "no rank": ({**flat(QUERY), **NONE}, "[0, 192] and [192, 0]"),
    "ranks of halves": ({**dotted(QUERY), UP: pair(QUERY, 2)[1]}, "[3, 192] and [192, 2]"),
    "other sizes": ({DOWN: pair(TEXT)[0], UP: pair(TEXT)[1]}, "for a weight of [192, 192]"),
    "half": ({DOWN: pair(QUERY)[0]}, "one half"),
    "LoHa": ({"transformer.x.hada_w1_a": pair(QUERY)[0]}, "none of a LoRA's"),
    "integers": ({DOWN: np.zeros((3, 192), np.int8)}, "none of a LoRA's"),
    "alpha": ({**flat(QUERY, alpha=np.nan)}, "one finite number"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(saved: Saved, wrong: str) -> None:
    tensors, words = WRONG[wrong]
    file = saved(tensors)
    with pytest.raises(Fp4DitError) as caught:
        open_checkpoint(lora=(file,))
    assert words in str(caught.value)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


RANKS = {QUERY: 2, FEED: 5}


@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 10, "alpha_pattern": {"to_q": 1}}])
def test_layers_have_ranks_of_their_own(saved: Saved, settings: dict[str, Any]) -> None:
    """And alphas, which peft names by the ends of layers' names."""
    both = {name: value for n, r in RANKS.items() for name, value in dotted(n, rank=r).items()}
    flatly = {f"transformer.{key}": value for key, value in settings.items()}
    file = saved(both, **({"lora_adapter_metadata": json.dumps(flatly)} if settings else {}))
    factors = {QUERY: 1 / 2, FEED: 10 / 5} if settings else {QUERY: 1, FEED: 1}
    for layer, factor in factors.items():
        wanted = read_float32(stored(layer)) + factor * product(layer, RANKS[layer])
        found = read_float32(stored(layer, (file,)))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"alpha_pattern": {"to_[qk]": 4}}])
def test_settings_that_are_more_than_a_rank_are_refused(
    saved: Saved, settings: dict[str, Any]
) -> None:
    flatly = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
    with pytest.raises(Fp4DitError, match="expected a plain LoRA"):
        open_checkpoint(lora=(saved(dotted(QUERY), lora_adapter_metadata=flatly),))


def test_the_scale_follows_the_last_colon(tmp_path: Path) -> None:
    file = tmp_path / "a:b.safetensors"
    file.write_bytes(b"")
    assert named_file(str(file)) == (file, 1.0)
    assert named_file(f"{file}:0.5") == (file, 0.5)
    for wrong in (f"{file}:nan", f"{file}:much", str(tmp_path / "absent")):
        with pytest.raises(UsageError, match="LoRA"):
            named_file(wrong)


def test_an_export_is_that_of_the_weights_together(
    run: Run, saved: Saved, tmp_path: Path, demo_copy: Path
) -> None:
    """Of codes, and of what stays in float, as a pipeline that holds the sums has them."""
    pytest.importorskip("onnx_graphsurgeon")
    from safetensors.numpy import load_file

    from fp4dit_onnx.spec.state import load_state

    path = demo_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    tensors[f"{QUERY}.weight"] += 0.1 * product(QUERY)
    save_file(tensors, path)
    options = ("--method", "fp-rtn", "--components", "transformer", "--no-measure")
    lora = saved(dotted(QUERY)) + ":0.1"
    files = tmp_path / "with", tmp_path / "fused"
    for file, source in zip(files, ((demo_folder(), "--lora", lora), (demo_copy,)), strict=True):
        found = run("export", *source, "-o", f"{file}.bundle", "--state", file, *options)
        assert found.code == 0, found.err
    ours, fused = (load_state(file).layers[QUERY] for file in files)
    named = [read_manifest(Path(f"{file}.bundle") / MANIFEST).source.lora for file in files]
    assert named == [(Path(lora).name,), ()]
    plain = (ours.codes != fused.codes).mean()
    assert plain < 0.001, "more than sums rounded otherwise"
    missing = run(
        "export", demo_folder(), "-o", tmp_path / "none", *options,
        "--lora", saved(dotted(QUERY, "x.")),
    )  # fmt: skip
    missing.refuses("1 of its 1 layers", "x.transformer_blocks.1.attn1.to_q")
    assert not (tmp_path / "none").exists()
