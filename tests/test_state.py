"""The quantized state on disk, and what its sizes are said to be."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.layers import layer_size, linear_layers, totals
from fp4dit_onnx.files import plain
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import (
    QuantizedLayer,
    QuantizedState,
    StoredParts,
    load_state,
    part_shapes,
    save_state,
)

Array = npt.NDArray[Any]
METADATA = "fp4dit_onnx"


def quantized(name: str, weight: Array, spec: LayerSpec) -> QuantizedLayer:
    """Nearest codes under float16 absmax scales."""
    fmt, k = spec.weight_format, weight.shape[1]
    padded = np.pad(np.abs(weight), ((0, 0), (0, -k % spec.group_size)))
    amax = padded.reshape(len(weight), -1, spec.group_size).max(axis=-1)  # [N, G, group] -> [N, G]
    scale = (amax / fmt.max_integer).astype(np.float16)
    codes = numerics.quantize_groups(weight, scale, fmt, spec.group_size)
    packed = numerics.pack(codes, fmt.storage_bits)
    return QuantizedLayer(name, spec, k, {"codes": packed, "scale": scale})


@pytest.fixture
def state() -> QuantizedState:
    random = np.random.default_rng(0)
    specs = {
        "a.0": LayerSpec.of("e2m1", "e2m3", 8),
        "a.1": LayerSpec.of("e3m0", None, 16),
        "b": LayerSpec.of("int8", "e3m4", 128),
    }
    layers = {
        name: quantized(name, random.standard_normal((3 + i, 21)).astype(np.float32), spec)
        for i, (name, spec) in enumerate(specs.items())
    }
    provenance = {"bits": "w4a6", "prompts": ["eine Straße"], "seed": 7}
    return QuantizedState(layers, provenance, {"a.attn": "e2m3", "b.attn": "e3m4"})


def test_a_group_whose_sums_leave_int32_is_refused() -> None:
    """However long the groups are, only as long as the row."""
    spec = LayerSpec.of("int8", "e3m4", 10**6)
    scale = np.ones((1, 1), np.float16)

    def layer(k: int) -> QuantizedLayer:
        codes = np.zeros((1, k), np.uint8)
        return QuantizedLayer("a", spec, k, {"codes": codes, "scale": scale})

    assert layer(8256).n == 1
    with pytest.raises(UsageError, match=r"layer a: a group of 8257 products .* at most 8256"):
        layer(8257)


def changed(layer: QuantizedLayer, **changes: Any) -> QuantizedLayer:
    """`layer` with other fields, or other parts by role."""
    parts = {role: changes.pop(role, part) for role, part in layer.parts.items()}
    return replace(layer, parts=parts, **changes)


@pytest.fixture
def saved(state: QuantizedState, tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    save_state(state, path)
    return path


def rewrite(path: Path, header: Any, drop: str = "") -> None:
    """Write the file again with another header, or without the tensor `drop`."""
    tensors = safetensors.numpy.load_file(path)
    tensors.pop(drop, None)
    safetensors.numpy.save_file(tensors, path, metadata={METADATA: json.dumps(header)})


def header_of(path: Path) -> Any:
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()[METADATA])


# --- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "k", "group_size", "codes", "groups"),
    [
        ("e2m1", 1, 8, 1, 1),
        ("e2m1", 21, 8, 11, 3),
        ("e3m0", 128, 128, 64, 1),
        ("e2m3", 21, 8, 21, 3),
        ("int8", 129, 128, 129, 2),
    ],
)
def test_part_shapes(weight: str, k: int, group_size: int, codes: int, groups: int) -> None:
    spec = LayerSpec.of(weight, None, group_size)
    assert part_shapes(5, k, spec) == {"codes": (5, codes), "scale": (5, groups)}
    size = layer_size(5, k, spec)
    assert (size.shape, size.weights) == ((5, k), 5 * k)
    assert (size.bytes, size.bytes_float32) == (5 * codes + 2 * 5 * groups, 4 * 5 * k)


def test_layer(state: QuantizedState) -> None:
    layer = state.layers["a.0"]
    assert (layer.n, layer.k) == (3, 21)
    assert layer.nbytes == 3 * 11 + 2 * 3 * 3
    integers = layer.integers()
    assert integers.shape == (3, 21)
    assert set(np.abs(integers).ravel()) <= set(FORMATS["e2m1"].magnitudes)
    step = np.repeat(layer.scale.astype(np.float32), 8, axis=1)[:, :21]
    assert same_bits(layer.weight(), integers * step).ok


@pytest.mark.parametrize(
    "change",
    [
        {"k": 23},
        {"k": 40},
        {"codes": np.zeros((3, 12), np.uint8)},
        {"codes": np.zeros((4, 11), np.uint8)},
        {"codes": np.zeros(33, np.uint8)},
        {"scale": np.zeros((3, 2), np.float16)},
        {"scale": np.zeros((3, 3, 1), np.float16)},
        {"spec": LayerSpec.of("int8", None, 8)},
        {"spec": LayerSpec.of("e2m1", None, 16)},
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(state: QuantizedState, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"layer a\.0: codes .* do not fit K="):
        changed(state.layers["a.0"], **change)


# --- the file ----------------------------------------------------------------------------------


def test_load_is_the_inverse_of_save(state: QuantizedState, saved: Path) -> None:
    found = load_state(saved)
    assert found.provenance == state.provenance
    assert found.attention == state.attention == {"a.attn": "e2m3", "b.attn": "e3m4"}
    assert set(found.layers) == set(state.layers)
    for name, layer in state.layers.items():
        got = found.layers[name]
        assert (got.name, got.spec, got.k) == (name, layer.spec, layer.k)
        for mine, theirs in ((layer.codes, got.codes), (layer.scale, got.scale)):
            assert same_bits(mine, theirs).ok


def test_layers_whose_parts_stay_in_the_file(state: QuantizedState, saved: Path) -> None:
    found = load_state(saved, stored=True)
    for name, layer in state.layers.items():
        got = pickle.loads(pickle.dumps(replace(found.layers[name], name="other")))
        assert isinstance(got.parts, StoredParts)
        assert {r: p.tobytes() for r, p in got.parts.items()} == {
            r: p.tobytes() for r, p in layer.parts.items()
        }
        assert (got.n, got.spec, got.k) == (layer.n, layer.spec, layer.k)
        with pytest.raises(KeyError):
            got.parts["zero_point"]
    saved.unlink()
    with pytest.raises(UsageError, match=r"state\.safetensors: no readable quantized state"):
        _ = found.layers["b"].codes


def test_save_is_deterministic(state: QuantizedState, saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_state(load_state(saved), again)
    assert again.read_bytes() == saved.read_bytes()


def test_float32_scales_stay_float32(state: QuantizedState, tmp_path: Path) -> None:
    layer = changed(state.layers["b"], scale=state.layers["b"].scale.astype(np.float32))
    save_state(QuantizedState({"b": layer}), tmp_path / "s")
    assert load_state(tmp_path / "s").layers["b"].scale.dtype == np.float32


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_damaged_file(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"state\.safetensors: no readable quantized state"):
        load_state(saved)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: no readable quantized state"):
        load_state(tmp_path / "absent")


def test_other_version(saved: Path) -> None:
    header = header_of(saved)
    assert header["version"] == 1
    rewrite(saved, {**header, "version": 2})
    with pytest.raises(UsageError, match="state version 2, expected 1: write it again"):
        load_state(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, path, metadata=metadata)
    with pytest.raises(UsageError, match="state version None, expected 1"):
        load_state(path)


@pytest.mark.parametrize("tensor", ["a.1.codes", "b.scale"])
def test_missing_tensor(saved: Path, tensor: str) -> None:
    rewrite(saved, header_of(saved), drop=tensor)
    with pytest.raises(UsageError, match="no readable quantized state") as caught:
        load_state(saved)
    assert tensor in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 40}, "do not fit K=40"),
        ({"group_size": 128}, "do not fit K=21"),
        ({"weight": "fp4"}, "unknown format 'fp4'"),
        ({"largest": 0.0}, "largest magnitude 0: expected a finite float32"),
        ({"largest": 1e39}, "largest magnitude 1e.39: expected a finite float32"),
        ({"largest": 1.0, "activation_group_size": 8}, "one scale, up to 1, and one per 8 inputs"),
        ({"largest": 1.0, "activation": None}, "they stay in float, which has no scale"),
    ],
)
def test_header_that_does_not_fit_the_tensors(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    header = header_of(saved)
    header["layers"]["a.0"] |= change
    rewrite(saved, header)
    with pytest.raises(UsageError, match=message):
        load_state(saved)


def test_header_without_attention(saved: Path) -> None:
    """As files have it that were written before attention was quantized."""
    header = header_of(saved)
    del header["attention"]
    rewrite(saved, header)
    assert load_state(saved).attention == {}


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"a.attn": "fp6"}, "unknown format 'fp6'"),
        ({"a.attn": ["e2m3"]}, "no readable quantized state"),
        ("e2m3", "no readable quantized state"),
    ],
)
def test_header_with_attention_that_is_none(saved: Path, attention: Any, message: str) -> None:
    rewrite(saved, {**header_of(saved), "attention": attention})
    with pytest.raises(UsageError, match=message):
        load_state(saved)


def test_header_without_a_field(saved: Path) -> None:
    header = header_of(saved)
    del header["layers"]["a.0"]["weight"]
    rewrite(saved, header)
    with pytest.raises(
        UsageError, match=r"no readable quantized state \(layers\.a\.0\.weight is absent\)"
    ):
        load_state(saved)


# --- sizes -------------------------------------------------------------------------------------


def test_sizes_are_those_of_a_real_state(demo_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(demo_folder)
    (file,) = (demo_folder / "transformer").glob("*.safetensors")
    tensors = {n: t.astype(np.float32) for n, t in safetensors.numpy.load_file(file).items()}
    shapes = linear_layers(checkpoint)
    assert len(shapes) > 20
    specs = {
        name: LayerSpec.of("int8" if name == "proj_out" else "e2m1", "e2m3", 128)
        for name in shapes
    }
    layers = {n: quantized(n, tensors[f"{n}.weight"], spec) for n, spec in specs.items()}
    save_state(QuantizedState(layers), tmp_path / "state")
    layers = dict(load_state(tmp_path / "state").layers)

    sizes = {name: layer_size(*shape, specs[name]) for name, shape in shapes.items()}
    for name, layer in layers.items():
        assert sizes[name].bytes == layer.nbytes
        assert sizes[name].bytes_float32 == tensors[f"{name}.weight"].nbytes
        assert shapes[name] == (layer.n, layer.k) == sizes[name].shape

    rest = sum(t.nbytes for n, t in tensors.items() if n.removesuffix(".weight") not in layers)
    stored = sum(layer.nbytes for layer in layers.values())
    weights = sum(layer.n * layer.k for layer in layers.values())
    assert plain(totals(checkpoint, list(sizes.values()))) == {
        "layers": len(layers),
        "weights": weights,
        "bytes": stored,
        "bytes_float32": 4 * weights,
        "bits_per_weight": 8 * stored / weights,
        "transformer_bytes": rest + stored,
        "transformer_bytes_float32": sum(t.nbytes for t in tensors.values()),
    }


def test_totals_of_nothing(demo_folder: Path) -> None:
    found = totals(open_checkpoint(demo_folder), [])
    assert (found.layers, found.bits_per_weight) == (0, 0)
    assert found.transformer_bytes == found.transformer_bytes_float32 > 0
