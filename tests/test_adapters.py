"""LoRAs at run time: slots of a bundle, adapters of ONNX Runtime, and what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command_line import Run
from PIL import Image
from safetensors.numpy import save_file

pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime", minversion="1.20")

import onnxruntime

from fp4dit_onnx.bundle.slots import slots_of
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.export import ExportRequest, export, plan
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.runtime.adapters import matrices_of, read_adapter, write_adapter
from fp4dit_onnx.runtime.lora_files import adapter_of
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.targets import TARGETS, convert

Array = npt.NDArray[Any]
RANK = 4
PATTERN = "transformer_blocks.0.attn?.*"


def asked(folder: Path, **changes: Any) -> ExportRequest:
    given = {"method": "fp-rtn", "components": "transformer", "measure": False, "report": False}
    return ExportRequest(folder, **{**given, **changes})


@pytest.fixture(scope="module")
def slotted(drawable: Callable[..., Path]) -> Path:
    """The demo with slots beside the linears of its first block's attentions."""
    return drawable("w8a32", lora_slots=RANK, lora_layers=(PATTERN,))


def shapes(bundle: Path) -> dict[str, tuple[int, ...]]:
    return slots_of(bundle / "transformer" / "model.onnx")


def lora(bundle: Path, rank: int, start: str = "transformer.") -> dict[str, Array]:
    """One of random numbers on all slots."""
    rng, found = np.random.default_rng(rank), {}
    for name, (k, _) in shapes(bundle).items():
        layer, _, role = name.rpartition(".lora.")
        if role == "down":
            n = shapes(bundle)[f"{layer}.lora.up"][1]
            found[f"{start}{layer}.lora_A.weight"] = rng.normal(0, k**-0.5, (rank, k))
            found[f"{start}{layer}.lora_B.weight"] = rng.normal(0, 0.5, (n, rank))
    return {name: value.astype(np.float32) for name, value in found.items()}


def flat(tensors: Mapping[str, Array], alpha: float) -> dict[str, Array]:
    """The same with kohya's names and an alpha."""
    found = {}
    for name, value in tensors.items():
        layer, _, end = name.removeprefix("transformer.").partition(".lora_")
        own = "lora_transformer_" + layer.replace(".", "_")
        found[own + (".lora_down.weight" if end[0] == "A" else ".lora_up.weight")] = value
        found[f"{own}.alpha"] = np.array(alpha, np.float32)
    return found


class Model:
    """One session of a transformer, and one call of it."""

    def __init__(self, bundle: Path) -> None:
        self.session = session(bundle / "transformer" / "model.onnx")
        rng = np.random.default_rng(0)
        sizes = {"batch": 1, "text": 5, "height": 8, "width": 8}
        self.feed = {}
        for item in self.session.get_inputs():
            shape = [sizes.get(size, size) for size in item.shape]
            drawn = rng.normal(size=shape).astype(np.float32)
            self.feed[item.name] = drawn if "float" in item.type else np.ones(shape, np.int64)
        self.slots = {i.name: i.shape for i in self.session.get_overridable_initializers()}

    def __call__(self, *adapters: str) -> Array:
        """The output with adapters."""
        given = {**self.feed, **matrices_of(adapters, self.slots)}
        found: Array = self.session.run(None, given)[0]
        return found


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
def test_an_adapter_is_the_fused_lora(kind: str, slotted: Path, run: Run, tmp_path: Path) -> None:
    file, made = tmp_path / "style.safetensors", tmp_path / "style.onnx_adapter"
    own = lora(slotted, 3)
    save_file(own if kind == "diffusers" else flat(own, 6), file)
    code, out, error = run("lora", "convert", file, "--bundle", slotted, "-o", made)
    assert (code, error) == (0, ""), error
    assert "8 layers" in out
    tensors = read_adapter(made)
    assert tensors.keys() == shapes(slotted).keys()
    fused = open_checkpoint(only=("transformer",), lora=(str(file),)).tensors
    plain = open_checkpoint(only=("transformer",)).tensors
    for name in own:
        layer = name.removeprefix("transformer.").partition(".lora_")[0]
        down, up = (tensors[f"{layer}.lora.{role}"].astype(np.float32) for role in ("down", "up"))
        weight = f"{layer}.weight"
        difference = read_float32(fused[weight]) - read_float32(plain[weight])
        np.testing.assert_allclose((down @ up).T, difference, atol=1e-3, rtol=1e-2)


def test_a_session_adds_and_switches_adapters(slotted: Path, tmp_path: Path) -> None:
    model = Model(slotted)
    files = []
    for rank in (1, 3):
        save_file(lora(slotted, rank), tmp_path / f"{rank}.safetensors")
        tensors = adapter_of(tmp_path / f"{rank}.safetensors", shapes(slotted))
        write_adapter(tensors, tmp_path / f"{rank}.onnx_adapter")
        files.append(str(tmp_path / f"{rank}.onnx_adapter"))
    none, one, two, both = model(), model(files[0]), model(files[1]), model(*files)
    assert min(np.abs(a - b).max() for a, b in ((none, one), (none, two), (one, both))) > 1e-3
    np.testing.assert_array_equal(model(), none)
    np.testing.assert_array_equal(model(f"{files[0]}:0"), none)
    np.testing.assert_array_equal(model(files[0]), one)
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(files[0])
    options.add_active_adapter(adapter)
    np.testing.assert_array_equal(model.session.run(None, model.feed, options)[0], one)
    bundle = export(
        asked(tmp_path / "fused", bits="w8a32", lora=(f"{tmp_path / '3.safetensors'}:0.5",))
    ).bundle
    wanted, found = Model(bundle)(), model(f"{files[1]}:0.5")
    assert np.abs(wanted - found).max() < 0.1 * np.abs(wanted - none).max()
    with pytest.raises(
        UsageError, match=r"are of rank 6 together at layer .*: expected 4 at most"
    ):
        model(files[1], files[1])


@pytest.mark.parametrize("target", [n for n, t in TARGETS.items() if t.rewrite is not None])
def test_other_targets_have_the_slots_too(
    target: str, drawable: Callable[..., Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"lora_slots": RANK, "lora_layers": (PATTERN,)}
    assert plan(asked(tmp_path / "none", bits="w4a16", target=target, **given)).slots
    own = drawable("w4a16", **given)
    convert(own, tmp_path / "converted", TARGETS[target])
    save_file(lora(own, 3), tmp_path / "style.safetensors")
    adapter = str(tmp_path / "style.onnx_adapter")
    write_adapter(adapter_of(tmp_path / "style.safetensors", shapes(own)), Path(adapter))
    first, second = Model(own), Model(tmp_path / "converted")
    for given in ((), (adapter,)):
        assert sqnr_db(first(*given), second(*given)) > (50 if "half" in target else 100)
    assert sqnr_db(second(), second(adapter)) < 40


def test_images_with_an_adapter(slotted: Path, bundle: Path, run: Run, tmp_path: Path) -> None:
    made, adapter = tmp_path / "with.png", tmp_path / "style.onnx_adapter"
    save_file(lora(slotted, 3), tmp_path / "style.safetensors")
    write_adapter(adapter_of(tmp_path / "style.safetensors", shapes(slotted)), adapter)
    words = ("--prompt", "red apple", "--steps", 2, "--adapter", f"{adapter}:0.8", "-o", made)
    run("generate", bundle, *words).refuses("this bundle has no slots")
    assert not made.exists()
    code, _, error = run("generate", slotted, *words)
    assert code == 0, error
    pipeline = Pipeline(slotted)
    (plain,) = pipeline.generate(["red apple"], steps=2)
    pipeline.use_adapters(f"{adapter}:0.8")
    for one in (pipeline, pickle.loads(pickle.dumps(pipeline))):
        (found,) = one.generate(["red apple"], steps=2)
        assert found.tobytes() == Image.open(made).tobytes() != plain.tobytes()
    pipeline.use_adapters()
    assert pipeline.generate(["red apple"], steps=2)[0].tobytes() == plain.tobytes()


def test_loras_and_adapters_that_do_not_fit(slotted: Path, run: Run, tmp_path: Path) -> None:
    file, made = tmp_path / "style.safetensors", tmp_path / "style.onnx_adapter"
    words = ("lora", "convert", file, "--bundle", slotted, "-o", made)
    good = lora(slotted, 2)
    save_file({n.replace("blocks.0", "blocks.9"): v for n, v in good.items()}, file)
    run(*words).refuses("are not in this pipeline", "slots for 8")
    save_file(lora(slotted, RANK + 1), file)
    run(*words).refuses("is of rank 5: expected 4 at most")
    assert not made.exists()
    run("lora", "turn", *words[2:]).refuses("lora turn: expected convert")
    slots = shapes(slotted)
    model = Model(slotted)
    name = next(n for n in slots if n.endswith("down"))
    write_adapter({name: np.zeros(slots[name], np.float16)}, made)
    with pytest.raises(UsageError, match=r"lacks .*\.lora\.up: expected both matrices"):
        model(str(made))
    pair = {n: np.zeros(s, np.float16) for n, s in slots.items() if n.rpartition(".")[0] in name}
    write_adapter({**pair, name: np.zeros((slots[name][0], 2), np.float16)}, made)
    with pytest.raises(UsageError, match=r"is float16 \[192, 2\]: expected float16 \[192, 4\]"):
        model(str(made))
    write_adapter({"other.lora.down": np.zeros((192, 4), np.float16)}, made)
    with pytest.raises(
        UsageError, match=r"has other\.lora\.down, and this bundle has no such slot"
    ):
        model(str(made))
    write_adapter({n: np.ones(slots[n], np.float16) for n in slots}, made)
    with pytest.raises(UsageError, match=r"numbers beyond float16's"):
        model(f"{made}:1e6")
    made.write_bytes(b"no adapter")
    with pytest.raises(UsageError, match="is not an adapter of ONNX Runtime"):
        model(str(made))
    with pytest.raises(UsageError, match="no file"):
        model(str(tmp_path / "absent.onnx_adapter:0.5"))
    with pytest.raises(UsageError, match="this bundle has no slots"):
        matrices_of([str(made)], {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_slots": 0}, "lora_slots = 0: expected a whole number from 1"),
        ({"lora_layers": ("*",)}, "expected with --lora-slots RANK"),
        ({"lora_slots": 4, "lora_layers": ("unet.*",)}, "no quantized linear of this name"),
    ],
)
def test_slots_that_cannot_be(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        plan(asked(tmp_path / "none", **given))
